"""Specs of the family `reconstruction`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register

# The ops as people write them.


def _eager_reduce(values: Tensor, weight: Tensor | None, mask: Tensor | None, reduction: str) -> Tensor:
    if weight is not None:
        values = values * weight
    if mask is not None:
        values = values * mask
    if reduction == "none":
        return values
    if reduction == "per_dim":
        return values.mean(0)
    if reduction == "batch":
        return values.flatten(1).sum(1) if values.dim() > 1 else values
    if reduction == "batchmean":
        return values.sum() / max(values.shape[0], 1)
    if reduction == "mean":
        return values.mean() if mask is None else values.sum() / mask.expand(values.shape).sum()
    return values.sum()


def _eager_loss(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One of torch.nn.functional's losses, with the sum left to it where that is all there is to do."""

    def eager(output, target, *, weight=None, mask=None, reduction="batchmean", validate=False):
        target = target.to(output.dtype)
        if weight is None and mask is None and reduction in ("batchmean", "sum", "mean") and output.numel():
            total = loss(output, target, reduction="mean" if reduction == "mean" else "sum")
            return total / output.shape[0] if reduction == "batchmean" else total
        return _eager_reduce(loss(output, target, reduction="none"), weight, mask, reduction)

    return eager


def _halves(output: Tensor, log_scale: Tensor | None, fixed: float | None) -> tuple[Tensor, Tensor | float]:
    if log_scale is not None:
        return output, log_scale.to(output.dtype)
    if fixed is not None:
        return output, fixed
    mean, log_scale = output.chunk(2, 1)
    return mean, log_scale


def _bounded(log_scale: Tensor | float, low: float | None) -> Tensor:
    if isinstance(log_scale, float):
        return torch.tensor(log_scale, dtype=torch.float64)
    return log_scale if low is None else log_scale.clamp(min=low)


def eager_gaussian_nll(
    output,
    target,
    *,
    logvar=None,
    sigma=None,
    min_logvar=-30.0,
    weight=None,
    mask=None,
    reduction="batchmean",
):
    """`0.5 * (log(2 pi) + logvar + (x - mu)^2 / exp(logvar))`."""
    mean, logvar = _halves(output, logvar, None if sigma is None else 2 * math.log(sigma))
    logvar = _bounded(logvar, min_logvar)
    nll = 0.5 * (math.log(2 * math.pi) + logvar + (target.to(mean.dtype) - mean) ** 2 / torch.exp(logvar))
    return _eager_reduce(nll, weight, mask, reduction)


def eager_laplace_nll(
    output,
    target,
    *,
    log_scale=None,
    scale=None,
    min_log_scale=-15.0,
    weight=None,
    mask=None,
    reduction="batchmean",
):
    """`log(2) + s + |x - mu| / exp(s)`."""
    mean, log_scale = _halves(output, log_scale, None if scale is None else math.log(scale))
    log_scale = _bounded(log_scale, min_log_scale)
    nll = math.log(2) + log_scale + (target.to(mean.dtype) - mean).abs() / torch.exp(log_scale)
    return _eager_reduce(nll, weight, mask, reduction)


def eager_discretized_logistic_nll(
    output,
    target,
    *,
    log_scale=None,
    scale=None,
    bins=256,
    min_log_scale=-7.0,
    weight=None,
    mask=None,
    reduction="batchmean",
    validate=False,
):
    """PixelCNN++'s code for one logistic."""
    mean, log_scale = _halves(output, log_scale, None if scale is None else math.log(scale))
    log_scale = _bounded(log_scale, min_log_scale)
    target, half = target.to(mean.dtype), 1 / (bins - 1)
    centered, inverse = target - mean, torch.exp(-log_scale)
    plus, minus, middle = inverse * (centered + half), inverse * (centered - half), inverse * centered
    delta = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scale - 2 * F.softplus(middle) + math.log(2 * half)
    inner = torch.where(delta > 1e-5, torch.log(torch.clamp(delta, min=1e-12)), density)
    first, last = plus - F.softplus(plus), -F.softplus(minus)
    log_prob = torch.where(target < half - 1, first, torch.where(target > 1 - half, last, inner))
    return _eager_reduce(-log_prob, weight, mask, reduction)


