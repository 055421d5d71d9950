"""Convolution for critics: see `genmod.ops._differentiable_convolution`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from genmod.ops._convolution import Geometry
from genmod.ops._differentiable_convolution import convolve
from genmod.ops._tracing import is_traced


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
    plain = torch._C._are_functorch_transforms_active() or is_traced()
    if plain or x.dim() != 4 or isinstance(padding, str) or not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    geometry = Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    return convolve(x, weight, bias, geometry)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
