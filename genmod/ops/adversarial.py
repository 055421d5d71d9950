"""Family `adversarial`: what a critic and a generator play for, and LeCam regularisation, each in one pass.

The public functions check their arguments and look up the constants of the loss; one dispatcher op, `adversarial`,
computes them all. Where gradients will be needed, its twin `adversarial_with_gradients` makes them in the same pass.
The maths is in `genmod.reference.adversarial`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from genmod import _native, backends, layout
from genmod.ops import _checks
from genmod.ops._library import define, differentiate, differentiate_backward
from genmod.ops._tracing import is_traced
from genmod.reference import adversarial as reference

Kind = Literal["non_saturating", "saturating", "hinge", "least_squares", "wasserstein", "relativistic"]
Reduction = Literal["none", "mean", "sum"]
KINDS = ("non_saturating", "saturating", "hinge", "least_squares", "wasserstein", "relativistic")
REDUCTIONS = ("none", "mean", "sum")


class _Loss(NamedTuple):
    """One loss, in the terms of `genmod.reference.adversarial`."""

    curve: str
    terms: list[float]  # sign, shift and weight of the real side or of the pair, then of the fake side
    paired: bool = False


_NOTHING = (0.0, 0.0, 0.0)
_CRITIC = {
    "non_saturating": _Loss("softplus", [-1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
    "saturating": _Loss("softplus", [-1.0, 0.0, 1.0, 1.0, 0.0, 1.0]),
    "hinge": _Loss("relu", [-1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    "least_squares": _Loss("square", [1.0, -1.0, 0.5, 1.0, 0.0, 0.5]),
    "wasserstein": _Loss("linear", [1.0, 0.0, -1.0, 1.0, 0.0, 1.0]),
    "relativistic": _Loss("softplus", [-1.0, 0.0, 1.0, *_NOTHING], paired=True),
}
_GENERATOR = {
    "non_saturating": _Loss("softplus", [*_NOTHING, -1.0, 0.0, 1.0]),
    "saturating": _Loss("softplus", [*_NOTHING, 1.0, 0.0, -1.0]),
    "hinge": _Loss("linear", [*_NOTHING, 1.0, 0.0, -1.0]),
    "least_squares": _Loss("square", [*_NOTHING, 1.0, -1.0, 0.5]),
    "wasserstein": _Loss("linear", [*_NOTHING, 1.0, 0.0, -1.0]),
    "relativistic": _Loss("softplus", [1.0, 0.0, 1.0, *_NOTHING], paired=True),
}
_LECAM = _Loss("square", [1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


def critic_loss(*, real: Tensor, fake: Tensor, kind: Kind = "non_saturating", reduction: Reduction = "mean") -> Tensor:
    r"""What a critic minimises, from its outputs (logits) :math:`r` for real data and :math:`f` for generated data.

    ================  =================================================================  ==============================
    kind              loss, with means over all elements                                 source
    ================  =================================================================  ==============================
    non_saturating    :math:`E\,\zeta(-r) + E\,\zeta(f)`, :math:`\zeta(t) = \ln(1+e^t)`  Goodfellow et al., 2014
    saturating        the same                                                           Goodfellow et al., 2014
    hinge             :math:`E \max(1 - r, 0) + E \max(1 + f, 0)`                        Lim and Ye, 2017
    least_squares     :math:`\tfrac12 E (r - 1)^2 + \tfrac12 E f^2`                      Mao et al., 2017
    wasserstein       :math:`E f - E r`                                                  Arjovsky et al., 2017
    relativistic      :math:`E\,\zeta(-(r - f))`, sample by sample                       Huang et al. (R3GAN), 2024
    ================  =================================================================  ==============================

    Args:
        real: logits of any shape of rank >= 1, one per sample or a map of patches; float32, float64, bfloat16 or
            float16.
        fake: logits of the same dtype and device. The shape may be another, since each side is averaged over its own
            elements; but not if the loss is "relativistic" or the reduction "none".
        kind: see the table.
        reduction: "mean"; "sum" of both sides; "none", the two sides added element by element. An empty side counts
            as zero.

    Returns:
        The loss in float32, or in float64 for float64 logits.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: an unknown `kind` or `reduction`, devices that differ, or shapes where they have to agree.

    Differentiable twice, in both tensors. Kept for backward: the inputs, and the derivatives that forward made.
    """
    loss = _look_up(_CRITIC, kind, reduction)
    _checks.tensor("real", real)
    _check_fake(fake, real, loss, kind, reduction)
    return _run(real, fake, None, None, loss, reduction)


def generator_loss(
    *, fake: Tensor, real: Tensor | None = None, kind: Kind = "non_saturating", reduction: Reduction = "mean"
) -> Tensor:
    r"""What a generator minimises, from the critic's outputs (logits) :math:`f` for what it made.

    ================  ===========================================================  ====================================
    kind              loss, with means over all elements                           source
    ================  ===========================================================  ====================================
    non_saturating    :math:`E\,\zeta(-f)`, :math:`\zeta(t) = \ln(1+e^t)`          Goodfellow et al., 2014
    saturating        :math:`-E\,\zeta(f)`, the minimax game's own                 Goodfellow et al., 2014
    hinge             :math:`-E f`                                                 Lim and Ye, 2017
    least_squares     :math:`\tfrac12 E (f - 1)^2`                                 Mao et al., 2017
    wasserstein       :math:`-E f`                                                 Arjovsky et al., 2017
    relativistic      :math:`E\,\zeta(-(f - r))`, sample by sample                 Huang et al. (R3GAN), 2024
    ================  ===========================================================  ====================================

    Args:
        fake: logits of any shape of rank >= 1; float32, float64, bfloat16 or float16.
        real: logits :math:`r` for real data, of the shape, dtype and device of `fake`. Only "relativistic" needs them,
            and looks at them.
        kind: see the table.
        reduction: "mean", "sum", or "none" for each element. An empty batch gives zero.

    Returns:
        The loss in float32, or in float64 for float64 logits.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: an unknown `kind` or `reduction`; "relativistic" without `real`, or with one of another shape or
            device.

    Differentiable twice, in both tensors. Kept for backward: the inputs, and the derivatives that forward made.
    """
    loss = _look_up(_GENERATOR, kind, reduction)
    if not loss.paired:
        _checks.tensor("fake", fake)
        return _run(None, fake, None, None, loss, reduction)
    if real is None:
        raise ValueError(f"real: got None with kind {kind!r}, expected the critic's outputs for real data")
    _checks.tensor("real", real)
    _check_fake(fake, real, loss, kind, reduction)
    return _run(real, fake, None, None, loss, reduction)


def lecam(*, real: Tensor, fake: Tensor, real_average: Tensor, fake_average: Tensor) -> Tensor:
    r"""LeCam regularisation of a critic :math:`D`, for training with little data:

    .. math:: E \lVert D(x) - \alpha_F \rVert^2 + E \lVert D(G(z)) - \alpha_R \rVert^2

    with :math:`\alpha_R` and :math:`\alpha_F` moving averages of the critic's outputs for real and for generated data.
    `nn.LeCam` keeps them. The formula is the paper's; its authors' code clips the differences at zero.

    Args:
        real, fake: logits, as in :func:`critic_loss`; their shapes may differ.
        real_average, fake_average: :math:`\alpha_R, \alpha_F`: floating-point tensors of one element.

    Returns:
        The regulariser, a mean over all elements, in float32, or in float64 for float64 logits. An empty side counts as
        zero.

    Raises:
        TypeError: not a tensor, not floating point, or logits whose dtypes differ.
        ValueError: devices that differ, or an average of more than one element.

    Differentiable twice in `real` and `fake`; also in the averages, by way of plain PyTorch. Kept for backward: the
    inputs, and the derivatives that forward made.
    Source: Tseng et al., *Regularizing generative adversarial networks under limited data*, CVPR 2021.
    """
    _checks.tensor("real", real)
    _check_fake(fake, real, _LECAM, "lecam", "mean")
    real_center = _average("fake_average", fake_average, real)
    fake_center = _average("real_average", real_average, real)
    return _run(real, fake, real_center, fake_center, _LECAM, "mean")


# Arguments.


def _look_up(losses: dict[str, _Loss], kind: Any, reduction: Any) -> _Loss:
    _checks.choice("kind", kind, KINDS)
    _checks.choice("reduction", reduction, REDUCTIONS)
    return losses[kind]


def _check_fake(fake: Any, real: Tensor, loss: _Loss, kind: str, reduction: str) -> None:
    _checks.matching("fake", fake, "real", real)
    if (loss.paired or reduction == "none") and fake.shape != real.shape:
        why = f"kind {kind!r}" if loss.paired else "reduction 'none'"
        raise ValueError(f"fake: got shape {tuple(fake.shape)}, expected {tuple(real.shape)}, as real has, for {why}")


def _average(name: str, value: Any, real: Tensor) -> Tensor:
    """A number on the device of the logits, in the precision of the arithmetic."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a tensor")
    if value.dtype not in _checks.FLOATING:
        raise TypeError(f"{name}: got dtype {value.dtype}, expected float32, float64, bfloat16 or float16")
    if value.numel() != 1:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected a tensor of one element")
    if value.device != real.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {real.device}, where real is")
    dtype = _loss_dtype(real)
    return value if value.dim() == 0 and value.dtype == dtype else value.reshape(()).to(dtype)