# Samples: what the test battery runs.


def _normal(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    # Drawn in float64, so that every dtype sees the same numbers up to rounding.
    return (scale * torch.randn(shape, dtype=torch.float64)).to(device, dtype)


def _layouts(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Outputs, and targets to be, of every size, rank and layout that matters; standard normal."""

    def t(*shape: int) -> Tensor:
        return _normal(device, dtype, *shape)

    yield "vector", t(7), t(7)
    yield "one element", t(1, 1), t(1, 1)
    yield "empty batch", t(0, 5), t(0, 5)
    yield "empty event", t(3, 0), t(3, 0)
    yield "primes", t(13, 3, 5), t(13, 3, 5)
    yield "several chunks", t(5, 509), t(5, 509)
    yield "rank 5", t(2, 3, 2, 3, 2), t(2, 3, 2, 3, 2)
    yield "channels_last", t(2, 3, 3, 5).contiguous(memory_format=torch.channels_last), t(2, 3, 3, 5)
    yield "slice with offset", t(9, 8)[2:7, 1:6], t(9, 8)[2:7, 3:8]
    yield "every other column", t(4, 12)[:, ::2], t(4, 6)
    yield "permuted", t(5, 6).t(), t(6, 5)
    yield "expanded", t(1, 5).expand(6, 5), t(6, 1).expand(6, 5)
    half = dtype in (torch.bfloat16, torch.float16)
    yield "target of another dtype", t(4, 6), t(4, 6).to(torch.float32 if half else torch.bfloat16)


def _options(device: torch.device, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Reductions, weights and masks, for a [3, 2, 2, 3] output."""
    for reduction in ("none", "per_dim", "batch", "mean", "sum"):
        yield {"reduction": reduction}
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]], device=device).expand(3, 1, 2, 3)
    weight = _normal(device, dtype, 3, 2, 2, 3).abs()
    yield {"weight": weight}
    yield {"mask": mask.bool(), "reduction": "mean"}
    yield {"mask": mask.to(dtype), "weight": weight, "reduction": "batch"}
    yield {"mask": mask.bool().expand(3, 2, 2, 3).contiguous(), "weight": weight[:1], "reduction": "none"}


def _label(name: str, options: dict[str, Any]) -> str:
    said = (f"{k}={v}" if not isinstance(v, Tensor) else k for k, v in options.items())
    return ", ".join([name, *said])


def _grid(x: Tensor, bins: int) -> Tensor:
    """Normal numbers as pixels: rounded to the bins' centres in [-1, 1]."""
    return ((x.double().clamp(-1, 1) + 1) * (bins - 1) / 2).round().mul(2 / (bins - 1)).sub(1).to(x.dtype)


_TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "bernoulli_nll": lambda x: torch.sigmoid(2 * x),
    "discretized_logistic_nll": lambda x: _grid(x, 256),
}


def _samples(name: str) -> Callable[[torch.device, torch.dtype], Iterator[Sample]]:
    """Of a loss without a scale."""

    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        to_target = _TARGETS.get(name, lambda x: x)
        for label, output, target in _layouts(device, dtype):
            yield Sample(label, (output, to_target(target)))
        for options in _options(device, dtype):
            output, target = (_normal(device, dtype, 3, 2, 2, 3) for _ in range(2))
            yield Sample(_label("rank 4", options), (output, to_target(target)), options)
        output, target = _normal(device, dtype, 4, 6, scale=30.0), _normal(device, dtype, 4, 6)
        yield Sample("far from the target", (output, to_target(target)))

    return samples


