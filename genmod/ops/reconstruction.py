"""Family `reconstruction`: likelihoods of a target under a decoder's raw output, and MSE and L1, each in one pass.

The public functions check their arguments and name the parts; one dispatcher op, `reconstruction`, computes them all.
Its schema, fake and autograd stand below them. The maths is in `genmod.reference.reconstruction`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genmod import backends, layout
from genmod.ops import _checks
from genmod.ops._library import define, differentiate, differentiate_backward, differentiate_in_one_pass
from genmod.ops._reductions import (
    REDUCTIONS,
    TO_A_NUMBER,
    Reduction,
    empty_loss,
    mean_over_batch,
    one_pass_is_cheaper,
)
from genmod.ops._tracing import is_traced
from genmod.reference import reconstruction as reference


def bernoulli_nll(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
    validate: bool = False,
) -> Tensor:
    r"""Negative log-likelihood of `target` under Bernoullis given by their logits, in nats:
    :math:`\operatorname{softplus}(x) - x t`, the binary cross-entropy.

    Args:
        output: logits `[B, ...]`, any rank >= 1; float32, float64, bfloat16 or float16.
        target: in [0, 1], of the output's shape; of any of these dtypes, so a float32 image may meet bfloat16 logits.
        weight: factor of each element, of a shape that broadcasts to the output's. Sums are not divided by it.
        mask: boolean (True counts), or numbers that multiply the weight; of a shape that broadcasts too, for example
            `[B, 1, H, W]` for all channels alike. An element of weight or mask zero is not looked at, so it may hold a
            NaN. A mask or weight that is not of the full shape is expanded to a copy.
        reduction: "none", per element; "per_dim", averaged over the batch, `[...]`; "batch", summed per sample, `[B]`;
            "batchmean", that averaged over the batch; "mean", over all elements, with a mask over those it keeps (the
            sum divided by that of the mask); "sum". An empty batch gives zero, and so does an empty mask.
        validate: check that targets are in [0, 1]. Off by default, because it reads them once more, and on a GPU
            waits for the result.

    Returns:
        The loss, in float32, or in float64 for float64 outputs.

    Raises:
        TypeError: not a tensor, or a dtype that is not among these.
        ValueError: shapes or devices that do not fit, an unknown `reduction`, or with `validate` a target outside.

    Differentiable twice in `output`; also in `target`, `weight` and `mask`, by way of plain PyTorch. Kept for backward:
    the inputs; and on the CPU, where a float32 or float64 loss that is one number computes its gradient in the same
    pass, that gradient, until backward takes it. Source: Kingma and Welling, ICLR 2014, appendix C.1.
    """
    if not validate and _better_plain("bernoulli", output, target, weight, mask, reduction):
        return _plain("bernoulli", output, target, reduction)
    _check_pair(output, target, output.shape if isinstance(output, Tensor) else None)
    return _loss("bernoulli", output, target, weight, mask, reduction, support=(0.0, 1.0) if validate else None)


def gaussian_nll(
    output: Tensor,
    target: Tensor,
    *,
    logvar: Tensor | None = None,
    sigma: float | None = None,
    min_logvar: float | None = -30.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
) -> Tensor:
    r"""Negative log-likelihood of `target` under diagonal Gaussians, in nats:
    :math:`\tfrac12\left(\ln 2\pi + \ell + (t - \mu)^2 e^{-\ell}\right)` per element.

    Args:
        output: the mean `[B, ...]` if `logvar` or `sigma` is given; else mean and log-variance in one `[B, 2C, ...]`
            tensor, mean first, whose halves are read in place.
        target: of the mean's shape; of any floating dtype.
        logvar: log-variance: of the mean's shape; or one learned number; or what broadcasts to the mean's shape, as
            `[C, 1, 1]` does, which is expanded to a copy. Of any floating dtype.
        sigma: a fixed standard deviation.
        min_logvar: lower bound of the log-variance, with no gradient below: what keeps a variance that has run to zero
            from an infinite loss. None for no bound.
        weight, mask, reduction: as in :func:`bernoulli_nll`.

    Returns:
        The loss, in float32, or in float64 for float64 outputs.

    Raises:
        TypeError: not a tensor, or a dtype that is not floating point.
        ValueError: shapes or devices that do not fit, an odd number of packed channels, both `logvar` and `sigma`, a
            `sigma` that is not positive, or an unknown `reduction`.

    Differentiable twice in `output` and `logvar`; also in `target`, `weight` and `mask`, by way of plain PyTorch. Kept
    for backward: as :func:`bernoulli_nll`. Source: Kingma and Welling, ICLR 2014, appendix C.2.
    """
    if sigma is not None:
        _checks.number("sigma", sigma, above=0.0)
    fixed = None if sigma is None else 2 * math.log(sigma)
    scale = _scale(output, target, logvar, fixed, ("logvar", "sigma"))
    return _loss("gaussian", output, target, weight, mask, reduction, scale, ("min_logvar", min_logvar))


def laplace_nll(
    output: Tensor,
    target: Tensor,
    *,
    log_scale: Tensor | None = None,
    scale: float | None = None,
    min_log_scale: float | None = -15.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
) -> Tensor:
    r"""Negative log-likelihood of `target` under Laplace distributions, in nats:
    :math:`\ln 2 + s + |t - \mu|\,e^{-s}` per element.

    Args:
        output: the mean `[B, ...]` if `log_scale` or `scale` is given; else mean and log-scale in one `[B, 2C, ...]`
            tensor, mean first.
        target: of the mean's shape; of any floating dtype.
        log_scale: in the forms of :func:`gaussian_nll`'s `logvar`.
        scale: a fixed scale.
        min_log_scale: lower bound of the log-scale, with no gradient below. None for no bound.
        weight, mask, reduction: as in :func:`bernoulli_nll`.

    Returns:
        The loss, in float32, or in float64 for float64 outputs.

    Raises:
        TypeError, ValueError: as :func:`gaussian_nll`.

    Differentiable as :func:`gaussian_nll` is; the gradient by the mean is zero where it equals the target.
    """
    if scale is not None:
        _checks.number("scale", scale, above=0.0)
    fixed = None if scale is None else math.log(scale)
    spread = _scale(output, target, log_scale, fixed, ("log_scale", "scale"))
    return _loss("laplace", output, target, weight, mask, reduction, spread, ("min_log_scale", min_log_scale))


def discretized_logistic_nll(
    output: Tensor,
    target: Tensor,
    *,
    log_scale: Tensor | None = None,
    scale: float | None = None,
    bins: int = 256,
    min_log_scale: float | None = -7.0,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
    validate: bool = False,
) -> Tensor:
    r"""Negative log-likelihood of discrete values under a logistic distribution integrated over their bins, in nats:
    :math:`-\ln\left(\sigma((t - \mu + h)\,e^{-s}) - \sigma((t - \mu - h)\,e^{-s})\right)` with
    :math:`h = 1 / (\text{bins} - 1)`.

    The first bin reaches down to minus infinity, the last one up to infinity, so that the probabilities of the bins sum
    to one. There is no floor under the probability, nor a density in place of it: neither is needed, since nothing
    cancels (see `genmod.reference.reconstruction`), and values and gradients are right far out in the tails too.

    Args:
        output: the mean `[B, ...]` if `log_scale` or `scale` is given; else mean and log-scale in one `[B, 2C, ...]`
            tensor, mean first.
        target: in [-1, 1], where value k of `bins` lies at `2 k / (bins - 1) - 1`; of the mean's shape.
        log_scale: in the forms of :func:`gaussian_nll`'s `logvar`.
        scale: a fixed scale.
        bins: how many values there are; 256 for 8-bit pixels.
        min_log_scale: lower bound of the log-scale, with no gradient below, -7 as in PixelCNN++. None for no bound.
        weight, mask, reduction: as in :func:`bernoulli_nll`.
        validate: check that targets are in [-1, 1]. Off by default, because it reads them once more, and on a GPU
            waits for the result.

    Returns:
        The loss, in float32, or in float64 for float64 outputs. Divided by ln 2 and by the number of sub-pixels it is
        in bits per dimension.

    Raises:
        TypeError, ValueError: as :func:`gaussian_nll`; fewer than two `bins`; with `validate` a target outside.

    Differentiable twice in `output` and `log_scale`; also in `weight` and `mask`, by way of plain PyTorch. Kept for
    backward: as :func:`bernoulli_nll`. Source: Salimans et al., *PixelCNN++*, ICLR 2017, section 2.1.
    """
    if scale is not None:
        _checks.number("scale", scale, above=0.0)
    if isinstance(bins, bool) or not isinstance(bins, int):
        raise TypeError(f"bins: got {type(bins).__name__}, expected an integer")
    if bins < 2:
        raise ValueError(f"bins: got {bins}, expected at least 2")
    fixed = None if scale is None else math.log(scale)
    return _loss(
        "discretized_logistic",
        output,
        target,
        weight,
        mask,
        reduction,
        _scale(output, target, log_scale, fixed, ("log_scale", "scale")),
        ("min_log_scale", min_log_scale),
        bins,
        support=(-1.0, 1.0) if validate else None,
    )


def mse(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Squared error, `(t - x)^2` per element; PyTorch's `mse_loss` is the reduction "mean".

    Args:
        output: `[B, ...]`, any rank >= 1; float32, float64, bfloat16 or float16.
        target: of the output's shape; of any of these dtypes.
        weight, mask, reduction: as in :func:`bernoulli_nll`.

    Returns:
        The loss, in float32, or in float64 for float64 outputs.

    Raises:
        TypeError, ValueError: as :func:`bernoulli_nll`.

    Differentiable twice in `output`; also in `target`, `weight` and `mask`, by way of plain PyTorch.
    """
    if _better_plain("mse", output, target, weight, mask, reduction):
        return _plain("mse", output, target, reduction)
    _check_pair(output, target, output.shape if isinstance(output, Tensor) else None)
    return _loss("mse", output, target, weight, mask, reduction)


