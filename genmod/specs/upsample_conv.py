"""Specs of the family `upsample_conv`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register


def _draw(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    # Drawn in float64, so that every dtype sees the same numbers up to rounding.
    return (scale * torch.randn(*shape, dtype=torch.float64)).to(device, dtype)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


# upsample_conv2d.


def eager_upsample_conv2d(x, weight, bias=None, *, groups=1):
    """What a decoder's `Upsample` and the convolution behind it do."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1, groups=groups)


def _upsample_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(name: str, shape: tuple[int, ...], outputs: int, groups: int = 1, bias: bool = True) -> Sample:
        x = _draw(device, dtype, *shape)
        weight = _draw(device, dtype, outputs, shape[1] // groups, 3, 3, scale=0.3)
        args = (x, weight, _draw(device, dtype, outputs) if bias else None)
        return Sample(name, args, {"groups": groups} if groups > 1 else {})

    def laid_out(name: str, sample: Sample, lay_out=_channels_last) -> Sample:
        return Sample(name, (*map(lay_out, sample.args[:2]), *sample.args[2:]), sample.kwargs)

    yield make("plain", (2, 3, 4, 5), 2)
    yield make("one pixel", (2, 3, 1, 1), 2)
    yield make("one row", (1, 2, 1, 4), 3)
    yield make("one column", (1, 2, 4, 1), 3)
    yield make("one of everything", (1, 1, 1, 1), 1)
    yield make("empty batch", (0, 2, 3, 3), 2)
    yield make("primes, no bias", (3, 2, 7, 3), 2, bias=False)
    yield make("to one channel", (1, 5, 3, 4), 1)
    yield make("from one channel", (2, 1, 3, 3), 5)
    yield make("many channels", (1, 19, 2, 2), 17)
    yield make("wide", (1, 2, 2, 37), 2)
    yield make("groups", (2, 4, 3, 3), 6, groups=2)
    yield make("depthwise", (1, 3, 3, 4), 3, groups=3)
    yield laid_out("channels_last", make("", (2, 3, 4, 5), 2))
    yield laid_out("channels_last, one pixel", make("", (2, 3, 1, 1), 2))
    yield laid_out("channels_last, many channels", make("", (1, 19, 2, 3), 17))
    yield laid_out("channels_last, groups, no bias", make("", (2, 4, 3, 3), 6, groups=2, bias=False))
    yield laid_out("channels_last, to one channel", make("", (1, 5, 3, 4), 1))
    sample = make("", (2, 3, 4, 5), 2)
    yield laid_out("permuted", sample, lambda t: t.transpose(2, 3).contiguous().transpose(2, 3))
    x = _draw(device, dtype, 4, 5, 6, 7)[1:3, 1:4, 2:5, 1:6]
    yield Sample("slice with offset", (x, *make("", (2, 3, 3, 5), 2).args[1:]))
    x = _channels_last(_draw(device, dtype, 2, 6, 3, 3))[:, ::2]
    yield Sample("every other channel", (x, *make("", (2, 3, 3, 3), 2).args[1:]))
    yield Sample("expanded", (_draw(device, dtype, 1, 3, 1, 1).expand(2, 3, 2, 3), *sample.args[1:]))


def _bad_upsample() -> Iterator[BadCall]:
    op, x, w = ops.upsample_conv2d, torch.zeros(1, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    yield BadCall("not a tensor", lambda: op([1.0], w), TypeError, ("x", "list", "tensor"))
    yield BadCall("integers", lambda: op(x.int(), w.int()), TypeError, ("x", "int32", "float32"))
    yield BadCall("unbatched", lambda: op(x[0], w), ValueError, ("x", "(4, 3, 3)", "[N, C, H, W]"))
    yield BadCall("no pixels", lambda: op(x[:, :, :0], w), ValueError, ("x", "(1, 4, 0, 3)", "pixel"))
    yield BadCall("kernel", lambda: op(x, torch.zeros(2, 4, 5, 5)), ValueError, ("weight", "(2, 4, 5, 5)", "3x3"))
    yield BadCall("input channels", lambda: op(x, w[:, :3]), ValueError, ("weight", "(2, 3, 3, 3)", "4 channels"))
    yield BadCall("no output channels", lambda: op(x, w[:0]), ValueError, ("weight", "(0, 4, 3, 3)", "Cout"))
    yield BadCall("groups of inputs", lambda: op(x, w, groups=3), ValueError, ("groups", "3", "4 channels"))
    yield BadCall("groups of outputs", lambda: op(x, w[:, :1], groups=4), ValueError, ("groups", "4", "2 output"))
    yield BadCall("no groups", lambda: op(x, w, groups=0), ValueError, ("groups", "0"))
    yield BadCall("groups in words", lambda: op(x, w, groups="1"), TypeError, ("groups", "str", "integer"))
    yield BadCall("bias", lambda: op(x, w, torch.zeros(3)), ValueError, ("bias", "(3,)", "(2,)"))
    yield BadCall("weight dtype", lambda: op(x, w.half()), TypeError, ("weight", "float16", "float32"))
    yield BadCall("bias dtype", lambda: op(x, w, torch.zeros(2).double()), TypeError, ("bias", "float64", "float32"))
    yield BadCall("devices", lambda: op(x, w.to("meta")), ValueError, ("weight", "meta", "cpu"))
    huge = torch.zeros(1).expand(1 << 20, 4, 1 << 15, 1 << 15)
    yield BadCall("more than memory", lambda: op(huge, w), ValueError, ("x", "GiB", "65536"))


def _upsample_workload(name: str, shape: tuple[int, ...], outputs: int, channels_last: bool = False) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        scale = (9 * shape[1]) ** -0.5
        x, weight, bias = torch.randn(shape), scale * torch.randn(outputs, shape[1], 3, 3), torch.randn(outputs)
        form = torch.channels_last if channels_last else torch.contiguous_format
        x, weight = (t.to(device, dtype).contiguous(memory_format=form) for t in (x, weight))
        return Sample(name, (x, weight, bias.to(device, dtype)))

    return Workload(name, make)


def _upsample_bytes(sample: Sample, backward: bool) -> int:
    # Forward reads the inputs and writes y; backward reads x, the weight and y's gradient and writes three gradients.
    inputs = sum(t.numel() * t.element_size() for t in sample.tensors())
    return (2 * inputs if backward else inputs) + _upsampled_elements(sample) * sample.args[0].element_size()


def _upsampled_elements(sample: Sample) -> int:
    batch, _, height, width = sample.args[0].shape
    return batch * sample.args[1].shape[0] * 4 * height * width


def _upsample_flops(sample: Sample, backward: bool) -> int:
    # Nine products and sums per input pixel, a quarter as many as there are output pixels; as many for each gradient.
    taps = sample.args[1].shape[1] * 9
    return _upsampled_elements(sample) // 4 * taps * 2 * (2 if backward else 1)


register(
    OpSpec(
        name="upsample_conv2d",
        family="upsample_conv",
        summary="nearest x2 and a 3x3 convolution as one map, with a quarter of the multiplications",
        public=ops.upsample_conv2d,
        eager=eager_upsample_conv2d,
        gradient_order=2,
        dispatcher_ops=("upsample_conv2d", "upsample_conv2d_backward"),
        differentiable=(0, 1, 2),
        samples=_upsample_samples,
        bad_calls=_bad_upsample,
        workloads=(
            _upsample_workload("decoder [16, 128, 32, 32] to 128", (16, 128, 32, 32), 128),
            _upsample_workload("decoder [16, 128, 32, 32] to 128, channels_last", (16, 128, 32, 32), 128, True),
            _upsample_workload("quarter AutoencoderKL [1, 128, 64, 64] to 128", (1, 128, 64, 64), 128),
            _upsample_workload("GAN stem [16, 512, 4, 4] to 256", (16, 512, 4, 4), 256),
            _upsample_workload("to pixels [16, 64, 32, 32] to 3", (16, 64, 32, 32), 3),
            _upsample_workload("small [1, 64, 8, 8] to 32", (1, 64, 8, 8), 32),
        ),
        bytes_moved=_upsample_bytes,
        flops=_upsample_flops,
        modules=("UpsampleConv2d",),
        pointwise=False,
        reordering=4.0,
        autocasts=(0, 1, 2),
    )
)