def _scaled_samples(
    name: str, scale: str, fixed: str, center: float
) -> Callable[[torch.device, torch.dtype], Iterator[Sample]]:
    """Of a loss with a scale: `center` is about where its logarithm lies, `scale` and `fixed` its arguments' names."""

    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        to_target = _TARGETS.get(name, lambda x: x)

        def near(target: Tensor) -> Tensor:  # about as far from the target as the scale is wide
            return target.to(dtype) + math.exp(center) * _normal(device, dtype, *target.shape)

        def log_scale(*shape: int) -> Tensor:
            return center + _normal(device, dtype, *shape, scale=0.4)

        for number, (label, output, noise) in enumerate(_layouts(device, dtype)):
            target = to_target(noise)
            if label == "expanded":
                target = to_target(output + math.exp(center) * noise)
            else:
                output.copy_(near(target))
            if number % 3 == 0:
                yield (
                    Sample(f"{label}, packed", (torch.cat((output, log_scale(*output.shape)), 1), target))
                    if (output.dim() > 1)
                    else Sample(label, (output, target), {scale: log_scale(*output.shape)})
                )
            elif number % 3 == 1:
                yield Sample(label, (output, target), {scale: log_scale(*output.shape)})
            else:
                yield Sample(f"{label}, one learned scale", (output, target), {scale: log_scale()})
        for number, options in enumerate(_options(device, dtype)):
            target = to_target(_normal(device, dtype, 3, 2, 2, 3))
            output, label = near(target), _label("rank 4", options)
            if number % 2:
                yield Sample(label, (output, target), {scale: log_scale(), **options})
            else:
                packed = torch.cat((output, log_scale(*output.shape)), 1)
                yield Sample(f"{label}, packed", (packed, target), options)
        target = to_target(_normal(device, dtype, 2, 3, 2, 2))
        packed = torch.cat((near(target), log_scale(*target.shape)), 1).contiguous(memory_format=torch.channels_last)
        yield Sample("packed channels_last", (packed, target))
        mean, spread = packed.chunk(2, 1)
        yield Sample("channels_last halves", (mean, target), {scale: spread})
        yield Sample("scale per channel", (near(target), target), {scale: log_scale(3, 1, 1)})
        if dtype != torch.float64:
            other = torch.bfloat16 if dtype == torch.float32 else torch.float32
            yield Sample("scale of another dtype", (near(target), target), {scale: log_scale().to(other)})
        yield Sample("fixed scale", (near(target), target), {fixed: math.exp(center)})
        bound = {"min_logvar" if scale == "logvar" else "min_log_scale": center}
        yield Sample("at the lower bound", (near(target), target), {scale: log_scale(*target.shape), **bound})

    return samples


# Calls that must raise.


