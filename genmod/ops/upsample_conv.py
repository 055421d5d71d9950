"""Family `upsample_conv`: the two ways in which decoders double the size of an image, fused with what follows.

The public functions check their arguments, hand calls that stock PyTorch is faster at to it, and call the dispatcher
for the rest; schemas, fakes and autograd stand below them. The maths is in `genmod.reference.upsample_conv`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import layout
from genmod.ops import _checks
from genmod.ops._library import define, differentiate
from genmod.reference import upsample_conv as reference


def upsample_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1) -> Tensor:
    r"""`conv2d(interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)` with a 3x3 kernel, exactly,
    without the upsampled image and with a quarter of the multiplications.

    .. math::
        y_{o,i,j} = b_o + \sum_{c,a,b} w_{o,c,a,b}\; x_{c,\lfloor (i + a - 1)/2 \rfloor, \lfloor (j + b - 1)/2 \rfloor}

    Args:
        x: `[N, Cin, H, W]`, any size, also an empty batch; float32, float64, bfloat16 or float16.
        weight: `[Cout, Cin / groups, 3, 3]`, that of the convolution; dtype and device of `x`.
        bias: `[Cout]`, optional.
        groups: as in `torch.nn.functional.conv2d`.

    Returns:
        `[N, Cout, 2H, 2W]`, in the dtype and memory format of `x`. Under autocast, as a convolution: in its dtype.

    Raises:
        TypeError: not a tensor, not floating point, or dtypes that differ.
        ValueError: `x` that is not 4-d or has no pixels or channels, a weight or bias of the wrong shape (a kernel other
            than 3x3 too), `groups` that do not divide the channels, devices that differ, or a result larger than the
            memory of the device.

    Differentiable to any order, in `x`, `weight` and `bias`. Kept for backward: `x` and `weight`. Half precision is
    summed in float32. Nothing is cached: on the CPU the weight is used as it is, on a GPU it is folded at each call, so
    it may change in any way between two of them.
    Sources: Odena, Dumoulin and Olah, *Deconvolution and checkerboard artifacts*, Distill 2016; Shi et al., *Is the
    deconvolution layer the same as a convolutional layer?*, 2016.
    """
    x, weight, bias = _autocast(x, weight, bias)
    _check_convolution(x, weight, bias, groups)
    if torch._C._are_functorch_transforms_active():
        return reference.upsample_conv2d(x, weight, bias, groups)
    return _upsample_conv2d(x, weight, bias, groups)


# Arguments.


def _autocast(*tensors: Any) -> list[Any]:
    """The tensors as autocast would give them to a convolution."""
    first = tensors[0]
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(first.device.type)

    def cast(value: Any) -> Any:
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible else value

    return [cast(t) for t in tensors]


def _check_convolution(x: Any, weight: Any, bias: Any, groups: Any) -> None:
    _checks.tensor("x", x)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected [N, C, H, W] with at least one channel and pixel")
    channels = x.shape[1]
    _checks.divisor("groups", groups, f"the {channels} channels of x", channels)
    _checks.tensor("weight", weight)
    if weight.shape[1:] != (channels // groups, 3, 3) or weight.shape[0] == 0:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, expected [Cout, {channels // groups}, 3, 3]: a kernel of 3x3 for "
            f"the {channels} channels of x in {groups} group(s)"
        )
    outputs = weight.shape[0]
    _checks.like("weight", weight, "x", x, weight.shape)
    _checks.divisor("groups", groups, f"the {outputs} output channels of weight", outputs)
    if bias is not None:
        _checks.tensor("bias", bias)
        if bias.shape != (outputs,):
            raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({outputs},), weight's output channels")
        _checks.like("bias", bias, "x", x, bias.shape)
    _checks.fits("x", x, (x.shape[0], outputs, 2 * x.shape[2], 2 * x.shape[3]))


# Dispatcher ops. Every backend implements exactly these.


def _upsample_conv2d_fake(x, weight, bias, groups):
    shape = (x.shape[0], weight.shape[0], 2 * x.shape[2], 2 * x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.memory_format_of(x))


def _upsample_conv2d_backward_fake(grad, x, weight, groups, wanted):
    return (
        layout.empty_output(x) if wanted & 1 else x.new_empty(0),
        layout.empty_output(weight) if wanted & 2 else x.new_empty(0),
        x.new_empty(weight.shape[0] if wanted & 4 else 0),
    )


define(
    "upsample_conv",
    "upsample_conv2d(Tensor x, Tensor weight, Tensor? bias, int groups) -> Tensor",
    _upsample_conv2d_fake,
)
define(
    "upsample_conv",
    "upsample_conv2d_backward(Tensor grad, Tensor x, Tensor weight, int groups, int wanted) -> "
    "(Tensor, Tensor, Tensor)",
    _upsample_conv2d_backward_fake,
)


# Autograd. The map is linear in x, in the weight and in the bias, so the gradients of its gradients are made of the map
# and its gradients again: the fast path at every order. With F(x, w, b) the op, X(g, w) and W(g, x) its gradients, and
# h, v, u what comes in for the gradients of x, w and b:
#     grad of g = F(h, w, u) + F(x, v, 0)        grad of x = X(g, v)        grad of w = W(g, h)


def _save(ctx, x, weight, bias, groups):
    ctx.save_for_backward(x, weight)
    ctx.groups = groups


def _vjp(ctx, grad):
    wanted = sum(1 << i for i, need in enumerate(ctx.needs_input_grad[:3]) if need)
    if grad is None or not wanted:
        return (None,) * 4
    return *_gradients(grad, *ctx.saved_tensors, ctx.groups, wanted), None


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: int) -> list[Tensor | None]:
    found = _upsample_conv2d_backward(grad, x, weight, groups, wanted)
    return [t if wanted >> i & 1 else None for i, t in enumerate(found)]


def _save_backward(ctx, grad, x, weight, groups, wanted):
    ctx.save_for_backward(grad, x, weight)
    ctx.groups = groups


def _backward_vjp(ctx, h, v, u):
    grad, x, weight = ctx.saved_tensors
    need_grad, need_x, need_weight = ctx.needs_input_grad[:3]
    d_grad = d_x = d_weight = None
    if need_grad:
        terms = []
        if h is not None:
            terms.append(_upsample_conv2d(h, weight, u, ctx.groups))
        elif u is not None:
            terms.append(u.view(1, -1, 1, 1).expand_as(grad))
        if v is not None:
            terms.append(_upsample_conv2d(x, v, None, ctx.groups))
        d_grad = sum(terms[1:], terms[0]) if terms else None
    wanted = (need_x and v is not None) + 2 * (need_weight and h is not None)
    if wanted:
        d_x, d_weight, _ = _gradients(grad, x if h is None else h, weight if v is None else v, ctx.groups, wanted)
    return d_grad, d_x, d_weight, None, None


_upsample_conv2d = differentiate("upsample_conv2d", _save, _vjp)
_upsample_conv2d_backward = differentiate("upsample_conv2d_backward", _save_backward, _backward_vjp)