def _run(
    real: Tensor | None,
    fake: Tensor,
    real_center: Tensor | None,
    fake_center: Tensor | None,
    loss: _Loss,
    reduction: str,
) -> Tensor:
    plain = _needs_plain_torch(real_center, fake_center) or _plain_torch_wins(loss, real, fake)
    call = reference.adversarial if plain else _adversarial
    return call(real, fake, real_center, fake_center, *loss, reduction)


def _needs_plain_torch(*centers: Tensor | None) -> bool:
    # Under torch.func's transforms plain ATen is right in every mode, which an opaque op is not; a compiler fuses it by
    # itself. A gradient for an average is rare enough to go the same way.
    if torch._C._are_functorch_transforms_active() or is_traced():
        return True
    return any(center is not None and center.requires_grad for center in centers)


# Up to how many logits ATen's few operations cost less than one of Python's autograd, on the CPU. Forward and backward
# in float32 on 2 threads, the time of stock PyTorch divided by that of the C++ kernel:
#     logits                        64   4096  16384  57600
#     two sides, softplus         0.92   1.05   1.32   1.52
#     two sides, relu             1.21   1.30   1.44   1.70
#     one side, softplus          0.81   0.92   1.75   1.48
#     one pair, softplus          0.75   1.15   1.43   1.59
#     one side, square            0.77   1.20   1.34   1.58
#     one side, linear            0.44   0.45   0.58   1.00
#     two sides, linear           0.43   0.51   0.76   1.43
# Beyond 16384, moreover, ATen's sums depend on the number of threads.
_FEW_OF_ONE_SIDE = {"softplus": 4096, "square": 1024}
_FEW_OF_A_MEAN = 16384


