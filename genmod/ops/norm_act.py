"""Family `norm_act`: normalisation and activation in one pass, with what decoders put around them.

The public functions check their arguments, hand small calls on the CPU to stock PyTorch, and call the dispatcher for
the rest; schemas, fakes and autograd stand below them. The maths is in `genmod.reference.norm_act`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import backends, layout
from genmod.ops import _checks, _stock_norms
from genmod.ops._library import define, differentiate, differentiate_backward
from genmod.ops._tracing import are_differentiated
from genmod.ops._wanted import arrived, only_wanted, wanted_bits
from genmod.reference import activation as activations
from genmod.reference import norm_act as reference

Activation = Literal["identity", "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"]
ACTIVATIONS = activations.NAMES


def group_norm_act(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = "silu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    x_bias: Tensor | None = None,
    return_sum: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Group norm and an activation, with a residual added before and a scale and shift per sample after, if given.

    With :math:`s = x + b + r`, its mean :math:`\mu` and biased variance :math:`v` over each group of channels of a
    sample,

    .. math::
        y = \operatorname{act}\left(\left(\frac{s - \mu}{\sqrt{v + \epsilon}}\,\gamma + \beta\right)(1 + \text{scale})
        + \text{shift}\right)

    Args:
        x: `[N, C, ...]`, rank 2 to 5; float32, float64, bfloat16 or float16.
        num_groups: a divisor of C. C groups make it instance norm, one makes it layer norm over all but the batch.
        weight, bias: :math:`\gamma` and :math:`\beta`, `[C]`, each optional; in the dtype of `x`, or in float32 beside
            a half-precision `x`, as all parameters here.
        eps: added to the variance; positive.
        activation: "identity", "relu", "leaky_relu", "silu", "gelu" (the exact one), "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".
        residual: :math:`r`, with the shape and dtype of `x`.
        scale, shift: `[N, C]`, each optional. The convention is that of ADM and diffusers, `1 + scale`: a scale of zero
            changes nothing.
        x_bias: :math:`b`, `[C]`, optional: the bias of the convolution that made `x`. PyTorch adds it behind cuDNN in a
            pass of its own, which takes as long as some of the convolutions; here it is added on the way.
        return_sum: whether to return :math:`s` without a residual too.

    Returns:
        `y`, with the shape, dtype and memory format of `x`; with a residual or `return_sum` `(y, s)`.

    Raises:
        TypeError: not a tensor, not floating point, dtypes that differ, or an option of the wrong type.
        ValueError: a rank outside 2 to 5, channels that `num_groups` does not divide, a shape or device that does not
            fit, an unknown `activation`, or an `eps` that is not positive.

    Differentiable twice, in `x`, `weight`, `bias`, `residual`, `scale`, `shift` and `x_bias`. Kept for backward: `s`
    (which is `x` without a residual and `x_bias`) and two numbers per group. Computed in float32, in float64 for
    float64; the variance is that of the differences from the mean.
    Sources: Wu and He, *Group normalization*, ECCV 2018; Dhariwal and Nichol, *Diffusion models beat GANs on image
    synthesis*, NeurIPS 2021.
    """
    if residual is None and scale is None and shift is None and x_bias is None and not return_sum:
        y = _stock_norms.group_norm(x, num_groups, weight, bias, eps, activation, negative_slope)
        if y is not None:
            return y
    _check_input(x)
    channels = x.shape[1]
    if isinstance(num_groups, bool) or not isinstance(num_groups, int):
        raise TypeError(f"num_groups: got {type(num_groups).__name__}, expected an integer")
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups: got {num_groups}, expected a divisor of the {channels} channels of x")
    _check_optional(x, (channels,), weight=weight, bias=bias, x_bias=x_bias)
    _check_optional(x, (x.shape[0], channels), scale=scale, shift=shift)
    check_options(x, residual, eps, activation, negative_slope)
    if x_bias is not None:
        tensors = (x, x_bias, residual, weight, bias, scale, shift)
        if not (are_differentiated(*tensors) or torch._C._are_functorch_transforms_active()):
            options = num_groups, float(eps), activation, float(negative_slope)
            wants_sum = return_sum or residual is not None
            y, total, _, _ = _group_norm_act_biased(*tensors, *options, wants_sum)
            return (y, total) if wants_sum else y
        x = bias_act(x, x_bias, activation="identity")
    if _stock_norms.is_faster(x, of_batch=False) and _stock_norms.takes(x, weight, bias):
        total = x if residual is None else x + residual
        y = _stock_norms.group_norm_scaled(total, num_groups, weight, bias, eps, scale, shift)
        y = activations.apply(activation, y, negative_slope)
        if y.dtype is not x.dtype:  # float32 parameters would make it float32
            y = y.to(x.dtype)
        return y if residual is None and not return_sum else (y, total)
    call = reference.group_norm_act if torch._C._are_functorch_transforms_active() else _group_norm_act
    y, total, _, _ = call(
        x, residual, weight, bias, scale, shift, num_groups, float(eps), activation, float(negative_slope)
    )
    if residual is None:
        return (y, x) if return_sum else y
    return y, total


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: Activation = "relu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Batch norm and an activation, with a residual added before, if given. The arguments are `F.batch_norm`'s.

    With :math:`s = x + r`, and its mean :math:`\mu` and biased variance :math:`v` over all but the channels, or in
    evaluation the running ones,

    .. math::
        y = \operatorname{act}\left(\frac{s - \mu}{\sqrt{v + \epsilon}}\,\gamma + \beta\right)

    In training the running statistics, if given, move to the batch's by `momentum`, in place, the variance by its
    unbiased estimate, exactly as in torch. An empty batch leaves them alone.

    Args:
        x: `[N, C, ...]`, rank 2 to 5; float32, float64, bfloat16 or float16.
        running_mean, running_var: `[C]`, both or neither; needed in evaluation.
        weight, bias: :math:`\gamma` and :math:`\beta`, `[C]`, each optional; in the dtype of `x`, or in float32 beside
            a half-precision `x`, as the running statistics.
        training: whether to use the batch's statistics.
        momentum: weight of the batch in the running statistics, from 0 to 1.
        eps, activation, negative_slope, residual: as in :func:`group_norm_act`.

    Returns:
        `y`, with the shape, dtype and memory format of `x`; with a residual `(y, s)`.

    Raises:
        TypeError: not a tensor, not floating point, dtypes that differ, or an option of the wrong type.
        ValueError: a rank outside 2 to 5, a shape or device that does not fit, one running statistic without the other,
            evaluation without them, training on one value per channel, an unknown `activation`, an `eps` that is not
            positive, or a `momentum` outside [0, 1].

    Differentiable twice, in `x`, `weight`, `bias` and `residual`. Kept for backward: `s` (which is `x` without a
    residual) and two numbers per channel. Computed in float32, in float64 for float64.
    Source: Ioffe and Szegedy, *Batch normalization*, ICML 2015.
    """
    if residual is None:
        norm = running_mean, running_var, weight, bias, training, momentum, eps
        small = _stock_norms.batch_norm(x, *norm, activation, negative_slope)
        if small is not None:
            return small
    _check_input(x)
    check_batch_norm(x, x.shape, running_mean, running_var, training, momentum, weight=weight, bias=bias)
    check_options(x, residual, eps, activation, negative_slope)
    options = training, momentum, eps, activation, negative_slope
    y, total = checked_batch_norm_act(x, running_mean, running_var, weight, bias, *options, residual)
    return y if residual is None else (y, total)


def checked_batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    negative_slope: float,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`y` and `s` of :func:`batch_norm_act`. Arguments are taken as checked."""
    if _stock_norms.is_faster(x, of_batch=True) and _stock_norms.takes(x, weight, bias, running_mean, running_var):
        total = x if residual is None else x + residual
        dense = None if weight is None else weight.contiguous()  # torch's backward takes it as dense
        y = F.batch_norm(total, running_mean, running_var, dense, bias, training, momentum, eps)
        return activations.apply(activation, y, negative_slope), total
    call = reference.batch_norm_act if torch._C._are_functorch_transforms_active() else _batch_norm_act
    running = (None, None) if training else (running_mean, running_var)
    y, total, mean, var = call(
        x, residual, *running, weight, bias, bool(training), float(eps), activation, float(negative_slope)
    )
    if training and running_mean is not None and running_var is not None:
        _move_running_statistics(running_mean, running_var, mean, var, float(momentum), _per_channel_count(x.shape))
    return y, total


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation,
    negative_slope: float = 0.01,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    r"""Bias, activation, gain and clamp: :math:`y = \operatorname{clamp}(\text{gain}\cdot\operatorname{act}(x+\beta))`.

    Args:
        x: `[N, C, ...]`, rank 2 to 5; float32, float64, bfloat16 or float16.
        bias: :math:`\beta`, `[C]`, along dimension 1, optional; in the dtype of `x`, or in float32 beside a
            half-precision `x`.
        activation, negative_slope: as in :func:`group_norm_act`. StyleGAN's is "leaky_relu" with a slope of 0.2 and a
            gain of :math:`\sqrt2`.
        gain: multiplies the activation.
        clamp: bound of the magnitude, applied last; no gradient beyond it. None: no bound.

    Returns:
        `y`, with the shape, dtype and memory format of `x`.

    Raises:
        TypeError: not a tensor, not floating point, dtypes that differ, or an option of the wrong type.
        ValueError: a rank outside 2 to 5, a shape or device that does not fit, an unknown `activation`, a `gain` that
            is not finite, or a negative `clamp`.

    Differentiable twice, in `x` and `bias`; the second derivative of a piecewise linear activation is None, not zeros.
    Kept for backward: `x` and `bias`.
    Source: Karras et al., *Analyzing and improving the image quality of StyleGAN*, CVPR 2020, appendix B.
    """
    _check_input(x)
    _check_optional(x, (x.shape[1],), bias=bias)
    _check_activation(activation, negative_slope)
    _checks.number("gain", gain)
    if clamp is not None:
        _checks.nonnegative("clamp", clamp)
    call = reference.bias_act if torch._C._are_functorch_transforms_active() else _bias_act
    bound = math.inf if clamp is None else float(clamp)
    return call(x, bias, activation, float(negative_slope), float(gain), bound)


