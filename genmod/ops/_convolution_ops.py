"""A family of convolutions as dispatcher ops: the convolution, of which the transposed one is a case, and the gradient
by its weight.

With C(x, w) the op, T(g, w) the transposed one and W(g, x) the gradient by the weight, which is linear in the images on
either side of a convolution, the gradients of each are the other two: derivatives of every order are made of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genmod import layout
from genmod.ops._library import define, differentiate


def define_convolution(
    name: str, size: Callable[[int, bool], int], kernel: int, *, follows_image: bool = False
) -> Callable[..., Tensor]:
    """Defines `genmod::NAME` and `genmod::NAME_weight_gradient`, differentiable to any order, and returns what calls
    the first.

    Args:
        name: of the family and of the op.
        size: of a dimension of the result, from the image's and whether the convolution is transposed.
        kernel: height and width of the weight.
        follows_image: whether the gradient by the weight has the memory format of the image, or is contiguous.
    """

    def fake(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        channels, space = weight.shape[1 if transposed else 0], (size(s, transposed) for s in x.shape[2:])
        form = layout.memory_format_of(x)
        return torch.empty((x.shape[0], channels, *space), dtype=x.dtype, device=x.device, memory_format=form)

    def fake_weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
        form = layout.memory_format_of(x) if follows_image else torch.contiguous_format
        shape = (grad.shape[1], x.shape[1], kernel, kernel)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)

    gradient = f"{name}_weight_gradient"
    define(name, f"{name}(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor", fake)
    define(name, f"{gradient}(Tensor grad, Tensor x) -> Tensor", fake_weight_gradient)

    def save(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.transposed, ctx.form = transposed, layout.memory_format_of(x)

    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        grad = grad.contiguous(memory_format=ctx.form)
        x, weight = ctx.saved_tensors
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            # A gradient of one channel does not tell its format.
            to_x = convolve(grad, weight, None, not ctx.transposed).contiguous(memory_format=ctx.form)
        if ctx.needs_input_grad[1]:
            after, before = (x, grad) if ctx.transposed else (grad, x)
            form = layout.memory_format_of(weight)
            to_weight = weight_gradient(after, before).contiguous(memory_format=form)
        if ctx.needs_input_grad[2]:
            to_bias = grad.sum((0, 2, 3))
        return to_x, to_weight, to_bias, None

    def save_weight_gradient(ctx: Any, grad: Tensor, x: Tensor) -> None:
        ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, x if ctx.needs_input_grad[0] else None)
        ctx.forms = layout.memory_format_of(grad), layout.memory_format_of(x)

    def backward_of_weight_gradient(ctx: Any, further: Tensor | None) -> tuple[Tensor | None, ...]:
        if further is None:
            return None, None
        grad, x = ctx.saved_tensors
        of_grad, of_x = ctx.forms
        to_grad = to_x = None
        if ctx.needs_input_grad[0]:
            to_grad = convolve(x, further, None, False).contiguous(memory_format=of_grad)
        if ctx.needs_input_grad[1]:
            to_x = convolve(grad, further, None, True).contiguous(memory_format=of_x)
        return to_grad, to_x

    convolve = differentiate(name, save, backward)
    weight_gradient = differentiate(gradient, save_weight_gradient, backward_of_weight_gradient)
    return convolve
