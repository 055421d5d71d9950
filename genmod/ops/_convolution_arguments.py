"""What the ops that are convolutions do with their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genmod.ops import _checks


def autocast(*tensors: Any) -> list[Any]:
    """The tensors as autocast would give them to a convolution."""
    if not torch._C._is_any_autocast_enabled():
        return list(tensors)
    first = tensors[0]
    if not isinstance(first, Tensor) or first.device.type == "meta" or not torch.is_autocast_enabled(first.device.type):
        return list(tensors)
    dtype = torch.get_autocast_dtype(first.device.type)

    def cast(value: Any) -> Any:
        eligible = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible else value

    return [cast(t) for t in tensors]


def check_image(x: Any) -> None:
    """A batch of images with at least one channel and pixel."""
    _checks.tensor("x", x)
    check_image_shape(x.shape)


def check_image_shape(shape: torch.Size) -> None:
    """That of a batch of images with at least one channel and pixel."""
    if len(shape) != 4 or 0 in shape[1:]:
        raise ValueError(f"x: got shape {tuple(shape)}, expected [N, C, H, W] with at least one channel and pixel")


def check_bias(bias: Any, x: Tensor, outputs: int) -> None:
    """A number for each output channel, or None."""
    if bias is None:
        return
    _checks.tensor("bias", bias)
    if bias.shape != (outputs,):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({outputs},), the output channels")
    _checks.same_kind("bias", bias, "x", x)
