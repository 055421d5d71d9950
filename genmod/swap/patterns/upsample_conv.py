"""Nearest-neighbour upsampling and the convolution behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.swap import activations
from genmod.swap.pattern import Parts, RunPattern
from genmod.swap.patterns.norm_act import why_stock as why_stock_image

BOUND = "error at most twice stock's own"
_TWICE: tuple[Any, ...] = (2, (2, 2))


def why_not_conv(conv: nn.Conv2d) -> str:
    """Why the op does not cover a convolution behind the upsampling."""
    geometry = (conv.kernel_size, conv.stride, conv.dilation, conv.padding_mode)
    if geometry != ((3, 3), (1, 1), (1, 1), "zeros") or conv.padding not in ((1, 1), "same"):
        return "covered is a 3x3 kernel with stride 1, padding 1 and dilation 1, and zeros around the image"
    return ""


def why_stock(conv: nn.Conv2d, x: Tensor) -> str:
    """Why stock PyTorch is to upsample and convolve `x`."""
    if x.dim() != 4:
        return f"an input of shape {tuple(x.shape)}"
    if torch.is_autocast_enabled(x.device.type):  # the op casts as a convolution does
        return "" if x.shape[1] == conv.in_channels and 0 not in x.shape else f"an input of shape {tuple(x.shape)}"
    why = why_stock_image(x, conv.in_channels, conv.weight, conv.bias)
    return why or ("" if conv.weight.dtype == x.dtype else f"an input of {x.dtype} and a weight of {conv.weight.dtype}")


def upsample_conv(conv: nn.Conv2d, x: Tensor, act: activations.Options | None = None) -> Tensor:
    """`conv` of the upsampled image, and an activation of it."""
    activation, slope = act or activations.Options("identity", 0.01)
    return ops.upsample_conv2d(
        x, conv.weight, conv.bias, groups=conv.groups, activation=activation, negative_slope=slope
    )


def _why_not(parts: Parts) -> str:
    upsample, conv = parts[0], parts[1]
    assert isinstance(upsample, nn.Upsample) and isinstance(conv, nn.Conv2d)
    if upsample.mode != "nearest":
        return f"upsampling by mode {upsample.mode!r}, not 'nearest'"
    if upsample.size is not None or upsample.scale_factor not in _TWICE:
        return f"upsampling to size {upsample.size} by {upsample.scale_factor}, not by 2"
    return why_not_conv(conv) or (activations.why_not(parts[2]) if len(parts) == 3 else "")


def _run(name: str, became: str, *act: tuple[type[nn.Module], ...]) -> RunPattern:
    return RunPattern(
        name=name,
        parts=((nn.Upsample, nn.UpsamplingNearest2d), (nn.Conv2d,), *act),
        became=became,
        exactness="reassociated",
        bound=BOUND,
        why_not=_why_not,
        why_stock=lambda parts, x: why_stock(parts[1], x),
        call=lambda parts, x: upsample_conv(parts[1], x, activations.options(parts[2]) if len(parts) == 3 else None),
    )


RUNS = (
    _run("upsample_conv_act", "one convolution without the upsampled image, and its activation", activations.MODULES),
    _run("upsample_conv", "one convolution without the upsampled image"),
)
