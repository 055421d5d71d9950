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

from typing import Any

import torch
from torch import Tensor

from genmod.ops._convolution import Geometry, convolution, gradients, input_gradient, weight_gradient


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """`x` convolved with `weight`, differentiable to any order."""
    return _Forward.apply(_alias(x), _alias(weight), bias, geometry)


def convolve_transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, output_padding: tuple[int, int]
) -> Tensor:
    """The transposed convolution of `x` with `weight`, `[Cin, Cout, ...]`: a convolution's input gradient."""
    walk = zip(x.shape[2:], weight.shape[2:], geometry.stride, geometry.padding, output_padding)
    sizes = [(size - 1) * stride - 2 * padding + kernel + more for size, kernel, stride, padding, more in walk]
    shape = torch.Size((x.shape[0], weight.shape[1] * geometry.groups, *sizes))
    image = _InputGradient.apply(_alias(x), _alias(weight), shape, geometry)
    return image if bias is None else image + bias[:, None, None]


def _alias(t: Tensor) -> Tensor:
    """Of leaves autograd does not say whether a backward pass leads to them, of aliases it does: see `_asked_for`. Not
    `view_as`: of a batch of one it changes the stride, by which ATen's weight gradient of groups in channels_last and
    float64 is wrong."""
    alias: Tensor = torch.ops.aten.alias.default(t)
    return alias


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        ctx.shapes, ctx.geometry = (x.shape, weight.shape), geometry
        return convolution(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, weight = ctx.saved_tensors
        to_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] and _asked_for(ctx, 2) else None
        if not torch.is_grad_enabled() and _asked_for(ctx, 0) and _asked_for(ctx, 1):
            return *gradients(grad, x, weight, ctx.geometry), to_bias, None
        to_x = _InputGradient.apply(grad, weight, ctx.shapes[0], ctx.geometry) if _asked_for(ctx, 0) else None
        to_weight = _WeightGradient.apply(grad, x, ctx.shapes[1], ctx.geometry) if _asked_for(ctx, 1) else None
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
        to_grad = _Forward.apply(further, weight, None, ctx.geometry) if _asked_for(ctx, 0) else None
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
        to_grad = _Forward.apply(x, further, None, ctx.geometry) if _asked_for(ctx, 0) else None
        to_x = _InputGradient.apply(grad, further, ctx.shape, ctx.geometry) if _asked_for(ctx, 1) else None
        return to_grad, to_x, None, None


def _asked_for(ctx: Any, index: int) -> bool:
    """Whether the backward pass under way leads to an input. `needs_input_grad` only says that one could."""
    if not ctx.needs_input_grad[index]:
        return False
    node = ctx.next_functions[index][0]
    return hasattr(node, "variable") or torch._C._will_engine_execute_node(node)