# Arguments.


def _check_input(x: Any) -> None:
    _checks.tensor("x", x)
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"x: got rank {x.dim()}, shape {tuple(x.shape)}, expected [N, C, ...] of rank 2 to 5")
    if x.shape[1] == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one channel")


def _check_optional(x: Tensor, shape: tuple[int, ...], **parameters: Any) -> None:
    dtype, device = x.dtype, x.device
    for name, value in parameters.items():
        if value is None:
            continue
        # What nearly always is, to save the calls.
        plain = isinstance(value, Tensor) and value.layout is torch.strided and value.device == device
        if not (plain and value.dtype is dtype and value.shape == shape):
            _checks.parameter(name, value, x, shape)


def check_batch_norm(
    x: Tensor,
    shape: tuple[int, ...],
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: Any,
    **parameters: Any,
) -> None:
    """What is particular to batch norm, of something of a shape, with the dtype and device of `x`."""
    if (running_mean is None) != (running_var is None):
        lone, missing = ("running_var", "running_mean") if running_mean is None else ("running_mean", "running_var")
        raise ValueError(f"{missing}: got None with {lone} given, expected both or neither")
    if running_mean is None and not training:
        raise ValueError("running_mean, running_var: got None, expected both in evaluation (training=False)")
    _check_optional(x, (shape[1],), running_mean=running_mean, running_var=running_var, **parameters)
    _checks.nonnegative("momentum", momentum)
    if momentum > 1:
        raise ValueError(f"momentum: got {momentum}, expected a number from 0 to 1")
    if training and _per_channel_count(shape) == 1:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected more than one value per channel in training")


