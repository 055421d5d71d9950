"""Specs of the family `conv4x4`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register
from genmod.specs._convolutions import bad_calls, channels_last, draw


def eager_conv4x4(x, weight, bias=None, *, transposed=False):
    """PyTorch's convolutions."""
    return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, bias, stride=2, padding=1)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(name: str, shape: tuple[int, ...], outputs: int, transposed: bool = False, bias: bool = True) -> Sample:
        pair = (shape[1], outputs) if transposed else (outputs, shape[1])
        x, weight = draw(device, dtype, *shape), draw(device, dtype, *pair, 4, 4, scale=0.3)
        options = {"transposed": True} if transposed else {}
        return Sample(name, (x, weight, draw(device, dtype, outputs) if bias else None), options)

    def laid_out(name: str, sample: Sample, lay_out: Callable[[Tensor], Tensor] = channels_last) -> Sample:
        return Sample(name, (*map(lay_out, sample.args[:2]), sample.args[2]), sample.kwargs)

    yield make("halved", (2, 3, 4, 6), 2)
    yield make("doubled", (2, 3, 2, 3), 2, True)
    yield make("halved to one pixel", (2, 3, 2, 2), 2)
    yield make("one pixel doubled", (2, 2, 1, 1), 3, True)
    yield make("halved to an odd size", (1, 2, 6, 2), 3)
    yield make("an odd size doubled", (1, 2, 3, 1), 3, True)
    yield make("empty batch", (0, 2, 4, 4), 2)
    yield make("empty batch, doubled", (0, 2, 2, 2), 2, True)
    yield make("no bias", (1, 2, 4, 2), 3, bias=False)
    yield make("to one channel", (1, 5, 4, 4), 1)
    yield make("from one channel, doubled", (2, 1, 2, 2), 3, True)
    yield make("many channels", (1, 19, 2, 2), 37)
    yield make("several blocks of tiles", (3, 2, 18, 30), 3)
    yield make("several blocks of tiles, doubled", (3, 3, 9, 15), 2, True)
    yield laid_out("channels_last", make("", (2, 3, 4, 6), 2))
    yield laid_out("channels_last, whole vectors", make("", (2, 16, 4, 6), 48))
    yield laid_out("channels_last, whole vectors, doubled", make("", (2, 48, 2, 3), 16, True, bias=False))
    yield laid_out("permuted", make("", (2, 3, 4, 6), 2), lambda t: t.transpose(2, 3).contiguous().transpose(2, 3))
    x = draw(device, dtype, 4, 5, 6, 7)[1:3, 1:4, 2:6, 1:7]
    yield Sample("slice with offset", (x, *make("", (2, 3, 4, 6), 2).args[1:]))
    expanded = draw(device, dtype, 1, 3, 1, 1).expand(2, 3, 2, 4)
    yield Sample("expanded", (expanded, *make("", (2, 3, 2, 4), 2).args[1:]))


def _bad_calls() -> Iterator[BadCall]:
    op: Any = ops.conv4x4
    yield from bad_calls(op, "16384", kernel=4)
    x, w = torch.zeros(1, 4, 3, 4), torch.zeros(2, 4, 4, 4)
    yield BadCall("odd height", lambda: op(x, w), ValueError, ("x", "3 x 4", "even"))
    yield BadCall("transposed", lambda: op(x, w, transposed=True), ValueError, ("weight", "(2, 4, 4, 4)", "[4, Cout"))


def _workload(name: str, batch: int, small: int, large: int, size: int, transposed: bool, last: bool) -> Workload:
    """DCGAN-64's layers: the smaller map has `small` channels and `size` pixels a row."""
    inputs, outputs, pixels = (small, large, size) if transposed else (large, small, 2 * size)
    shape = (batch, inputs, pixels, pixels)

    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        scale = ((4 if transposed else 16) * inputs) ** -0.5
        x, weight = torch.randn(shape), scale * torch.randn(small, large, 4, 4)
        form = torch.channels_last if last else torch.contiguous_format
        x, weight = (t.to(device, dtype).contiguous(memory_format=form) for t in (x, weight))
        options = {"transposed": True} if transposed else {}
        return Sample(name, (x, weight, torch.randn(outputs).to(device, dtype)), options)

    return Workload(f"{name} {list(shape)} to {outputs}{', channels_last' if last else ''}", make)


def _pairs_of_pixels(sample: Sample) -> int:
    """Pixels of the smaller map, times channels of both."""
    x, weight = sample.args[:2]
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return (pixels if sample.kwargs.get("transposed") else pixels // 4) * weight.shape[0] * weight.shape[1]


def _bytes(sample: Sample, backward: bool) -> int:
    """Forward reads the inputs and writes y; backward reads x, the weight and y's gradient, and writes three."""
    x, weight = sample.args[:2]
    inputs = sum(t.numel() * t.element_size() for t in sample.tensors())
    outputs, factor = (weight.shape[1], 4.0) if sample.kwargs.get("transposed") else (weight.shape[0], 0.25)
    result = int(x.shape[0] * outputs * x.shape[2] * x.shape[3] * factor) * x.element_size()
    return (2 * inputs if backward else inputs) + result


def _flops(sample: Sample, backward: bool) -> int:
    """Those of a convolution, of which minimal filtering makes fewer: more than a machine's peak is possible."""
    return 32 * _pairs_of_pixels(sample) * (2 if backward else 1)


register(
    OpSpec(
        name="conv4x4",
        family="conv4x4",
        summary="a 4x4 convolution with stride 2, or its transpose, on a CPU with 9 of 16 multiplications",
        public=ops.conv4x4,
        eager=eager_conv4x4,
        gradient_order=2,
        dispatcher_ops=("conv4x4", "conv4x4_weight_gradient"),
        differentiable=(0, 1, 2),
        samples=_samples,
        bad_calls=_bad_calls,
        workloads=(
            _workload("DCGAN critic", 32, 128, 64, 16, False, False),
            _workload("DCGAN critic", 32, 256, 128, 8, False, False),
            _workload("DCGAN critic", 32, 256, 128, 8, False, True),
            _workload("DCGAN generator", 32, 512, 256, 4, True, False),
            _workload("DCGAN generator", 32, 128, 64, 16, True, False),
            _workload("DCGAN generator", 32, 128, 64, 16, True, True),
            _workload("small VAE", 16, 64, 32, 8, False, False),
        ),
        bytes_moved=_bytes,
        flops=_flops,
        modules=("Conv4x4", "ConvTranspose4x4"),
        pointwise=False,
        reordering=4.0,
        any_threads=False,
        autocasts=(0, 1, 2),
        vendor=True,
    )
)