def l1(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Absolute error, `|t - x|` per element; PyTorch's `l1_loss` is the reduction "mean".

    Args:
        output: `[B, ...]`, any rank >= 1; float32, float64, bfloat16 or float16.
        target: of the output's shape; of any of these dtypes.
        weight, mask, reduction: as in :func:`bernoulli_nll`.

    Returns:
        The loss, in float32, or in float64 for float64 outputs.

    Raises:
        TypeError, ValueError: as :func:`bernoulli_nll`.

    Differentiable twice in `output` (the gradient is zero where it equals the target, the second derivative zero); also
    in `target`, `weight` and `mask`, by way of plain PyTorch.
    """
    if _better_plain("l1", output, target, weight, mask, reduction):
        return _plain("l1", output, target, reduction)
    _check_pair(output, target, output.shape if isinstance(output, Tensor) else None)
    return _loss("l1", output, target, weight, mask, reduction)


# Arguments.

#: A log-scale as the dispatcher op takes it: packed in the output, a tensor, or fixed.
_Scale = tuple[bool, Tensor | None, float]
_NO_SCALE: _Scale = (False, None, 0.0)


def _check_pair(output: Any, target: Any, shape: Any) -> None:
    _checks.tensor("output", output)
    _checks.of_shape("target", target, "output", output, shape)


def _scale(output: Any, target: Any, tensor: Any, fixed: float | None, names: tuple[str, str]) -> _Scale:
    """Check output, target and log-scale against each other, and say which of its forms the log-scale has."""
    _checks.tensor("output", output)
    if tensor is not None and fixed is not None:
        raise ValueError(f"{names[1]}: got one together with {names[0]}, expected one of the two")
    if tensor is None and fixed is None:
        if output.dim() < 2 or output.shape[1] % 2:
            raise ValueError(
                f"output: got shape {tuple(output.shape)} without {names[0]} or {names[1]}, expected a packed "
                f"[B, 2C, ...] tensor with an even number of channels, or one of the two as well"
            )
        _check_pair(output, target, torch.Size((output.shape[0], output.shape[1] // 2, *output.shape[2:])))
        return True, None, 0.0
    _check_pair(output, target, output.shape)
    if fixed is not None:
        return False, None, fixed
    _checks.broadcastable(names[0], tensor, "output", output, output.shape)
    return False, tensor.reshape(()) if tensor.numel() == 1 else tensor.expand(output.shape), 0.0


def _loss(
    kind: str,
    output: Tensor,
    target: Tensor,
    weight: Any,
    mask: Any,
    reduction: Any,
    scale: _Scale = _NO_SCALE,
    bound: tuple[str, float | None] = ("", None),
    bins: int = 0,
    support: tuple[float, float] | None = None,
) -> Tensor:
    """Check what all kinds share, and call the dispatcher."""
    _checks.choice("reduction", reduction, REDUCTIONS)
    if bound[1] is not None and (isinstance(bound[1], bool) or not isinstance(bound[1], (int, float))):
        raise TypeError(f"{bound[0]}: got {type(bound[1]).__name__}, expected a number or None")
    if weight is not None:
        _checks.broadcastable("weight", weight, "output", output, target.shape)
    if mask is not None:
        _checks.broadcastable("mask", mask, "output", output, target.shape, boolean=True)
    factor = _combined(weight, mask, target.shape)
    if support is not None:
        _check_support(target, factor, *support)
    packed, log_scale, fixed = scale
    bounded = None if bound[1] is None or (log_scale is None and not packed) else float(bound[1])
    over_mask = mask is not None and reduction == "mean"
    inner = "none" if reduction == "per_dim" else "sum" if over_mask else reduction
    inputs = (output, target, log_scale, factor, kind, packed, fixed, bounded, bins, inner)
    if _needs_plain_autograd(target, factor):
        loss = reference.reconstruction(*inputs)
    elif one_pass_is_cheaper(inner, output, log_scale):
        loss = _with_gradient(*inputs)
    else:
        loss = _reconstruction(*inputs)
    if reduction == "per_dim":
        return mean_over_batch(loss)
    return loss / _count(mask, target.numel(), loss.dtype) if over_mask else loss


def _combined(weight: Tensor | None, mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """One factor per element; a mask alone stays boolean, a byte each."""
    if weight is None or mask is None:
        factor = mask if weight is None else weight
    else:
        factor = weight.masked_fill(~mask, 0) if mask.dtype == torch.bool else weight * mask
    return factor if factor is None or factor.shape == shape else factor.expand(shape)


def _count(mask: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """How many elements a mask keeps; 1 for none."""
    return mask.sum(dtype=dtype).mul_(numel // max(mask.numel(), 1)).clamp_(min=1)


def _check_support(target: Tensor, factor: Tensor | None, low: float, high: float) -> None:
    inside = (target >= low) & (target <= high)
    if factor is not None:
        inside |= factor == 0
    if not inside.all():
        worst = target[~inside][0].item()
        raise ValueError(f"target: got {worst}, expected values in [{low:g}, {high:g}]")


def _needs_plain_autograd(target: Tensor, factor: Tensor | None) -> bool:
    # Plain PyTorch runs under torch.func's transforms, where an opaque op is wrong, and for the rare gradient of what a
    # likelihood usually takes as data.
    rare = target.requires_grad or (factor is not None and factor.requires_grad)
    return torch._C._are_functorch_transforms_active() or rare


#: Elements below which PyTorch's own fused losses beat a call of ours on the CPU when a gradient is wanted, as autograd
#: in Python costs about as much as that many elements (measured: 0.6x to 1.05x below, 1x to 1.7x above). PyTorch uses
#: one thread there, so its sums do not depend on how many there are.
_SMALL = 32768
_nn: Any = torch._C._nn  # its stubs do not know that the reduction is a number there
_MEAN, _SUM = 1, 2
_OF_PYTORCH = {
    "bernoulli": lambda output, target, how: torch.binary_cross_entropy_with_logits(output, target, None, None, how),
    "mse": _nn.mse_loss,
    "l1": _nn.l1_loss,
}


#: Looked up once: in a call of forty microseconds each look into a module is a thousandth.
_NO_DIMENSIONS = torch.Size()
_STRIDED, _WIDE, _grad_enabled = torch.strided, (torch.float32, torch.float64), torch.is_grad_enabled
_transforming = torch._C._are_functorch_transforms_active


def _better_plain(kind: str, output: Any, target: Any, weight: Any, mask: Any, reduction: Any) -> bool:
    """Whether the call is valid, and one that PyTorch does faster. Comes before the checks, to save their time."""
    if weight is not None or mask is not None or not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return False
    if not output.requires_grad or output.numel() >= _SMALL or kind not in _OF_PYTORCH or is_traced():
        return False
    shape, dtype = output.shape, output.dtype
    return (
        shape == target.shape != _NO_DIMENSIONS
        and dtype is target.dtype
        and dtype in _WIDE
        and output.is_cpu
        and target.is_cpu
        and output.layout is target.layout is _STRIDED
        and reduction in TO_A_NUMBER
        and _grad_enabled()
        and not target.requires_grad
        and not _transforming()
        and backends.forced() is None
    )


def _plain(kind: str, output: Tensor, target: Tensor, reduction: str) -> Tensor:
    if reduction == "mean" and output.numel():  # PyTorch's mean of nothing is no number
        return _OF_PYTORCH[kind](output, target, _MEAN)
    total = _OF_PYTORCH[kind](output, target, _SUM)
    if reduction == "sum":
        return total
    # By a tensor: autograd wraps a number anew at each step, which takes longer than the division.
    return total / torch.scalar_tensor(max(output.shape[0], 1), dtype=output.dtype, device=output.device)


def _why_plain(kind: str) -> Callable[..., str]:
    """Why a call of the public function of a kind would run plain PyTorch, or nothing, for `genmod.explain`."""

    def why(
        output: Tensor,
        target: Tensor,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
        reduction: Reduction = "batchmean",
        **rest: Any,
    ) -> str:
        for name, data in (("target", target), ("weight", weight), ("mask", mask)):
            if data is not None and data.requires_grad:
                return f"the {name} requires a gradient"
        small = _better_plain(kind, output, target, weight, mask, reduction)
        return f"PyTorch's own loss is faster below {_SMALL} elements" if small else ""

    return why


# The dispatcher ops. Every backend implements exactly these.


def _fake(output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins, reduction):
    return empty_loss(layout.split(output, None)[0] if packed else output, reduction)


def _backward_fake(
    grad, output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins, reduction, wanted
):
    return layout.empty_loss_gradients(output, log_scale, packed, wanted)[0]


def _double_backward_fake(
    grad_output,
    grad_log_scale,
    grad,
    output,
    target,
    log_scale,
    weight,
    kind,
    packed,
    fixed,
    min_log_scale,
    bins,
    reduction,
    wanted,
):
    like = layout.split(output, None)[0] if packed else output
    d_grad = empty_loss(like, reduction) if wanted & 1 else grad.new_empty(0)
    return d_grad, *layout.empty_loss_gradients(output, log_scale, packed, wanted >> 1)[0]


def _with_gradient_fake(output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins, reduction, wanted):
    loss = _fake(output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins, reduction)
    return loss, *layout.empty_loss_gradients(output, log_scale, packed, wanted)[0]


_INPUTS = (
    "Tensor output, Tensor target, Tensor? log_scale, Tensor? weight, str kind, bool packed, float fixed, "
    "float? min_log_scale, int bins, str reduction"
)
define("reconstruction", f"reconstruction({_INPUTS}) -> Tensor", _fake)
define(
    "reconstruction",
    f"reconstruction_with_gradient({_INPUTS}, int wanted) -> (Tensor, Tensor, Tensor)",
    _with_gradient_fake,
)
define(
    "reconstruction",
    f"reconstruction_backward(Tensor grad, {_INPUTS}, int wanted) -> (Tensor, Tensor)",
    _backward_fake,
)
define(
    "reconstruction",
    f"reconstruction_double_backward(Tensor? grad_output, Tensor? grad_log_scale, Tensor grad, {_INPUTS}, int wanted) "
    "-> (Tensor, Tensor, Tensor)",
    _double_backward_fake,
)


def _save(ctx, *inputs):
    ctx.save_for_backward(*inputs[:4])  # tensors or None
    ctx.rest = inputs[4:]  # options


def _vjp(ctx, grad):
    """Recomputes from the inputs."""
    wanted = ctx.needs_input_grad[0] | ctx.needs_input_grad[2] << 1
    if grad is None or not wanted:
        return (None,) * 10
    d_output, d_log_scale = _reconstruction_backward(grad, *ctx.saved_tensors, *ctx.rest, wanted)
    return d_output if wanted & 1 else None, None, d_log_scale if wanted & 2 else None, *(None,) * 7


def _double_backward(ctx, grad_output, grad_log_scale):
    """Of the backward op: gradients of the incoming gradient, output and log-scale; not of target or weight."""
    needed = ctx.needs_input_grad
    wanted = needed[0] | needed[1] << 1 | needed[3] << 2
    if needed[2] or needed[4] or not wanted or (grad_output is None and grad_log_scale is None):
        return None
    grad, *tensors = ctx.saved_tensors[:5]
    made = _reconstruction_double_backward(grad_output, grad_log_scale, grad, *tensors, *ctx.rest[5:-1], wanted)
    d_grad, d_output, d_log_scale = (made[i] if wanted >> i & 1 else None for i in range(3))
    return d_grad, d_output, None, d_log_scale, *(None,) * 8


_reconstruction = differentiate("reconstruction", _save, _vjp)
_reconstruction_backward = differentiate_backward("reconstruction_backward", _double_backward)
_reconstruction_double_backward = differentiate_backward("reconstruction_double_backward")
differentiate_backward("reconstruction_with_gradient")  # differentiable as any op is, though nobody asks for it


_with_gradient = differentiate_in_one_pass("reconstruction_with_gradient", _save, _vjp, positions=(0, 2))

for _public in (bernoulli_nll, gaussian_nll, laplace_nll, discretized_logistic_nll, mse, l1):
    _name = _public.__name__
    backends.register_public(_name, "reconstruction", _why_plain(_name.removesuffix("_nll")))