def check_options(x: Tensor, residual: Any, eps: Any, activation: Any, negative_slope: Any) -> None:
    """What every normalisation is asked for besides."""
    if residual is not None:
        _checks.like("residual", residual, "x", x, x.shape)
    _checks.number("eps", eps, above=0.0)
    _check_activation(activation, negative_slope)


def _check_activation(activation: Any, negative_slope: Any) -> None:
    _checks.choice("activation", activation, ACTIVATIONS)
    _checks.number("negative_slope", negative_slope)


def _per_channel_count(shape: tuple[int, ...]) -> int:
    return shape[0] * math.prod(shape[2:])


def _move_running_statistics(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float, count: int
) -> None:
    if count == 0:
        return
    # Buffers have no gradient to keep off, and to do so costs as much as to move one.
    learned = running_mean.requires_grad or running_var.requires_grad
    with torch.no_grad() if learned else contextlib.nullcontext():
        if running_mean.dtype == mean.dtype:
            torch._foreach_lerp_([running_mean, running_var], [mean, var], momentum)
            running_var.add_(var, alpha=momentum / (count - 1))  # what an unbiased variance has beyond the batch's
        else:  # half precision: rounded once
            running_mean.copy_(running_mean.to(mean.dtype).lerp_(mean, momentum))
            unbiased = momentum * count / (count - 1)
            running_var.copy_(running_var.to(var.dtype).mul_(1 - momentum).add_(var, alpha=unbiased))


