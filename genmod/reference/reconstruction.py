r"""Reconstruction losses: the negative log-likelihood of a target under what a decoder put out, per element, in nats.

With the decoder's output :math:`x`, the target :math:`t`, and a log-scale :math:`s` where there is one:

=====================  ================================================================================================
bernoulli              :math:`\operatorname{softplus}(x) - x t`, from logits; :math:`t \in [0, 1]`
gaussian               :math:`\tfrac12\left(\ln 2\pi + s + (t - x)^2 e^{-s}\right)`, :math:`s` the log-**variance**
laplace                :math:`\ln 2 + s + |t - x|\,e^{-s}`
discretized_logistic   :math:`-\ln\left(\sigma(p) - \sigma(m)\right)` with :math:`p, m = (t - x \pm h)\,e^{-s}` and
                       :math:`h = 1/(\text{bins} - 1)`, half of the width of one of the bins that cover [-1, 1]; the
                       first bin reaches down to :math:`-\infty` and the last one up to :math:`\infty`
mse, l1                :math:`(t - x)^2` and :math:`|t - x|`
=====================  ================================================================================================

Sources: Kingma and Welling, *Auto-encoding variational Bayes*, ICLR 2014, appendix C (Bernoulli, Gaussian); Salimans et
al., *PixelCNN++*, ICLR 2017, section 2.1 (discretised logistic). There, differences of sigmoids are floored at 1e-12
and replaced by a density where they round to nothing. Here neither is needed: from
:math:`\sigma(p) - \sigma(m) = \sigma(p)\,\sigma(-m)\,(1 - e^{m - p})` follows

.. math::
    -\ln\left(\sigma(p) - \sigma(m)\right) = \operatorname{softplus}(-p) + \operatorname{softplus}(m)
    - \ln\left(1 - e^{-\delta}\right), \qquad \delta = p - m = 2 h e^{-s},

where nothing cancels, however far the target is from the mean and however small or large the scale.

Each value is multiplied by its weight. An element of weight zero is not looked at: it may hold anything, also a NaN.
Arithmetic and losses are in float32, in float64 if the output is; gradients have the dtype of what they belong to.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.reference import reductions
from genmod.reference.precision import widen


def _parts(
    output: Tensor, log_scale: Tensor | None, weight: Tensor | None, packed: bool, fixed: float
) -> tuple[Tensor, Tensor]:
    """The decoder's mean (or logits) and the log-scale, widened; what has no weight is zero."""
    view, raw = layout.split(output, None) if packed else (output, log_scale)
    mean = widen(view)
    scale = mean.new_full((), fixed) if raw is None else raw.to(mean.dtype)
    if weight is not None:
        mean = mean.masked_fill(weight == 0, 0)
        scale = scale.masked_fill(weight == 0, 0) if scale.dim() else scale
    return mean, scale


