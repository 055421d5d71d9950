"""Specs of the family `logistic_mixture`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register

# The op as people write it.


def eager_logistic_mixture_nll(
    output, target, *, weight=None, mask=None, reduction="batchmean", bins=256, min_log_scale=-7.0, validate=False
):
    """The usual port of PixelCNN++'s loss, with log-sigmoids in place of its three cases for small probabilities."""
    batch, channels, height, width = target.shape
    count = output.shape[1] // (10 if channels == 3 else 3)
    h = 1 / (bins - 1)
    rest = output[:, count:].reshape(batch, channels, 3 if channels == 3 else 2, count, height, width)
    means, log_scales = rest[:, :, 0], torch.clamp(rest[:, :, 1], min=min_log_scale)
    x = target.unsqueeze(2)
    if channels == 3:
        c = torch.tanh(rest[:, :, 2])
        green = means[:, 1] + c[:, 0] * x[:, 0]
        blue = means[:, 2] + c[:, 1] * x[:, 0] + c[:, 2] * x[:, 1]
        means = torch.stack([means[:, 0], green, blue], dim=1)
    centred, inverse = x - means, torch.exp(-log_scales)
    lower = F.logsigmoid(inverse * (centred + h))
    upper = F.logsigmoid(-inverse * (centred - h))
    inside = lower + upper + torch.log(-torch.expm1(-2 * h * inverse))
    log_probs = torch.where(x < -1 + h, lower, torch.where(x > 1 - h, upper, inside))
    log_probs = log_probs.sum(1) + F.log_softmax(output[:, :count], dim=1)
    nll = -torch.logsumexp(log_probs, dim=1)
    if weight is not None:
        nll = nll * weight
    if mask is not None:
        nll = nll * mask
    if reduction == "none":
        return nll
    if reduction == "per_dim":
        return nll.mean(0)
    if reduction == "batch":
        return nll.sum((1, 2))
    if reduction == "batchmean":
        return nll.sum() / max(batch, 1)
    return nll.sum() if reduction == "sum" else nll.mean()


# Samples: what the test battery runs.


def _images(device: torch.device, dtype: torch.dtype, *shape: int, bins: int = 256) -> Tensor:
    values = torch.randint(0, bins, shape).double() * (2 / (bins - 1)) - 1
    return values.to(device, dtype)


