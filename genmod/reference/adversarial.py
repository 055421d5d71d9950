r"""Adversarial losses and LeCam regularisation: all of them from one formula.

Each side of a loss, the critic's outputs (logits) :math:`x` for real or for generated data, is

.. math:: w\,\varphi(s\,x + b - c), \qquad \varphi(t) \in \{\ln(1 + e^t),\ \max(t, 0),\ t^2,\ t\}

averaged over its own number of elements, with constants :math:`s = \pm1, b, w` that say which loss it is, and a
center :math:`c`, read from memory, that only LeCam has. The two sides are added; a *paired* loss has one side, of
:math:`x_\mathrm{real} - x_\mathrm{fake}`. `genmod.ops.adversarial` holds the table of losses and their sources.

Arithmetic is in float32, in float64 for float64 logits, and so is the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genmod import layout
from genmod.reference.precision import widen


def _value(t: Tensor, curve: str) -> Tensor:
    if curve == "softplus":
        return F.softplus(t, threshold=40.0)  # beyond, ln(1 + e^t) is t to the last bit of float64
    if curve == "relu":
        return torch.relu(t)
    return t.square() if curve == "square" else t


def _slope(t: Tensor, curve: str) -> Tensor:
    if curve == "softplus":
        return torch.sigmoid(t)
    if curve == "relu":
        return torch.where(t <= 0, 0.0, 1.0).to(t.dtype)
    return 2 * t if curve == "square" else torch.ones_like(t)


def _argument(x: Tensor, center: Tensor | None, sign: float, shift: float) -> Tensor:
    # Spares what would do nothing: of a few logits, an operation costs more than all of its arithmetic.
    x = widen(x)
    t = -x if sign == -1 else x
    t = t + shift if shift else t
    return t if center is None else t - center


def _divisor(values: Tensor, reduction: str) -> int:
    return max(values.numel(), 1) if reduction == "mean" else 1


def _reduce(values: Tensor, weight: float, reduction: str) -> Tensor:
    total = values
    if reduction != "none":
        total = values.mean() if reduction == "mean" and values.numel() else values.sum()
    return total if weight == 1 else -total if weight == -1 else weight * total


def adversarial(
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
) -> Tensor:
    """The loss. `terms` are sign, shift and weight of the real side (or of the pair), then those of the fake one."""
    sign, shift, weight, fake_sign, fake_shift, fake_weight = terms
    if paired:
        assert real is not None
        t = _argument(widen(real) - widen(fake), None, sign, shift)
        loss = _reduce(_value(t, curve), weight, reduction)
    else:
        t = _argument(fake, fake_center, fake_sign, fake_shift)
        loss = _reduce(_value(t, curve), fake_weight, reduction)
        if real is not None:
            t = _argument(real, real_center, sign, shift)
            loss = loss + _reduce(_value(t, curve), weight, reduction)
    return loss.contiguous(memory_format=layout.formats_of_pair(real, fake)[0]) if reduction == "none" else loss


def _derivatives(
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
) -> tuple[Tensor | None, Tensor]:
    """Of the reduced loss by each logit."""
    sign, shift, weight, fake_sign, fake_shift, fake_weight = terms
    if paired:
        assert real is not None
        t = _argument(widen(real) - widen(fake), None, sign, shift)
        d_real = _slope(t, curve) * (sign * weight / _divisor(t, reduction))
        return d_real, -d_real
    t = _argument(fake, fake_center, fake_sign, fake_shift)
    d_fake = _slope(t, curve) * (fake_sign * fake_weight / _divisor(t, reduction))
    if real is None:
        return None, d_fake
    t = _argument(real, real_center, sign, shift)
    return _slope(t, curve) * (sign * weight / _divisor(t, reduction)), d_fake


def adversarial_with_gradients(
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its derivatives by `real` (bit 0 of `wanted`) and `fake` (bit 1), in the loss's dtype; one that is
    not wanted is an empty tensor."""
    loss = adversarial(real, fake, real_center, fake_center, curve, terms, paired, reduction)
    d_real, d_fake = _derivatives(real, fake, real_center, fake_center, curve, terms, paired, reduction)
    return loss, *_lay_out(d_real, d_fake, real, fake, loss.dtype, wanted)


def adversarial_backward(
    grad: Tensor,
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    curve: str,
    terms: list[float],
    paired: bool,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits, in their dtype, from that of the loss."""
    d_real, d_fake = _derivatives(real, fake, real_center, fake_center, curve, terms, paired, reduction)
    return _lay_out(None if d_real is None else d_real * grad, d_fake * grad, real, fake, fake.dtype, wanted)


def _lay_out(
    d_real: Tensor | None, d_fake: Tensor, real: Tensor | None, fake: Tensor, dtype: torch.dtype, wanted: int
) -> tuple[Tensor, Tensor]:
    real_form, fake_form = layout.formats_of_pair(real, fake)
    empty = fake.new_empty(0, dtype=dtype)
    return (
        d_real.to(dtype).contiguous(memory_format=real_form) if d_real is not None and wanted & 1 else empty,
        d_fake.to(dtype).contiguous(memory_format=fake_form) if wanted & 2 else fake.new_empty(0, dtype=dtype),
    )
