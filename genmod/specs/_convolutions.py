"""What the specs of convolutions have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genmod.registry import BadCall, Sample, Workload


def draw(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers, drawn in float64, so that every dtype sees the same ones up to rounding."""
    return (scale * torch.randn(*shape, dtype=torch.float64)).to(device, dtype)


def channels_last(t: Tensor) -> Tensor:
    """An image in that memory format."""
    return t.contiguous(memory_format=torch.channels_last)


def bad_calls(op: Any, width: str, kernel: int = 3) -> Iterator[BadCall]:
    """Of a convolution of `[1, 4, 4, 4]`; `width` is that of the result for an image 32768 pixels wide."""
    x, w, k = torch.zeros(1, 4, 4, 4), torch.zeros(2, 4, kernel, kernel), f"{kernel}, {kernel}"
    yield BadCall("not a tensor", lambda: op([1.0], w), TypeError, ("x", "list", "tensor"))
    yield BadCall("integers", lambda: op(x.int(), w.int()), TypeError, ("x", "int32", "float32"))
    yield BadCall("unbatched", lambda: op(x[0], w), ValueError, ("x", "(4, 4, 4)", "[N, C, H, W]"))
    yield BadCall("no pixels", lambda: op(x[:, :, :0], w), ValueError, ("x", "(1, 4, 0, 4)", "pixel"))
    five, covered = torch.zeros(2, 4, 5, 5), f"{kernel}x{kernel}"
    yield BadCall("kernel", lambda: op(x, five), ValueError, ("weight", "(2, 4, 5, 5)", covered))
    yield BadCall("input channels", lambda: op(x, w[:, :3]), ValueError, ("weight", f"(2, 3, {k})", "4 channels"))
    yield BadCall("no output channels", lambda: op(x, w[:0]), ValueError, ("weight", f"(0, 4, {k})", "Cout"))
    yield BadCall("bias", lambda: op(x, w, torch.zeros(3)), ValueError, ("bias", "(3,)", "(2,)"))
    yield BadCall("weight dtype", lambda: op(x, w.half()), TypeError, ("weight", "float16", "float32"))
    yield BadCall("bias dtype", lambda: op(x, w, torch.zeros(2).double()), TypeError, ("bias", "float64", "float32"))
    yield BadCall("devices", lambda: op(x, w.to("meta")), ValueError, ("weight", "meta", "cpu"))
    huge = torch.zeros(1).expand(1 << 20, 4, 1 << 15, 1 << 15)
    yield BadCall("more than memory", lambda: op(huge, w), ValueError, ("x", "GiB", width))


def workload(name: str, shape: tuple[int, ...], outputs: int, last: bool = False) -> Workload:
    """An image, a 3x3 weight and a bias, in channels_last or not."""

    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        scale = (9 * shape[1]) ** -0.5
        x, weight, bias = torch.randn(shape), scale * torch.randn(outputs, shape[1], 3, 3), torch.randn(outputs)
        form = torch.channels_last if last else torch.contiguous_format
        x, weight = (t.to(device, dtype).contiguous(memory_format=form) for t in (x, weight))
        return Sample(name, (x, weight, bias.to(device, dtype)))

    return Workload(name, make)