def _seen(target: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
    target = target.to(like.dtype)
    return target if weight is None else target.masked_fill(weight == 0, 0)


def _values(kind: str, x: Tensor, t: Tensor, s: Tensor, bins: int) -> Tensor:
    """The table at the top of this file."""
    if kind == "bernoulli":
        return (1 - t) * x - F.logsigmoid(x)
    difference = t - x
    if kind == "mse":
        return difference.square()
    if kind == "l1":
        return difference.abs()
    if kind == "gaussian":
        return 0.5 * (math.log(2 * math.pi) + s + difference.square() * (-s).exp())
    if kind == "laplace":
        return math.log(2) + s + difference.abs() * (-s).exp()
    half = 1 / (bins - 1)
    p, m = (difference + half) * (-s).exp(), (difference - half) * (-s).exp()
    below, above = -F.logsigmoid(p), -F.logsigmoid(-m)
    inner = below + above - _log_bin(s, half)
    return torch.where(t < half - 1, below, torch.where(t > 1 - half, above, inner))


def _log_bin(s: Tensor, half: float) -> Tensor:
    """:math:`\\ln(1 - e^{-\\delta})`; a small delta by way of its logarithm, which is known, and never underflows."""
    delta = 2 * half * (-s).exp()
    small, large = delta.clamp(1e-30, 1), delta.clamp(min=1)
    of_small = math.log(2 * half) - s + (-torch.expm1(-small) / small).log()
    return torch.where(delta < 1, of_small, (-torch.expm1(-large)).log())


def _derivatives(kind: str, x: Tensor, t: Tensor, s: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Of :func:`_values` by output and log-scale. Each is differentiable again."""
    if kind == "bernoulli":
        return torch.sigmoid(x) - t, torch.zeros_like(x)
    difference = t - x
    if kind == "mse":
        return -2 * difference, torch.zeros_like(x)
    if kind == "l1":
        return -_sign(difference), torch.zeros_like(x)
    precision = (-s).exp()
    if kind == "gaussian":
        return -difference * precision, 0.5 - 0.5 * difference.square() * precision
    if kind == "laplace":
        return -_sign(difference) * precision, 1 - difference.abs() * precision
    half = 1 / (bins - 1)
    p, m = (difference + half) * precision, (difference - half) * precision
    first, last = t < half - 1, t > 1 - half
    zero = torch.zeros_like(p)
    below = torch.where(last, zero, torch.sigmoid(-p))  # -d/dp
    above = torch.where(first, zero, torch.sigmoid(m))  # d/dm
    widening = torch.where(first | last, zero, _over_expm1(2 * half * precision))
    return (below - above) * precision, p * below - m * above + widening


def _second_derivatives(kind: str, x: Tensor, t: Tensor, s: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of :func:`_values`: by output twice, by output and log-scale, and by log-scale twice."""
    zero = torch.zeros_like(x)
    if kind == "bernoulli":
        return torch.sigmoid(x) * torch.sigmoid(-x), zero, zero
    if kind == "mse":
        return torch.full_like(x, 2), zero, zero
    if kind == "l1":
        return zero, zero, zero
    difference, precision = t - x, (-s).exp()
    if kind == "gaussian":
        scaled = difference * precision
        return precision.expand_as(x), scaled, 0.5 * difference * scaled
    if kind == "laplace":
        scaled = _sign(difference) * precision
        return zero, scaled, difference * scaled
    half = 1 / (bins - 1)
    p, m = (difference + half) * precision, (difference - half) * precision
    first, last = t < half - 1, t > 1 - half
    below, above = torch.where(last, zero, torch.sigmoid(-p)), torch.where(first, zero, torch.sigmoid(m))
    # Of either sigmoid, the slope.
    at_p, at_m = below * torch.sigmoid(p), above * torch.sigmoid(-m)
    delta = 2 * half * precision
    widening = torch.where(first | last, zero, _over_expm1(delta))
    # Far out a slope is zero before its factor is infinite, so that comes last.
    return (
        (at_p + at_m) * precision * precision,
        (p * at_p + m * at_m - (below - above)) * precision,
        p * (p * at_p - below) + m * (m * at_m + above) + widening * (widening + (delta - 1)),
    )


def _sign(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x, x.sign())  # torch's own is zero there, and the NaN would be gone


def _over_expm1(delta: Tensor) -> Tensor:
    """:math:`\\delta / (e^\\delta - 1)` for positive delta, without overflow at large and without 0/0 at small ones."""
    square = delta.square().clamp(max=1)
    series = 1 - delta / 2 + square / 12 - square.square() / 720
    safe = delta.clamp(1e-3, 1e3)
    return torch.where(delta < 1e-3, series, safe * (-safe).exp() / -torch.expm1(-safe))


def _weigh(values: Tensor, weight: Tensor | None) -> Tensor:
    return values if weight is None else values * weight.to(values.dtype)


def reconstruction(
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
) -> Tensor:
    """The loss. The log-scale is the second half of a `packed` output, else `log_scale` (of the output's shape, or one
    number in a 0-d tensor), else `fixed`; it is raised to `min_log_scale` first, if that is given."""
    x, s = _parts(output, log_scale, weight, packed, fixed)
    bounded = s if min_log_scale is None else s.clamp(min=min_log_scale)
    values = _weigh(_values(kind, x, _seen(target, weight, x), bounded, bins), weight)
    if reduction != "none":
        return reductions.reduce(values, reduction)
    return values.contiguous(memory_format=layout.memory_format_of(layout.split(output, None)[0] if packed else output))


def reconstruction_backward(
    grad: Tensor,
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of output and log-scale. Bit i of `wanted` asks for gradient i; a packed output's is one gradient."""
    x, s = _parts(output, log_scale, weight, packed, fixed)
    bounded = s if min_log_scale is None else s.clamp(min=min_log_scale)
    by_output, by_scale = _derivatives(kind, x, _seen(target, weight, x), bounded, bins)
    g = _weigh(reductions.spread(grad, x, reduction), weight)
    d_output, d_scale = g * by_output, g * by_scale
    if min_log_scale is not None:
        d_scale = torch.where(s < min_log_scale, 0.0, d_scale)  # also where the loss is infinite
    return _as_they_belong(d_output, d_scale, output, log_scale, packed, wanted)


def _as_they_belong(
    d_output: Tensor, d_scale: Tensor, output: Tensor, log_scale: Tensor | None, packed: bool, wanted: int
) -> tuple[Tensor, Tensor]:
    """Gradients per element as those of output and log-scale, of which bit i of `wanted` asks for number i."""
    if packed:
        d_output = torch.cat((d_output, d_scale), 1)
    form = layout.memory_format_of(layout.split(output, None)[0] if packed else output)
    first, second = output.new_empty(0), output.new_empty(0)
    if wanted & 1:
        first = d_output.to(output.dtype).contiguous(memory_format=form)
    if wanted & 2 and log_scale is not None:
        second = (
            d_scale.to(log_scale.dtype).contiguous(memory_format=form)
            if log_scale.dim()
            else d_scale.sum().to(log_scale.dtype)
        )
    return first, second


def reconstruction_double_backward(
    grad_output: Tensor | None,
    grad_log_scale: Tensor | None,
    grad: Tensor,
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `grad`, output and log-scale from those of what :func:`reconstruction_backward` returned, of which
    either may be None. Bit i of `wanted` asks for gradient i."""
    x, s = _parts(output, log_scale, weight, packed, fixed)
    t, bounded = _seen(target, weight, x), s if min_log_scale is None else s.clamp(min=min_log_scale)
    u = v = torch.zeros_like(x)
    if grad_output is not None and packed:
        u, v = (half.to(x.dtype) for half in layout.split(grad_output, None))
    elif grad_output is not None:
        u = grad_output.to(x.dtype)
    if grad_log_scale is not None:
        v = grad_log_scale.to(x.dtype).expand_as(x)
    if min_log_scale is not None:
        v = torch.where(s < min_log_scale, 0.0, v)
    by_output, by_scale = _derivatives(kind, x, t, bounded, bins)
    twice, mixed, by_scale_twice = _second_derivatives(kind, x, t, bounded, bins)
    g = _weigh(reductions.spread(grad, x, reduction), weight)
    d_output, d_scale = g * (u * twice + v * mixed), g * (u * mixed + v * by_scale_twice)
    if min_log_scale is not None:
        d_scale = torch.where(s < min_log_scale, 0.0, d_scale)
    d_grad = grad.new_empty(0)
    if wanted & 1:
        d_grad = _weigh(u * by_output + v * by_scale, weight)
        form = layout.memory_format_of(layout.split(output, None)[0] if packed else output)
        d_grad = d_grad.contiguous(memory_format=form) if reduction == "none" else reductions.reduce(d_grad, reduction)
    return d_grad, *_as_they_belong(d_output, d_scale, output, log_scale, packed, wanted >> 1)


def reconstruction_with_gradient(
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss that is one number, and its gradients, those of :func:`reconstruction_backward` for an incoming one."""
    inputs = (output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins, reduction)
    loss = reconstruction(*inputs)
    return loss, *reconstruction_backward(torch.ones_like(loss), *inputs, wanted)