def _parameters(
    device: torch.device, dtype: torch.dtype, *shape: int, channels: int = 3, spread: float = 1.0, scale: float = -2.0
) -> Tensor:
    """Drawn in float64, so that every dtype sees the same numbers up to rounding: a decoder's output at mid-training,
    logits and means of `spread`, log-scales around `scale`."""
    batch, parameters, height, width = shape
    kinds = 3 if channels == 3 else 2
    count = parameters // (1 + channels * kinds)
    output = spread * torch.randn(shape, dtype=torch.float64)
    blocks = output[:, count:].view(batch, channels, kinds, count, height, width)
    blocks[:, :, 0] *= 0.6
    blocks[:, :, 1] = scale + 0.7 * torch.randn(batch, channels, count, height, width, dtype=torch.float64)
    return output.to(device, dtype)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, output: Tensor, target: Tensor | None = None, **options: Any) -> Sample:
        if target is None:
            channels = 1 if output.shape[1] % 10 else 3
            target = images(output.shape[0], channels, *output.shape[2:], bins=options.get("bins", 256))
        return Sample(name, (output, target), options)

    def parameters(*shape: int, **options: Any) -> Tensor:
        return _parameters(device, dtype, *shape, **options)

    def images(*shape: int, bins: int = 256) -> Tensor:
        return _images(device, dtype, *shape, bins=bins)

    yield sample("RGB", parameters(2, 20, 1, 3))
    yield sample("RGB, mean", parameters(2, 20, 1, 3), reduction="mean")
    yield sample("ten components", parameters(1, 100, 3, 3))
    yield sample("grey", parameters(2, 9, 2, 3, channels=1), reduction="batch")
    yield sample("one pixel", parameters(1, 10, 1, 1))
    yield sample("empty batch", parameters(0, 20, 3, 3), reduction="batch")
    yield sample("empty image", parameters(2, 20, 0, 3))
    yield sample("several tiles", parameters(2, 10, 11, 13), reduction="none")
    last = parameters(2, 20, 3, 4).contiguous(memory_format=torch.channels_last)
    yield sample("channels_last", last, images(2, 3, 3, 4).contiguous(memory_format=torch.channels_last))
    yield sample("channels_last target", parameters(1, 10, 3, 3), images(1, 3, 3, 3).permute(0, 1, 3, 2))
    yield sample("some channels of more", parameters(2, 30, 2, 2)[:, 3:23], images(2, 5, 2, 2)[:, 1:4])
    yield sample("a crop", parameters(1, 10, 5, 6)[..., 1:4, 2:5], images(1, 3, 5, 6)[..., 1:4, 2:5])
    yield sample("permuted", parameters(1, 10, 3, 4).transpose(2, 3))
    yield sample("expanded", parameters(1, 20, 2, 2).expand(3, -1, -1, -1))
    weight = torch.rand(2, 1, 3, dtype=torch.float64).to(device, dtype)
    mask = torch.tensor([[[True, False, True]], [[False, True, True]]], device=device)
    yield sample("weight", parameters(2, 20, 1, 3), weight=weight, reduction="sum")
    yield sample("weight and mask", parameters(2, 20, 1, 3), weight=weight[:, :, :1], mask=mask, reduction="none")
    yield sample("black and white", parameters(1, 10, 2, 3), images(1, 3, 2, 3, bins=2), reduction="none")
    bounded = parameters(2, 20, 2, 3, scale=-3.0)
    yield sample("log-scales beyond the bound", bounded, min_log_scale=-3.0)
    yield sample("means far from the pixels", parameters(2, 20, 2, 3, spread=12.0, scale=-5.0), reduction="none")
    yield sample("scales far from the bins", parameters(2, 20, 2, 3, scale=6.0), reduction="none")


# Calls that must raise.


def _bad_calls() -> Iterator[BadCall]:
    op: Any = ops.logistic_mixture_nll
    o, x = torch.zeros(2, 20, 3, 3), torch.zeros(2, 3, 3, 3)
    yield BadCall("not a tensor", lambda: op([1.0], x), TypeError, ("output", "list", "tensor"))
    yield BadCall("integers", lambda: op(o, x.byte()), TypeError, ("target", "uint8", "float32"))
    yield BadCall("rank", lambda: op(o[0], x), ValueError, ("output", "(20, 3, 3)", "10 K"))
    yield BadCall("channels of output", lambda: op(o[:, :19], x), ValueError, ("output", "(2, 19, 3, 3)", "10 K"))
    yield BadCall("no component", lambda: op(o[:, :0], x), ValueError, ("output", "(2, 0, 3, 3)", "10 K"))
    yield BadCall("channels of target", lambda: op(o, x[:, :2]), ValueError, ("target", "(2, 2, 3, 3)", "[B, 3, H, W]"))
    yield BadCall("sizes", lambda: op(o, x[..., :2]), ValueError, ("target", "(2, 3, 3, 2)", "(2, 20, 3, 3)"))
    yield BadCall("batches", lambda: op(o, x[:1]), ValueError, ("target", "(1, 3, 3, 3)", "(2, 20, 3, 3)"))
    yield BadCall("devices", lambda: op(o, x.to("meta")), ValueError, ("target", "meta", "cpu"))
    yield BadCall("reduction", lambda: op(o, x, reduction="total"), ValueError, ("reduction", "total", "batchmean"))
    yield BadCall("one bin", lambda: op(o, x, bins=1), ValueError, ("bins", "1", "at least 2"))
    yield BadCall("half a bin", lambda: op(o, x, bins=2.5), TypeError, ("bins", "float", "int"))
    yield BadCall("bound", lambda: op(o, x, min_log_scale=-90.0), ValueError, ("min_log_scale", "-90", ">= -20"))
    yield BadCall("bound in words", lambda: op(o, x, min_log_scale="-7"), TypeError, ("min_log_scale", "str", "number"))
    yield BadCall("weight", lambda: op(o, x, weight=x), ValueError, ("weight", "(2, 3, 3, 3)", "(2, 3, 3)"))
    yield BadCall("weight of integers", lambda: op(o, x, weight=x[:, 0].int()), TypeError, ("weight", "int32"))
    yield BadCall("mask of numbers", lambda: op(o, x, mask=x[:, 0]), TypeError, ("mask", "float32", "bool"))
    yield BadCall("mask", lambda: op(o, x, mask=x.bool()[0, 0, :2]), ValueError, ("mask", "(2, 3)", "(2, 3, 3)"))
    yield BadCall("off the bins", lambda: op(o, x, validate=True), ValueError, ("target", "0", "256"))
    yield BadCall("out of range", lambda: op(o, x + 2, validate=True), ValueError, ("target", "2", "[-1, 1]"))