def _plain_torch_wins(loss: _Loss, real: Tensor | None, fake: Tensor) -> str:
    """Why stock PyTorch is the faster one on this call, or an empty string."""
    if not fake.is_cpu or backends.forced():
        return ""
    if not (torch.is_grad_enabled() and (fake.requires_grad or (real is not None and real.requires_grad))):
        return ""  # the kernel alone is faster at any size
    if not _native.loaded:
        return f"there are no C++ kernels ({_native.reason}), and autograd by ATen is faster than by Python"
    few = _FEW_OF_A_MEAN if loss.curve == "linear" else 0
    if real is None or loss.paired:
        few = max(few, _FEW_OF_ONE_SIDE.get(loss.curve, 0))
    numel = max(fake.numel(), 0 if real is None else real.numel())
    return f"of at most {few} logits, this loss is faster in stock PyTorch" if numel <= few else ""


# Dispatcher ops. Every backend implements exactly these.


def _loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _empty_loss(real: Tensor | None, fake: Tensor, reduction: str) -> Tensor:
    like, dtype = fake if real is None else real, _loss_dtype(fake)
    return layout.empty_output(like, dtype) if reduction == "none" else fake.new_empty((), dtype=dtype)


def _fake(real, fake, real_center, fake_center, curve, terms, paired, reduction):
    return _empty_loss(real, fake, reduction)