# Dispatcher ops. Every backend implements exactly these.
#
# Outputs: y; s = x + residual, an empty tensor without a residual; the statistics, in the accumulation type (float32,
# float64 for float64), which are not differentiable. A backward's x is what was normalised, which is s.


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _sum_like(x: Tensor, residual: Tensor | None) -> Tensor:
    return x.new_empty(0) if residual is None else layout.empty_output(x)


def _gradients_like(x: Tensor, parameters: tuple[Tensor | None, ...], wanted: int) -> tuple[Tensor, ...]:
    grad_x = layout.empty_output(x) if wanted & 1 else x.new_empty(0)
    rest = (
        x.new_empty(0) if p is None or not wanted >> i & 1 else torch.empty(p.shape, dtype=p.dtype, device=p.device)
        for i, p in enumerate(parameters, 1)
    )
    return grad_x, *rest


def _group_norm_act_fake(x, residual, weight, bias, scale, shift, num_groups, eps, activation, negative_slope):
    statistics = (x.new_empty((x.shape[0], num_groups), dtype=_wide_dtype(x)) for _ in range(2))
    return layout.empty_output(x), _sum_like(x, residual), *statistics


def _group_norm_act_biased_fake(x, x_bias, residual, weight, bias, scale, shift, num_groups, *options):
    statistics = (x.new_empty((x.shape[0], num_groups), dtype=_wide_dtype(x)) for _ in range(2))
    return layout.empty_output(x), layout.empty_output(x) if options[-1] else x.new_empty(0), *statistics


def _group_norm_act_backward_fake(
    grad, grad_sum, x, weight, bias, scale, shift, mean, rstd, num_groups, eps, activation, negative_slope, wanted
):
    return _gradients_like(x, (weight, bias, scale, shift), wanted)


def _batch_norm_act_fake(
    x, residual, running_mean, running_var, weight, bias, training, eps, activation, negative_slope
):
    statistics = (x.new_empty(x.shape[1] if training else 0, dtype=_wide_dtype(x)) for _ in range(2))
    return layout.empty_output(x), _sum_like(x, residual), *statistics


def _batch_norm_act_backward_fake(
    grad, grad_sum, x, weight, bias, mean, var, training, eps, activation, negative_slope, wanted
):
    return _gradients_like(x, (weight, bias), wanted)


def _norm_act_double_backward_fake(
    to_x, to_weight, to_bias, to_scale, to_shift, grad, x, weight, bias, scale, shift, *options
):
    wanted = options[-1]
    d_grad = layout.empty_output(x) if wanted & 1 else x.new_empty(0)
    return d_grad, *_gradients_like(x, (weight, bias, scale, shift), wanted >> 1)


def _bias_act_fake(x, bias, activation, negative_slope, gain, clamp):
    return layout.empty_output(x)


def _bias_act_backward_fake(grad, x, bias, activation, negative_slope, gain, clamp, wanted):
    return _gradients_like(x, (bias,), wanted)


define(
    "norm_act",
    "group_norm_act(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
    "int num_groups, float eps, str activation, float negative_slope) -> (Tensor, Tensor, Tensor, Tensor)",
    _group_norm_act_fake,
)
define(
    "norm_act",
    "group_norm_act_biased(Tensor x, Tensor x_bias, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? scale, "
    "Tensor? shift, int num_groups, float eps, str activation, float negative_slope, bool keep_sum) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _group_norm_act_biased_fake,
)
define(
    "norm_act",
    "group_norm_act_backward(Tensor grad, Tensor? grad_sum, Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, "
    "Tensor? shift, Tensor mean, Tensor rstd, int num_groups, float eps, str activation, float negative_slope, "
    "int wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _group_norm_act_backward_fake,
)
define(
    "norm_act",
    "batch_norm_act(Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var, Tensor? weight, "
    "Tensor? bias, bool training, float eps, str activation, float negative_slope) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _batch_norm_act_fake,
)
define(
    "norm_act",
    "batch_norm_act_backward(Tensor grad, Tensor? grad_sum, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, "
    "Tensor var, bool training, float eps, str activation, float negative_slope, int wanted) "
    "-> (Tensor, Tensor, Tensor)",
    _batch_norm_act_backward_fake,
)
define(
    "norm_act",
    "norm_act_double_backward(Tensor? to_x, Tensor? to_weight, Tensor? to_bias, Tensor? to_scale, Tensor? to_shift, "
    "Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor mean, Tensor rstd, "
    "str over, int num_groups, float eps, str activation, float negative_slope, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _norm_act_double_backward_fake,
)
define(
    "norm_act",
    "bias_act(Tensor x, Tensor? bias, str activation, float negative_slope, float gain, float clamp) -> Tensor",
    _bias_act_fake,
)
define(
    "norm_act",
    "bias_act_backward(Tensor grad, Tensor x, Tensor? bias, str activation, float negative_slope, float gain, "
    "float clamp, int wanted) -> (Tensor, Tensor)",
    _bias_act_backward_fake,
)


