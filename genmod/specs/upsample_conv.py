"""Specs of the family `upsample_conv`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register
from genmod.specs._convolutions import bad_calls, channels_last, draw, workload
from genmod.specs.norm_act import batch_norm_gain

# upsample_conv2d.


def _eager_activation(name: str, y: Tensor, negative_slope: float) -> Tensor:
    if name == "leaky_relu":
        return F.leaky_relu(y, negative_slope)
    return y if name == "identity" else getattr(F, name)(y)


def eager_upsample_conv2d(x, weight, bias=None, *, groups=1, activation="identity", negative_slope=0.01):
    """What a decoder's `Upsample`, the convolution behind it and an activation do."""
    y = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1, groups=groups)
    return _eager_activation(activation, y, negative_slope)


def _upsample_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(name: str, shape: tuple[int, ...], outputs: int, groups: int = 1, bias: bool = True) -> Sample:
        x = draw(device, dtype, *shape)
        weight = draw(device, dtype, outputs, shape[1] // groups, 3, 3, scale=0.3)
        args = (x, weight, draw(device, dtype, outputs) if bias else None)
        return Sample(name, args, {"groups": groups} if groups > 1 else {})

    def laid_out(name: str, sample: Sample, lay_out=channels_last) -> Sample:
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
    yield make("few pixels, many channels", (1, 24, 1, 2), 40)
    yield make("groups", (2, 4, 3, 3), 6, groups=2)
    yield make("depthwise", (1, 3, 3, 4), 3, groups=3)
    # The smooth ones: what is near the kink of a ReLU falls on either side of it by rounding.
    for activation in ("silu", "gelu", "tanh", "sigmoid"):
        sample = make("", (1, 2, 3, 2), 2)
        yield Sample(activation, sample.args, {"activation": activation})
    yield laid_out("channels_last", make("", (2, 3, 4, 5), 2))
    yield laid_out("channels_last, one pixel", make("", (2, 3, 1, 1), 2))
    yield laid_out("channels_last, many channels", make("", (1, 19, 2, 3), 17))
    yield laid_out("channels_last, whole vectors", make("", (2, 16, 3, 2), 32))
    yield laid_out("channels_last, few pixels, many channels", make("", (1, 24, 1, 2), 40))
    yield laid_out("channels_last, groups, no bias", make("", (2, 4, 3, 3), 6, groups=2, bias=False))
    yield laid_out("channels_last, to one channel", make("", (1, 5, 3, 4), 1))
    sample = make("", (2, 3, 4, 5), 2)
    yield laid_out("permuted", sample, lambda t: t.transpose(2, 3).contiguous().transpose(2, 3))
    x = draw(device, dtype, 4, 5, 6, 7)[1:3, 1:4, 2:5, 1:6]
    yield Sample("slice with offset", (x, *make("", (2, 3, 3, 5), 2).args[1:]))
    x = channels_last(draw(device, dtype, 2, 6, 3, 3))[:, ::2]
    yield Sample("every other channel", (x, *make("", (2, 3, 3, 3), 2).args[1:]))
    yield Sample("expanded", (draw(device, dtype, 1, 3, 1, 1).expand(2, 3, 2, 3), *sample.args[1:]))


def _bad_upsample() -> Iterator[BadCall]:
    op: Any = ops.upsample_conv2d
    x, w = torch.zeros(1, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    yield from bad_calls(op, "65536")
    yield BadCall("groups of inputs", lambda: op(x, w, groups=3), ValueError, ("groups", "3", "4 channels"))
    yield BadCall("groups of outputs", lambda: op(x, w[:, :1], groups=4), ValueError, ("groups", "4", "2 output"))
    yield BadCall("no groups", lambda: op(x, w, groups=0), ValueError, ("groups", "0"))
    yield BadCall("groups in words", lambda: op(x, w, groups="1"), TypeError, ("groups", "str", "integer"))
    yield BadCall("activation", lambda: op(x, w, activation="swish"), ValueError, ("activation", "swish", "silu"))


def _upsample_bytes(sample: Sample, backward: bool) -> int:
    # Forward reads the inputs and writes y; backward reads x, the weight and y's gradient and writes three gradients.
    inputs = sum(t.numel() * t.element_size() for t in sample.tensors())
    return (2 * inputs if backward else inputs) + _upsampled_elements(sample) * sample.args[0].element_size()


def _upsampled_elements(sample: Sample) -> int:
    batch, _, height, width = sample.args[0].shape
    return batch * sample.args[1].shape[0] * 4 * height * width


def _kept_for_activation(sample: Sample) -> int:
    if sample.get("activation") in (None, "identity"):
        return 0
    return _upsampled_elements(sample) * sample.args[0].element_size()


def _upsample_flops(sample: Sample, backward: bool) -> int:
    # Nine products and sums per input pixel, a quarter as many as there are output pixels; as many for each gradient.
    taps = sample.args[1].shape[1] * 9
    return _upsampled_elements(sample) // 4 * taps * 2 * (2 if backward else 1)


def _upsample_terms(sample: Sample) -> tuple[float, float]:
    """Gradients are sums of products of x or the weight and a slope, which a saturating activation has as the
    difference of 1 and nearly 1, and at a place that is off by the rounding of the sum behind it."""
    x, weight = (t.detach().double().nan_to_num(posinf=0.0, neginf=0.0).abs() for t in sample.args[:2])
    if not x.numel():
        return 0.0, 0.0
    largest = max(x.max().item(), weight.max().item())
    smooth = sample.kwargs.get("activation", "identity") not in ("identity", "relu", "leaky_relu")
    place = F.conv2d(x, weight, padding=1, groups=sample.kwargs.get("groups", 1)).max().item() if smooth else 0.0
    return 0.0, (4 + place) * largest


register(
    OpSpec(
        name="upsample_conv2d",
        family="upsample_conv",
        summary="nearest x2 and a 3x3 convolution as one map, with a quarter of the multiplications",
        public=ops.upsample_conv2d,
        eager=eager_upsample_conv2d,
        gradient_order=2,
        dispatcher_ops=("upsample_conv2d", "upsample_conv2d_backward", "bias_act", "bias_act_backward"),
        differentiable=(0, 1, 2),
        samples=_upsample_samples,
        bad_calls=_bad_upsample,
        workloads=(
            workload("decoder [16, 128, 32, 32] to 128", (16, 128, 32, 32), 128),
            workload("decoder [16, 128, 32, 32] to 128, channels_last", (16, 128, 32, 32), 128, True),
            workload("quarter AutoencoderKL [1, 128, 64, 64] to 128", (1, 128, 64, 64), 128),
            workload("GAN stem [16, 512, 4, 4] to 256", (16, 512, 4, 4), 256),
            workload("to pixels [16, 64, 32, 32] to 3", (16, 64, 32, 32), 3),
            workload("small [1, 64, 8, 8] to 32", (1, 64, 8, 8), 32),
        ),
        gpu_workloads=(
            workload("AutoencoderKL at 1024, channels_last [1, 512, 256, 256] to 512", (1, 512, 256, 256), 512, True),
        ),
        bytes_moved=_upsample_bytes,
        flops=_upsample_flops,
        modules=("UpsampleConv2d",),
        kept_bytes=lambda sample: 64 + _kept_for_activation(sample),
        magnitude=_upsample_terms,
        pointwise=False,
        reordering=4.0,
        any_threads=False,
        autocasts=(0, 1, 2),
    )
)


# conv_transpose2d_norm_act.


def eager_conv_transpose2d_norm_act(
    x,
    weight,
    running_mean,
    running_var,
    norm_weight=None,
    norm_bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    bias=None,
    stride=2,
    padding=1,
    output_padding=0,
    groups=1,
    activation="relu",
    negative_slope=0.01,
):
    """A block of DCGAN's generator."""
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups)
    y = F.batch_norm(y, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps)
    return _eager_activation(activation, y, negative_slope)


def _transposed_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    # In training without running statistics: they would be written to. tests/ops/test_upsample_conv.py looks at them.
    def make(name, shape, outputs, training, kernel=4, bias=False, lay_out=lambda t: t, **options):
        groups = options.get("groups", 1)
        x = lay_out(draw(device, dtype, *shape))
        weight = lay_out(draw(device, dtype, shape[1], outputs // groups, kernel, kernel, scale=0.3))
        mean, var = draw(device, dtype, outputs, scale=0.5), draw(device, dtype, outputs).square() + 0.5
        affine = 1 + draw(device, dtype, outputs, scale=0.5), draw(device, dtype, outputs)
        if bias:
            options["bias"] = draw(device, dtype, outputs)
        return Sample(name, (x, weight, *((None, None) if training else (mean, var)), *affine, training), options)

    yield make("plain", (2, 3, 3, 2), 2, False)
    yield make("training", (2, 3, 3, 2), 2, True)
    yield make("training, bias", (2, 2, 2, 3), 3, True, bias=True, activation="tanh")
    yield make("bias, leaky", (2, 2, 2, 3), 3, False, bias=True, activation="leaky_relu", negative_slope=0.2)
    yield make("from a vector", (3, 5, 1, 1), 2, True, stride=1, padding=0)
    yield make("odd", (1, 2, 3, 5), 2, False, kernel=3, output_padding=1, activation="silu")
    yield make("groups", (2, 4, 2, 2), 6, True, groups=2, activation="identity")
    yield make("channels_last", (2, 3, 3, 2), 2, True, lay_out=channels_last)
    yield make("channels_last, evaluation", (2, 3, 3, 2), 2, False, lay_out=channels_last, activation="gelu")
    yield make("uneven stride", (1, 2, 3, 2), 2, False, stride=(1, 2), padding=(0, 1), activation="sigmoid")
    yield make("empty batch", (0, 2, 3, 3), 2, False)
    sample = make("", (2, 3, 3, 2), 2, False)
    x = draw(device, dtype, 4, 5, 6, 7)[1:3, 1:4, 2:5, 1:3]
    yield Sample("slice with offset", (x, *sample.args[1:]), sample.kwargs)


def _bad_transposed() -> Iterator[BadCall]:
    op: Any = ops.conv_transpose2d_norm_act
    x, w, r = torch.zeros(2, 4, 3, 3), torch.zeros(4, 2, 4, 4), torch.ones(2)
    yield BadCall("not a tensor", lambda: op([1.0], w, r, r), TypeError, ("x", "list", "tensor"))
    yield BadCall("unbatched", lambda: op(x[0], w, r, r), ValueError, ("x", "(4, 3, 3)", "[N, C, H, W]"))
    yield BadCall("weight", lambda: op(x, w[:3], r, r), ValueError, ("weight", "(3, 2, 4, 4)", "[4, Cout"))
    yield BadCall("dtype", lambda: op(x, w.double(), r, r), TypeError, ("weight", "float64", "float32"))
    yield BadCall("bias", lambda: op(x, w, r, r, bias=torch.zeros(3)), ValueError, ("bias", "(3,)", "(2,)"))
    yield BadCall("groups", lambda: op(x, w, r, r, groups=3), ValueError, ("groups", "3", "4 channels"))
    yield BadCall("stride", lambda: op(x, w, r, r, stride=0), ValueError, ("stride", "0", "1"))
    yield BadCall("padding in words", lambda: op(x, w, r, r, padding="same"), TypeError, ("padding", "same"))
    yield BadCall("nothing left", lambda: op(x, w, r, r, padding=6), ValueError, ("padding", "-4x-4", "1x1"))
    yield BadCall("output padding", lambda: op(x, w, r, r, output_padding=2), ValueError, ("output_padding", "stride"))
    yield BadCall("norm weight", lambda: op(x, w, r, r, torch.ones(3)), ValueError, ("norm_weight", "(3,)", "(2,)"))
    yield BadCall("no statistics", lambda: op(x, w, None, None), ValueError, ("running_mean", "evaluation"))
    yield BadCall("activation", lambda: op(x, w, r, r, activation="swish"), ValueError, ("activation", "swish"))


def _transposed_workload(name: str, shape: tuple[int, ...], outputs: int, channels_last: bool = False) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        form = torch.channels_last if channels_last else torch.contiguous_format
        x, weight = torch.randn(shape), (4 * shape[1]) ** -0.5 * torch.randn(shape[1], outputs, 4, 4)
        x, weight = (t.to(device, dtype).contiguous(memory_format=form) for t in (x, weight))
        one = torch.ones(outputs, device=device)
        return Sample(name, (x, weight, 0 * one, one.clone(), one.to(dtype), 0 * one.to(dtype), True))

    return Workload(name, make)


def _doubled_elements(sample: Sample) -> int:
    return sample.args[0].shape[0] * sample.args[1].shape[1] * 4 * sample.args[0].shape[2:].numel()


def _transposed_bytes(sample: Sample, backward: bool) -> int:
    # Forward writes the convolution's result, reads it for the statistics and again for y; backward reads it and y's
    # gradient twice, writes the gradient of the convolution, and reads that for each of its two gradients.
    size = sample.args[0].element_size()
    inputs = sum(t.numel() for t in sample.args[:2]) * size
    return (
        (2 * inputs + 7 * _doubled_elements(sample) * size)
        if backward
        else inputs + 4 * _doubled_elements(sample) * size
    )


def _transposed_flops(sample: Sample, backward: bool) -> int:
    # Each output pixel of a 4x4 kernel with stride 2 sees 2x2 input pixels.
    return _doubled_elements(sample) * sample.args[0].shape[1] * 4 * 2 * (2 if backward else 1)


def _geometry(sample: Sample) -> Any:
    options = {"stride": 2, "padding": 1, "output_padding": 0, "groups": 1}
    return {name: sample.kwargs.get(name, default) for name, default in options.items()}


def _transposed_terms(sample: Sample) -> tuple[float, float]:
    """Outputs differ by the rounding of the convolution, of which the norm makes more where the image is nearly
    constant; gradients are sums, over the image for a weight, of what a norm may take back entirely."""
    x, weight = (t.detach().double() for t in sample.args[:2])
    bias = None if sample.get("bias") is None else sample.get("bias").detach().double()
    image = F.conv_transpose2d(x, weight, bias, **_geometry(sample))
    gain = batch_norm_gain(image, bool(sample.get(6)), sample.get(3), sample.get(4))
    finite = [t[t.isfinite()].abs() for t in (x, weight)]
    largest = max((t.max().item() for t in finite if t.numel()), default=0.0)
    of_image = max((t.max().item() for t in [image[image.isfinite()].abs()] if t.numel()), default=0.0)
    return gain * of_image, gain * max(1.0, largest) * max(1, image.numel() // image.shape[1]) ** 0.5


def _kept_by_batch_norm(sample: Sample) -> int:
    x, weight = sample.args[:2]
    y = F.conv_transpose2d(x.to("meta"), weight.to("meta"), **_geometry(sample))
    return 64 + y.numel() * y.element_size() + 2 * 8 * y.shape[1]


register(
    OpSpec(
        name="conv_transpose2d_norm_act",
        family="upsample_conv",
        summary="a transposed convolution, and batch norm and activation in one pass over its result",
        public=ops.conv_transpose2d_norm_act,
        eager=eager_conv_transpose2d_norm_act,
        gradient_order=2,
        dispatcher_ops=("batch_norm_act", "batch_norm_act_backward", "norm_act_double_backward"),
        differentiable=(0, 1, 4, 5, "bias"),
        samples=_transposed_samples,
        bad_calls=_bad_transposed,
        workloads=(
            _transposed_workload("DCGAN [64, 256, 16, 16] to 128", (64, 256, 16, 16), 128),
            _transposed_workload("DCGAN [64, 256, 16, 16] to 128, channels_last", (64, 256, 16, 16), 128, True),
            _transposed_workload("DCGAN [64, 512, 4, 4] to 256", (64, 512, 4, 4), 256),
        ),
        bytes_moved=_transposed_bytes,
        flops=_transposed_flops,
        modules=("ConvTransposeBlock",),
        kept_bytes=_kept_by_batch_norm,
        magnitude=_transposed_terms,
        pointwise=False,
        reordering=4.0,
        any_threads=False,
        autocasts=(0, 1, "bias"),
    )
)