# Workloads and what an ideal kernel would do on them.


def _workload(
    name: str, batch: int, components: int, size: int, *, channels: int = 3, form: torch.memory_format | None = None
) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        each = 10 if channels == 3 else 3
        output = _parameters(device, dtype, batch, each * components, size, size, channels=channels)
        target = _images(device, dtype, batch, channels, size, size)
        if form is not None:
            output, target = output.contiguous(memory_format=form), target.contiguous(memory_format=form)
        return Sample(name, (output, target))

    return Workload(name, make)


_WORKLOADS = (
    _workload("CIFAR, 10 components [32, 3, 32, 32]", 32, 10, 32),
    _workload("CIFAR, 10 components, channels_last [32, 3, 32, 32]", 32, 10, 32, form=torch.channels_last),
    _workload("MNIST, 5 components [64, 1, 28, 28]", 64, 5, 28, channels=1),
    _workload("small, 5 components [4, 3, 8, 8]", 4, 5, 8),
)
_ON_GPU = (_workload("beyond the cache, 10 components [512, 3, 32, 32]", 512, 10, 32),)


def _bytes(sample: Sample, backward: bool) -> int:
    """Parameters and target read once; the parameters' gradient written in backward."""
    output, target = sample.args
    read = sum(math.prod(t.shape) * t.element_size() for t in (output, target))
    return read + (output.numel() * output.element_size() if backward else 0)


def _flops(sample: Sample, backward: bool) -> int:
    output, target = sample.args
    components = output.numel() // (10 if target.shape[1] == 3 else 3)
    return components * (target.shape[1] * (50 if backward else 30) + 8)


register(
    OpSpec(
        name="logistic_mixture_nll",
        family="logistic_mixture",
        summary="PixelCNN++'s discretised logistic mixture, RGB or grey, no intermediate in memory, nothing cancels",
        public=ops.logistic_mixture_nll,
        eager=eager_logistic_mixture_nll,
        gradient_order=2,
        dispatcher_ops=(
            "logistic_mixture_nll",
            "logistic_mixture_nll_backward",
            "logistic_mixture_nll_with_gradient",
        ),
        differentiable=(0,),
        samples=_samples,
        bad_calls=_bad_calls,
        workloads=_WORKLOADS,
        gpu_workloads=_ON_GPU,
        bytes_moved=_bytes,
        flops=_flops,
        modules=("LogisticMixture",),
        kept_bytes=lambda sample: 64 + 8 * sample.args[1].shape[0] * sample.args[1].shape[2:].numel(),
        pointwise=False,
    )
)