# Autograd: a forward op saves what it normalised, the parameters and the statistics, and hands them to its backward op,
# which is differentiable itself. x and the residual have one gradient.


def _group_norm_save(ctx, outputs, x, residual, weight, bias, scale, shift, *rest):
    _, total, mean, rstd = outputs
    ctx.mark_non_differentiable(mean, rstd, *(() if residual is not None else (total,)))
    ctx.save_for_backward(x if residual is None else total, weight, bias, scale, shift, mean, rstd)
    ctx.rest = rest


def _group_norm_vjp(ctx, grad, grad_sum, *_):
    need_x, need_residual, *need = ctx.needs_input_grad[:6]
    wanted = wanted_bits((need_x or need_residual, *need))
    grads: list[Tensor | None] = [grad_sum, None, None, None, None]
    if grad is not None and wanted:
        grads = only_wanted(wanted, _group_norm_act_backward(grad, grad_sum, *ctx.saved_tensors, *ctx.rest, wanted))
    return grads[0] if need_x else None, grads[0] if need_residual else None, *grads[1:], *(None,) * 4


def _biased_save(ctx, outputs, x, x_bias, residual, weight, bias, scale, shift, *rest):
    _, total, mean, rstd = outputs
    *ctx.rest, kept = rest
    ctx.mark_non_differentiable(mean, rstd, *(() if kept else (total,)))
    ctx.save_for_backward(x, x_bias, residual, weight, bias, scale, shift, mean, rstd)


def _biased_vjp(ctx, grad, grad_sum, *_):
    """That of group norm for the sum, which is made again: public calls that need gradients make it beforehand."""
    x, x_bias, residual, *others = ctx.saved_tensors
    need_x, need_x_bias, need_residual, *need = ctx.needs_input_grad[:7]
    wanted = wanted_bits((need_x or need_x_bias or need_residual, *need))
    grads: list[Tensor | None] = [grad_sum, None, None, None, None]
    if grad is not None and wanted:
        total = reference.biased_sum(x, x_bias, residual)
        grads = only_wanted(wanted, _group_norm_act_backward(grad, grad_sum, total, *others, *ctx.rest, wanted))
    of_sum, of_bias = grads[0], None
    if need_x_bias and of_sum is not None:
        of_bias = of_sum.to(_wide_dtype(x)).sum([d for d in range(x.dim()) if d != 1]).to(x_bias.dtype)
    return of_sum if need_x else None, of_bias, of_sum if need_residual else None, *grads[1:], *(None,) * 5


def _batch_norm_save(ctx, outputs, x, residual, running_mean, running_var, weight, bias, training, *rest):
    _, total, mean, var = outputs
    ctx.mark_non_differentiable(mean, var, *(() if residual is not None else (total,)))
    statistics = (mean, var) if training else (running_mean, running_var)
    ctx.save_for_backward(x if residual is None else total, weight, bias, *statistics)
    ctx.rest = training, *rest


def _batch_norm_vjp(ctx, grad, grad_sum, *_):
    need_x, need_residual, _, _, *need = ctx.needs_input_grad[:6]
    wanted = wanted_bits((need_x or need_residual, *need))
    grads: list[Tensor | None] = [grad_sum, None, None]
    if grad is not None and wanted:
        grads = only_wanted(wanted, _batch_norm_act_backward(grad, grad_sum, *ctx.saved_tensors, *ctx.rest, wanted))
    first = (grads[0] if need_x else None, grads[0] if need_residual else None)
    return *first, None, None, *grads[1:], *(None,) * 4