def _bad_calls(op: Callable[..., Any], scale: str = "", fixed: str = "") -> Callable[[], Iterator[BadCall]]:
    def bad() -> Iterator[BadCall]:
        x, given = torch.zeros(2, 4), {fixed: 1.0} if fixed else {}

        def call(*args: Any, **kwargs: Any) -> Callable[[], Any]:
            return lambda: op(*args, **{**given, **kwargs})

        yield BadCall("not a tensor", call([1.0], x), TypeError, ("output", "list", "tensor"))
        yield BadCall("integers", call(x.int(), x), TypeError, ("output", "int32", "float32"))
        yield BadCall("integer target", call(x, x.int()), TypeError, ("target", "int32", "float32"))
        yield BadCall("shapes", call(x, x[:, :3]), ValueError, ("target", "(2, 3)", "(2, 4)"))
        yield BadCall("devices", call(x, x.to("meta")), ValueError, ("target", "meta", "cpu"))
        yield BadCall("no dimension", call(x[0, 0], x[0, 0]), ValueError, ("output", "0-d"))
        yield BadCall("reduction", call(x, x, reduction="total"), ValueError, ("reduction", "total", "batchmean"))
        yield BadCall("weight's shape", call(x, x, weight=x[:, :3]), ValueError, ("weight", "(2, 3)", "(2, 4)"))
        yield BadCall("weight per sample", call(x, x, weight=x[:, 0]), ValueError, ("weight", "(2,)", "(2, 4)"))
        yield BadCall("boolean weight", call(x, x, weight=x > 0), TypeError, ("weight", "bool", "floating"))
        yield BadCall("integer mask", call(x, x, mask=x.long()), TypeError, ("mask", "int64", "boolean"))
        yield BadCall("mask's rank", call(x, x, mask=x[None]), ValueError, ("mask", "(1, 2, 4)", "(2, 4)"))
        yield BadCall("mask's device", call(x, x, mask=x.to("meta")), ValueError, ("mask", "meta", "cpu"))
        if not scale:
            return
        bound = "min_logvar" if scale == "logvar" else "min_log_scale"
        yield BadCall("both scales", call(x, x, **{scale: x}), ValueError, (fixed, scale, "one of the two"))
        yield BadCall("odd channels", lambda: op(x[:, :3], x), ValueError, ("output", "(2, 3)", "even", scale))
        yield BadCall("packed vector", lambda: op(x[0], x[0]), ValueError, ("output", "(4,)", scale, fixed))
        yield BadCall("packed target", lambda: op(x, x), ValueError, ("target", "(2, 4)", "(2, 2)"))
        for value in (0.0, -1.0, float("inf"), float("nan")):
            yield BadCall(f"scale {value}", call(x, x, **{fixed: value}), ValueError, (fixed, str(value), "finite"))
        yield BadCall("scale in words", call(x, x, **{fixed: "1"}), TypeError, (fixed, "str", "number"))
        shape = lambda: op(x, x, **{scale: x[:, :3]})  # noqa: E731
        yield BadCall("log-scale's shape", shape, ValueError, (scale, "(2, 3)", "(2, 4)"))
        yield BadCall("log-scale's type", lambda: op(x, x, **{scale: -1.0}), TypeError, (scale, "float", "tensor"))
        yield BadCall("bound", call(x, x, **{bound: "low"}), TypeError, (bound, "str", "number"))

    return bad


def _bad_bernoulli_nll() -> Iterator[BadCall]:
    yield from _bad_calls(ops.bernoulli_nll)()
    x = torch.tensor([[0.5, 1.5]])
    yield BadCall("target", lambda: ops.bernoulli_nll(x, x, validate=True), ValueError, ("target", "1.5", "[0, 1]"))


def _bad_discretized_logistic_nll() -> Iterator[BadCall]:
    op: Any = ops.discretized_logistic_nll
    x = torch.tensor([[0.5, -1.5]])
    yield from _bad_calls(op, "log_scale", "scale")()
    yield BadCall("one bin", lambda: op(x, x, scale=1.0, bins=1), ValueError, ("bins", "1", "2"))
    yield BadCall("half a bin", lambda: op(x, x, scale=1.0, bins=2.5), TypeError, ("bins", "float", "integer"))
    yield BadCall("pixel", lambda: op(x, x, scale=1.0, validate=True), ValueError, ("target", "-1.5", "[-1, 1]"))


# Workloads and what an ideal kernel would do on them.


def _workloads(
    name: str, scale: str = "", fixed: str = "", center: float = 0.0, *, on_gpu: bool = False
) -> tuple[Workload, ...]:
    to_target = _TARGETS.get(name, lambda x: x)

    def workload(label: str, *shape: int, form: str = "") -> Workload:
        def make(device: torch.device, dtype: torch.dtype) -> Sample:
            target = to_target(torch.randn(shape, device=device)).to(dtype)
            output = target + math.exp(center) * torch.randn(shape, device=device).to(dtype)
            if form == "packed":
                return Sample(label, (torch.cat((output, torch.full_like(output, center)), 1), target))
            kwargs: dict[str, dict[str, Any]] = {
                "fixed": {fixed: math.exp(center)},
                "one": {scale: torch.tensor(center, device=device)},
            }
            return Sample(label, (output, target), kwargs.get(form, {}))

        return Workload(label, make)

    if on_gpu:
        form = "packed" if scale else ""
        label = "beyond the cache [1024, 3, 128, 128]"
        return (workload(f"{label}, packed" if scale else label, 1024, 3, 128, 128, form=form),)
    if not scale:
        return (
            workload("images [256, 3, 64, 64]", 256, 3, 64, 64),
            workload("MNIST [128, 784]", 128, 784),
            workload("small [64, 10]", 64, 10),
        )
    return (
        workload("images [256, 3, 64, 64], packed", 256, 3, 64, 64, form="packed"),
        workload("images [256, 3, 64, 64], one learned scale", 256, 3, 64, 64, form="one"),
        workload("images [256, 3, 64, 64], fixed scale", 256, 3, 64, 64, form="fixed"),
        workload("small [64, 10], packed", 64, 10, form="packed"),
    )


