"""Specs of the family `conv3x3`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import OpSpec, Sample, Workload, register
from genmod.specs._convolutions import bad_calls, channels_last, draw, workload


def eager_conv3x3(x, weight, bias=None):
    """PyTorch's convolution."""
    return F.conv2d(x, weight, bias, padding=1)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(name: str, shape: tuple[int, ...], outputs: int, bias: bool = True) -> Sample:
        x, weight = draw(device, dtype, *shape), draw(device, dtype, outputs, shape[1], 3, 3, scale=0.3)
        return Sample(name, (x, weight, draw(device, dtype, outputs) if bias else None))

    def laid_out(name: str, sample: Sample, lay_out: Callable[[Tensor], Tensor] = channels_last) -> Sample:
        return Sample(name, (*map(lay_out, sample.args[:2]), sample.args[2]))

    yield make("plain", (2, 3, 4, 6), 2)
    yield make("odd", (1, 2, 5, 3), 3)
    yield make("one pixel", (2, 3, 1, 1), 2)
    yield make("one row", (1, 2, 1, 4), 3)
    yield make("one column", (1, 2, 4, 1), 3)
    yield make("two of everything", (2, 2, 2, 2), 2)
    yield make("empty batch", (0, 2, 3, 3), 2)
    yield make("primes, no bias", (3, 2, 7, 3), 2, bias=False)
    yield make("to one channel", (1, 5, 3, 4), 1)
    yield make("from one channel", (2, 1, 3, 3), 5)
    yield make("many channels", (1, 19, 2, 2), 37)
    yield make("several blocks of tiles", (1, 2, 11, 21), 3)
    yield make("a row of tiles that ends in the next block", (2, 1, 3, 71), 2)
    yield laid_out("channels_last", make("", (2, 3, 4, 5), 2))
    yield laid_out("channels_last, whole vectors", make("", (2, 16, 3, 4), 48))
    yield laid_out("channels_last, several blocks, no bias", make("", (3, 16, 7, 9), 16, bias=False))
    yield laid_out("channels_last, one pixel", make("", (2, 16, 1, 1), 16))
    sample = make("", (2, 3, 4, 5), 2)
    yield laid_out("permuted", sample, lambda t: t.transpose(2, 3).contiguous().transpose(2, 3))
    x = draw(device, dtype, 4, 5, 6, 7)[1:3, 1:4, 2:5, 1:6]
    yield Sample("slice with offset", (x, *make("", (2, 3, 3, 5), 2).args[1:]))
    yield Sample("expanded", (draw(device, dtype, 1, 3, 1, 1).expand(2, 3, 2, 3), *sample.args[1:]))


def _workload(name: str, shape: tuple[int, ...], outputs: int, last: bool = False) -> Workload:
    return workload(f"{name} {list(shape)} to {outputs}{', channels_last' if last else ''}", shape, outputs, last)


def _outputs(sample: Sample) -> int:
    x, weight = sample.args[:2]
    return x.shape[0] * weight.shape[0] * x.shape[2] * x.shape[3]


def _bytes(sample: Sample, backward: bool) -> int:
    """Forward reads the inputs and writes y; backward reads x, the weight and y's gradient, and writes three."""
    inputs = sum(t.numel() * t.element_size() for t in sample.tensors())
    return (2 * inputs if backward else inputs) + _outputs(sample) * sample.args[0].element_size()


def _flops(sample: Sample, backward: bool) -> int:
    """Those of a convolution, of which minimal filtering makes fewer: more than a machine's peak is possible."""
    return _outputs(sample) * sample.args[0].shape[1] * 18 * (2 if backward else 1)


register(
    OpSpec(
        name="conv3x3",
        family="conv3x3",
        summary="a 3x3 convolution, on a CPU with less than half of the multiplications",
        public=ops.conv3x3,
        eager=eager_conv3x3,
        gradient_order=2,
        dispatcher_ops=("conv3x3", "conv3x3_weight_gradient"),
        differentiable=(0, 1, 2),
        samples=_samples,
        bad_calls=lambda: bad_calls(ops.conv3x3, "32768"),
        workloads=(
            _workload("decoder", (1, 128, 64, 64), 128),
            _workload("decoder", (1, 128, 64, 64), 128, True),
            _workload("decoder", (1, 64, 256, 256), 64),
            _workload("decoder", (1, 64, 256, 256), 64, True),
            _workload("batch", (16, 64, 32, 32), 64),
            _workload("batch", (16, 64, 32, 32), 64, True),
            _workload("deep", (8, 256, 8, 8), 256),
            _workload("small", (1, 16, 8, 8), 16),
        ),
        bytes_moved=_bytes,
        flops=_flops,
        modules=("Conv3x3",),
        pointwise=False,
        reordering=4.0,
        any_threads=False,
        autocasts=(0, 1, 2),
        vendor=True,
    )
)