def _bias_act_save(ctx, x, bias, *rest):
    ctx.save_for_backward(x, bias)
    ctx.rest = rest


def _bias_act_vjp(ctx, grad):
    wanted = wanted_bits(ctx.needs_input_grad[:2])
    if grad is None or not wanted:
        return (None,) * 6
    return *only_wanted(wanted, _bias_act_backward(grad, *ctx.saved_tensors, *ctx.rest, wanted)), *(None,) * 4


def _bias_act_double_backward(ctx, to_x, to_bias):
    """Of a piecewise linear activation the backward op multiplies by what its gradient does not change: the gradient of
    that is what it does itself, to what arrives."""
    if ctx.rest[3] not in ("identity", "relu", "leaky_relu"):
        return None
    _, x, bias, *_ = ctx.saved_tensors
    arriving = to_x
    if to_bias is not None:
        along = to_bias.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))
        arriving = along.expand(x.shape) if to_x is None else to_x + along
    if arriving is None or not ctx.needs_input_grad[0]:
        return (None,) * 8
    d_grad, _ = _bias_act_backward(arriving, x, bias, *ctx.rest[3:7], 1)
    return d_grad, *(None,) * 7


def _double_backward(arriving, grad, x, parameters, statistics, options, needed):
    """Gradients of `grad`, x and the parameters from what arrives at those that a backward op returned, or None for
    each where nothing does."""
    came = arrived(arriving, (x, *parameters))
    wanted = wanted_bits(needed)
    if not wanted or all(a is None for a in came):
        return [None] * 6
    return only_wanted(wanted, _norm_act_double_backward(*came, grad, x, *parameters, *statistics, *options, wanted))


def _group_norm_double_vjp(ctx, *arriving):
    grad, _, x, *parameters, mean, rstd = ctx.saved_tensors[:9]
    need_grad, need_sum, *needs = ctx.needs_input_grad[:7]
    num_groups, *rest = ctx.rest[9:-1]
    options = ("group", num_groups, *rest)
    made = _double_backward(arriving, grad, x, parameters, (mean, rstd), options, (need_grad, *needs))
    return made[0], arriving[0] if need_sum else None, *made[1:], *(None,) * 7


def _batch_norm_double_vjp(ctx, *arriving):
    grad, _, x, weight, bias, mean, var = ctx.saved_tensors[:7]
    need_grad, need_sum, *needs = ctx.needs_input_grad[:5]
    training, eps, *rest = ctx.rest[7:-1]
    statistics = mean, (var.to(_wide_dtype(x)) + eps).rsqrt()
    options = ("batch" if training else "nothing", 1, eps, *rest)
    parameters = (weight, bias, None, None)
    arriving = (*arriving, None, None)
    made = _double_backward(arriving, grad, x, parameters, statistics, options, (need_grad, *needs, False, False))
    return made[0], arriving[0] if need_sum else None, *made[1:4], *(None,) * 7


_group_norm_act = differentiate("group_norm_act", _group_norm_save, _group_norm_vjp, keeps_outputs=True)
_group_norm_act_biased = differentiate("group_norm_act_biased", _biased_save, _biased_vjp, keeps_outputs=True)
_batch_norm_act = differentiate("batch_norm_act", _batch_norm_save, _batch_norm_vjp, keeps_outputs=True)
_bias_act = differentiate("bias_act", _bias_act_save, _bias_act_vjp)
_group_norm_act_backward = differentiate_backward("group_norm_act_backward", _group_norm_double_vjp)
_batch_norm_act_backward = differentiate_backward("batch_norm_act_backward", _batch_norm_double_vjp)
_norm_act_double_backward = differentiate_backward("norm_act_double_backward")
_bias_act_backward = differentiate_backward("bias_act_backward", _bias_act_double_backward)


def _why_plain(of_batch: bool, x: Tensor, *args: object, **kwargs: object) -> str:
    """For `genmod.explain`."""
    parameters = tuple(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() == 1)
    fused = any(kwargs.get(name) is not None for name in ("residual", "scale", "shift", "x_bias"))
    return _stock_norms.why(x, parameters, of_batch=of_batch, fused=fused)


for _name in ("group_norm_act", "batch_norm_act"):
    backends.register_public(_name, _name, functools.partial(_why_plain, _name == "batch_norm_act"))
