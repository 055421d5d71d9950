r"""Convolution whose derivatives, to any order, are convolutions by the backend's native kernels.

With :math:`y = w * x`, the three maps

.. math::
    (x, w) \mapsto y, \qquad (g, w) \mapsto \partial_x \langle g, y \rangle, \qquad
    (g, x) \mapsto \partial_w \langle g, y \rangle

are each linear in both arguments, and the derivatives of any of them are the other two. ATen's double backward builds
the weight gradient from a convolution with batch and channels exchanged instead, which is slower; and a convolution as
a `torch.autograd.Function` would compute the weight gradient even where only that of the input was asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic


class Geometry(NamedTuple):
    """How a convolution walks over its input, a number per spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def critic_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, with a second-order path in which no convolution is wasted.

    Args, result and errors are those of torch's function. Differentiable to any order, in `x`, `weight` and `bias`.
    Under `torch.compile` and `torch.func` it is torch's function.
    """
    if has_torch_function_variadic(x, weight):
        return handle_torch_function(
            critic_conv2d,
            (x, weight),
            x,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
    plain = torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()
    if plain or x.dim() != 4 or isinstance(padding, str) or not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    geometry = Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    # Of leaves autograd does not say whether a backward pass leads to them, of aliases it does: see `_asked_for`.
    x, weight = x.view_as(x), weight.view_as(weight)
    return _Convolution.apply(x, weight, bias, geometry)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's input, of which only the shape enters."""
    x = grad.new_empty(1).expand(shape)
    return _backward(grad, x, weight, geometry, 0)


def weight_gradient(grad: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's weight, of which only the shape enters."""
    weight = grad.new_empty(1).expand(shape)
    return _backward(grad, x, weight, geometry, 1)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, which: int) -> Tensor:
    stride, padding, dilation, groups = geometry
    mask = [which == 0, which == 1, False]
    no_output_padding = [0] * len(stride)
    results = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, no_output_padding, groups, mask
    )
    return results[which]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.shapes, ctx.geometry = (x.shape, weight.shape), geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, weight = ctx.saved_tensors
        to_x = _InputGradient.apply(grad, weight, ctx.shapes[0], ctx.geometry) if _asked_for(ctx, 0) else None
        to_weight = _WeightGradient.apply(grad, x, ctx.shapes[1], ctx.geometry) if _asked_for(ctx, 1) else None
        to_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] and _asked_for(ctx, 2) else None
        return to_x, to_weight, to_bias, None


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.shape, ctx.geometry = weight.shape, geometry
        return input_gradient(grad, weight, shape, geometry)

    @staticmethod
    def backward(ctx: Any, further: Tensor | None) -> tuple[Tensor | None, ...]:
        if further is None:
            return None, None, None, None
        grad, weight = ctx.saved_tensors
        to_grad = _Convolution.apply(further, weight, None, ctx.geometry) if _asked_for(ctx, 0) else None
        to_weight = _WeightGradient.apply(grad, further, ctx.shape, ctx.geometry) if _asked_for(ctx, 1) else None
        return to_grad, to_weight, None, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, x if ctx.needs_input_grad[0] else None)
        ctx.shape, ctx.geometry = x.shape, geometry
        return weight_gradient(grad, x, shape, geometry)

    @staticmethod
    def backward(ctx: Any, further: Tensor | None) -> tuple[Tensor | None, ...]:
        if further is None:
            return None, None, None, None
        grad, x = ctx.saved_tensors
        to_grad = _Convolution.apply(x, further, None, ctx.geometry) if _asked_for(ctx, 0) else None
        to_x = _InputGradient.apply(grad, further, ctx.shape, ctx.geometry) if _asked_for(ctx, 1) else None
        return to_grad, to_x, None, None


def _asked_for(ctx: Any, index: int) -> bool:
    """Whether the backward pass under way leads to an input. `needs_input_grad` only says that one could."""
    if not ctx.needs_input_grad[index]:
        return False
    node = ctx.next_functions[index][0]
    return hasattr(node, "variable") or torch._C._will_engine_execute_node(node)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