def _with_gradients_fake(real, fake, real_center, fake_center, curve, terms, paired, reduction, wanted):
    gradients = layout.empty_pair(real, fake, _loss_dtype(fake), wanted)
    return _empty_loss(real, fake, reduction), *gradients


def _backward_fake(grad, real, fake, real_center, fake_center, curve, terms, paired, reduction, wanted):
    return layout.empty_pair(real, fake, fake.dtype, wanted)


_INPUTS = (
    "Tensor? real, Tensor fake, Tensor? real_center, Tensor? fake_center, str curve, float[] terms, bool paired, "
    "str reduction"
)
define("adversarial", f"adversarial({_INPUTS}) -> Tensor", _fake)
define(
    "adversarial",
    f"adversarial_with_gradients({_INPUTS}, int wanted) -> (Tensor, Tensor, Tensor)",
    _with_gradients_fake,
)
define("adversarial", f"adversarial_backward(Tensor grad, {_INPUTS}, int wanted) -> (Tensor, Tensor)", _backward_fake)


# Autograd. Backward multiplies what forward made by the incoming gradient; only a backward that is itself to be
# differentiated goes back to the logits.

_without_gradients = torch.ops.genmod.adversarial.default
_with_gradients = torch.ops.genmod.adversarial_with_gradients.default


def _forward(ctx, *inputs):
    ctx.wanted = ctx.needs_input_grad[0] | ctx.needs_input_grad[1] << 1
    if inputs[4] == "linear" and inputs[7] != "none":
        return _without_gradients(*inputs), (None, None)  # each derivative is one number
    loss, *derivatives = _with_gradients(*inputs, ctx.wanted)
    return loss, derivatives


def _save(ctx, derivatives, *inputs):
    ctx.save_for_backward(*derivatives, *inputs[:4])  # tensors or None
    ctx.rest = inputs[4:]  # options


def _vjp(ctx, grad):
    wanted = ctx.wanted
    if grad is None or not wanted:
        return (None,) * 8
    *derivatives, real, fake, real_center, fake_center = ctx.saved_tensors
    if torch.is_grad_enabled():
        first, second = _adversarial_backward(grad, real, fake, real_center, fake_center, *ctx.rest, wanted)
    elif derivatives[0] is None:
        _, terms, _, reduction = ctx.rest
        forms = layout.formats_of_pair(real, fake)
        first = _constant_gradient(grad, real, terms[:3], reduction, forms[0]) if wanted & 1 else None
        second = _constant_gradient(grad, fake, terms[3:], reduction, forms[1]) if wanted & 2 else None
    else:
        first, second = (d * grad if wanted >> i & 1 else None for i, d in enumerate(derivatives))
        if fake.dtype != grad.dtype:
            first, second = (d if d is None else d.to(fake.dtype) for d in (first, second))
    return first if wanted & 1 else None, second if wanted & 2 else None, *(None,) * 6


def _constant_gradient(
    grad: Tensor, x: Tensor, terms: list[float], reduction: str, form: torch.memory_format
) -> Tensor:
    sign, _, weight = terms
    slope = sign * weight / (max(x.numel(), 1) if reduction == "mean" else 1)
    return (grad * slope).to(x.dtype).expand(x.shape).contiguous(memory_format=form)


_adversarial = differentiate("adversarial", _save, _vjp, forward=_forward)
_adversarial_backward = differentiate_backward("adversarial_backward")
differentiate_backward("adversarial_with_gradients")


def _critic_because(*, real: Tensor, fake: Tensor, kind: str = "non_saturating", reduction: str = "mean") -> str:
    return _plain_torch_wins(_CRITIC[kind], real, fake)


def _generator_because(
    *, fake: Tensor, real: Tensor | None = None, kind: str = "non_saturating", reduction: str = "mean"
) -> str:
    return _plain_torch_wins(_GENERATOR[kind], real if _GENERATOR[kind].paired else None, fake)


backends.register_public("critic_loss", "adversarial", _critic_because)
backends.register_public("generator_loss", "adversarial", _generator_because)
backends.register_public("lecam", "adversarial")