def _bytes(*differentiable: int | str) -> Callable[[Sample, bool], int]:
    """Inputs read once; backward reads them again and writes the gradients."""

    def count(sample: Sample, backward: bool) -> int:
        size = sum(t.numel() * t.element_size() for t in sample.tensors())
        grads = (sample.get(which) for which in differentiable)
        return size + backward * sum(g.numel() * g.element_size() for g in grads if isinstance(g, Tensor))

    return count


def _flops(forward: int, backward: int) -> Callable[[Sample, bool], int]:
    return lambda sample, is_backward: sample.args[1].numel() * (backward if is_backward else forward)


def _kept(sample: Sample) -> int:
    """Weight and mask, where both are given, become one tensor; a "mean" over a mask keeps its count."""
    both = sample.get("weight") is not None and sample.get("mask") is not None
    return 64 + both * sample.args[1].numel() * 8


def _register(
    op: Callable[..., Any],
    eager: Callable[..., Any],
    summary: str,
    flops: tuple[int, int],
    bad_calls: Callable[[], Iterator[BadCall]],
    scale: tuple[str, str, float] | None = None,
) -> None:
    name = op.__name__
    differentiable = (0, scale[0]) if scale else (0,)
    register(
        OpSpec(
            name=name,
            family="reconstruction",
            summary=summary,
            public=op,
            eager=eager,
            gradient_order=2,
            dispatcher_ops=(
                "reconstruction",
                "reconstruction_backward",
                "reconstruction_with_gradient",
                "reconstruction_double_backward",
            ),
            differentiable=differentiable,
            samples=_scaled_samples(name, *scale) if scale else _samples(name),
            bad_calls=bad_calls,
            workloads=_workloads(name, *(scale or ())),
            gpu_workloads=_workloads(name, *(scale or ()), on_gpu=True),
            bytes_moved=_bytes(*differentiable),
            flops=_flops(*flops),
            modules=("ReconstructionLoss",),
            kept_bytes=_kept,
        )
    )


_register(
    ops.bernoulli_nll,
    _eager_loss(F.binary_cross_entropy_with_logits),
    "Bernoulli negative log-likelihood from logits",
    (8, 6),
    _bad_bernoulli_nll,
)
_register(
    ops.gaussian_nll,
    eager_gaussian_nll,
    "Gaussian negative log-likelihood; variance per element, learned as one number, or fixed",
    (6, 8),
    _bad_calls(ops.gaussian_nll, "logvar", "sigma"),
    ("logvar", "sigma", -1.0),
)
_register(
    ops.laplace_nll,
    eager_laplace_nll,
    "Laplace negative log-likelihood; scale per element, learned as one number, or fixed",
    (5, 6),
    _bad_calls(ops.laplace_nll, "log_scale", "scale"),
    ("log_scale", "scale", -1.0),
)
_register(
    ops.discretized_logistic_nll,
    eager_discretized_logistic_nll,
    "logistic integrated over pixel bins, edge bins to infinity, exact in the tails",
    (22, 24),
    _bad_discretized_logistic_nll,
    ("log_scale", "scale", -3.5),
)
_register(ops.mse, _eager_loss(F.mse_loss), "squared error", (3, 3), _bad_calls(ops.mse))
_register(ops.l1, _eager_loss(F.l1_loss), "absolute error", (3, 3), _bad_calls(ops.l1))
