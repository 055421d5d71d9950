"""Specs of the family `aggregate`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register

# The ops as people write them.


def _log_density(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean).pow(2) * torch.exp(-logvar))


def eager_total_correlation(z, mean, logvar, *, dataset_size, estimator="mss"):
    """The usual batch x batch x latent tensor, with the weights put right."""
    batch = z.shape[0]
    log_q = _log_density(z[:, None], mean, logvar)
    if estimator == "mws":
        weights = torch.full((batch, batch), 1 / (dataset_size * batch), dtype=log_q.dtype, device=z.device)
    else:
        others, i = batch - 1, torch.arange(batch, device=z.device)
        weights = torch.full((batch, batch), 1 / others, dtype=log_q.dtype, device=z.device)
        weights[i, (i + 1) % batch] = (dataset_size - others) / (dataset_size * others)
        weights[i, i] = 1 / dataset_size
    weights = weights.log()
    joint = torch.logsumexp(log_q.sum(2) + weights, 1)
    marginals = torch.logsumexp(log_q + weights[:, :, None], 1).sum(1)
    posterior = _log_density(z, mean, logvar).sum(1)
    prior = _log_density(z, torch.zeros_like(z), torch.zeros_like(z)).sum(1)
    terms = (posterior - joint).mean(), (joint - marginals).mean(), (marginals - prior).mean()
    return tuple(t.float() if t.dtype != torch.float64 else t for t in terms)


def _eager_kernel(x: Tensor, y: Tensor, kernel: str, width: float) -> Tensor:
    squares = (x[:, None] - y).pow(2).sum(2)
    return width / (width + squares) if kernel == "imq" else torch.exp(-squares / width)


def eager_mmd(x, y, *, kernel="imq", scales=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), unbiased=True):
    """A loop over scales, with three kernel matrices each."""
    n, m, total = x.shape[0], y.shape[0], x.new_zeros(())
    for scale in scales:
        width = 2 * max(x.shape[1], 0.5) * scale
        xx, yy, xy = (_eager_kernel(a, b, kernel, width) for a, b in ((x, x), (y, y), (x, y)))
        if unbiased:
            of_x, of_y = xx.sum() - xx.diagonal().sum(), yy.sum() - yy.diagonal().sum()
            total = total + of_x / (n * (n - 1)) + of_y / (m * (m - 1)) - 2 * xy.mean()
        else:
            total = total + xx.mean() + yy.mean() - 2 * xy.mean()
    return total.float() if total.dtype != torch.float64 else total


def eager_dip(mean, logvar=None, *, kind="i", lambda_od=10.0, lambda_d=None):
    """Covariance from the second moment, as the paper's code has it."""
    if lambda_d is None:
        lambda_d = 10 * lambda_od if kind == "i" else lambda_od
    average = mean.mean(0)
    covariance = mean.t() @ mean / mean.shape[0] - average[:, None] * average
    if kind == "ii":
        covariance = covariance + torch.diag(logvar.exp().mean(0))
    diagonal = torch.diagonal(covariance)
    off_diagonal = covariance - torch.diag(diagonal)
    penalty = lambda_od * off_diagonal.pow(2).sum() + lambda_d * (diagonal - 1).pow(2).sum()
    return penalty.float() if penalty.dtype != torch.float64 else penalty


# Samples.


def _tensors(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    # Drawn in float64, so that every dtype sees the same numbers up to rounding.
    return (scale * torch.randn(*shape, dtype=torch.float64)).to(device, dtype)


def _total_correlation_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def t(*shape: int, scale: float = 1.0) -> Tensor:
        return _tensors(device, dtype, *shape, scale=scale)

    def drawn(mean: Tensor, logvar: Tensor) -> Tensor:
        return (mean.double() + (0.5 * logvar.double()).exp() * t(*mean.shape).double()).to(dtype)

    def sample(name: str, z: Tensor, mean: Tensor, logvar: Tensor, size: int, estimator: str) -> Sample:
        return Sample(f"{name}, {estimator}", (z, mean, logvar), {"dataset_size": size, "estimator": estimator})

    for estimator in ("mss", "mws"):
        mean, logvar = t(6, 5), t(6, 5, scale=0.7)
        yield sample("matrix", drawn(mean, logvar), mean, logvar, 100, estimator)
        yield sample("two samples", t(2, 3), t(2, 3), t(2, 3), 2, estimator)
        yield sample("the whole dataset", t(7, 3), t(7, 3), t(7, 3), 7, estimator)
        yield sample("odd", t(5, 3), t(5, 3), t(5, 3), 50, estimator)
        yield sample("empty latent", t(4, 0), t(4, 0), t(4, 0), 9, estimator)
        yield sample("slice with offset", t(9, 8)[2:7, 1:6], t(9, 8)[2:7, 3:8], t(5, 5), 1000, estimator)
        yield sample("permuted", t(5, 6).t(), t(6, 5), t(12, 5)[::2], 64, estimator)
    yield sample("several tiles", t(67, 3), t(67, 3), t(67, 3, scale=0.5), 5000, "mss")
    yield sample("wide", t(5, 37), t(5, 37), t(5, 37, scale=0.5), 5000, "mss")
    yield sample("expanded", t(6, 4), t(1, 4).expand(6, 4), t(6, 1).expand(6, 4), 60, "mss")
    yield sample("a million", t(6, 4, scale=0.1), t(6, 4), t(6, 4) - 1, 10**6, "mss")
    yield sample("far from the prior", t(6, 4, scale=9.0), t(6, 4, scale=9.0), t(6, 4, scale=3.0), 60, "mss")


def _mmd_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def t(*shape: int, scale: float = 1.0) -> Tensor:
        return _tensors(device, dtype, *shape, scale=scale)

    for kernel in ("imq", "rbf"):
        for unbiased in (True, False):
            options = {"kernel": kernel, "unbiased": unbiased}
            label = f"{kernel}, {'unbiased' if unbiased else 'biased'}"
            yield Sample(f"matrix, {label}", (t(6, 5), t(6, 5) + 1), options)
            yield Sample(f"unequal, {label}", (t(7, 3), t(4, 3)), {**options, "scales": (0.5, 2)})
            yield Sample(f"empty latent, {label}", (t(4, 0), t(3, 0)), options)
            yield Sample(f"strides, {label}", (t(9, 8)[2:7, 1:6], t(5, 6).t()), {**options, "scales": [1.0]})
        far = t(5, 3) + 100.0
        twins = torch.cat((t(3, 4), t(1, 4).expand(3, 4)))
        yield Sample(f"coinciding points, {kernel}", (twins, twins[2:].clone()), {"kernel": kernel})
        yield Sample(f"far from the origin, {kernel}", (far, far.flip(0) + t(5, 3)), {"kernel": kernel})
        yield Sample(f"several tiles, {kernel}", (t(67, 2), t(5, 2)), {"kernel": kernel, "scales": (0.1, 1.0, 3.0)})
    yield Sample("wide", (t(3, 41), t(5, 41)), {})
    yield Sample("expanded", (t(1, 4).expand(5, 4), t(6, 4)), {"unbiased": False})
    yield Sample("one point each", (t(1, 4), t(1, 4)), {"unbiased": False})


def _dip_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def t(*shape: int, scale: float = 1.0) -> Tensor:
        return _tensors(device, dtype, *shape, scale=scale)

    for kind in ("i", "ii"):

        def sample(name: str, mean: Tensor, logvar: Tensor, kind: str = kind, **factors: float) -> Sample:
            return Sample(f"{name}, {kind}", (mean, logvar if kind == "ii" else None), {"kind": kind, **factors})

        yield sample("matrix", t(6, 5), t(6, 5, scale=0.7))
        yield sample("factors", t(6, 5), t(6, 5), lambda_od=3.0, lambda_d=0.5)
        yield sample("one sample", t(1, 3), t(1, 3))
        yield sample("one dimension", t(5, 1), t(5, 1))
        yield sample("empty latent", t(4, 0), t(4, 0))
        yield sample("strides", t(9, 8)[2:7, 1:6], t(5, 5).t(), lambda_d=1)
        yield sample("expanded", t(6, 4), t(1, 4).expand(6, 4), lambda_od=0.0)
        yield sample("several parts", t(70, 3), t(70, 3))
        yield sample("several tiles", t(5, 70), t(5, 70))


# Calls that must raise.


def _bad_pair(op, first: str, second: str) -> Iterator[BadCall]:
    x = torch.zeros(4, 3)
    yield BadCall("not a tensor", lambda: op([1.0], x), TypeError, (first, "list", "tensor"))
    yield BadCall("integers", lambda: op(x.int(), x.int()), TypeError, (first, "int32", "float32"))
    yield BadCall("a vector", lambda: op(x[0], x[0]), ValueError, (first, "(3,)", "matrix"))
    yield BadCall("shapes", lambda: op(x, x[:, :2]), ValueError, (second, "(4, 2)", "(4, 3)"))
    yield BadCall("dtypes", lambda: op(x, x.double()), TypeError, (second, "float64", "float32"))
    yield BadCall("devices", lambda: op(x, x.to("meta")), ValueError, (second, "meta", "cpu"))


def _bad_total_correlation() -> Iterator[BadCall]:
    x = torch.zeros(4, 3)

    def call(z=x, mean=x, logvar=x, size=50, estimator="mss"):
        return lambda: ops.total_correlation(z, mean, logvar, dataset_size=size, estimator=estimator)

    yield from _bad_pair(lambda z, mean: call(z, mean)(), "z", "mean")
    yield BadCall("logvar shape", call(logvar=x[:2]), ValueError, ("logvar", "(2, 3)", "(4, 3)"))
    yield BadCall("small dataset", call(size=3), ValueError, ("dataset_size", "3", "4"))
    yield BadCall("no dataset", call(size=0), ValueError, ("dataset_size", "0", "1"))
    yield BadCall("dataset in halves", call(size=50.5), TypeError, ("dataset_size", "float", "integer"))
    yield BadCall("estimator", call(estimator="mc"), ValueError, ("estimator", "mc", "mss", "mws"))
    yield BadCall("one sample", call(x[:1], x[:1], x[:1]), ValueError, ("z", "1", "2", "mss"))
    yield BadCall("no sample", call(x[:0], x[:0], x[:0], estimator="mws"), ValueError, ("z", "0", "mws"))


def _bad_mmd() -> Iterator[BadCall]:
    op: Any = ops.mmd
    x = torch.zeros(4, 3)
    yield from _bad_pair(op, "x", "y")
    yield BadCall("kernel", lambda: op(x, x, kernel="linear"), ValueError, ("kernel", "linear", "imq", "rbf"))
    yield BadCall("no scale", lambda: op(x, x, scales=()), ValueError, ("scales", "at least one"))
    yield BadCall("a number", lambda: op(x, x, scales=1.0), TypeError, ("scales", "float", "sequence"))
    yield BadCall("zero scale", lambda: op(x, x, scales=(1.0, 0.0)), ValueError, ("scales", "0.0", "> 0"))
    yield BadCall("negative scale", lambda: op(x, x, scales=(-1.0,)), ValueError, ("scales", "-1.0", "> 0"))
    yield BadCall("NaN scale", lambda: op(x, x, scales=(float("nan"),)), ValueError, ("scales", "nan"))
    yield BadCall("scale in words", lambda: op(x, x, scales=["big"]), TypeError, ("scales", "str", "numbers"))
    yield BadCall("one point", lambda: op(x, x[:1]), ValueError, ("y", "1", "2", "unbiased"))
    yield BadCall("no point", lambda: op(x[:0], x, unbiased=False), ValueError, ("x", "0", "1", "biased"))


def _bad_dip() -> Iterator[BadCall]:
    op: Any = ops.dip
    x = torch.zeros(4, 3)
    yield from _bad_pair(lambda mean, logvar: op(mean, logvar, kind="ii"), "mean", "logvar")
    yield BadCall("no logvar", lambda: op(x, kind="ii"), ValueError, ("logvar", "None", "'ii'"))
    yield BadCall("kind", lambda: op(x, x, kind="iii"), ValueError, ("kind", "iii", "'ii'"))
    yield BadCall("negative factor", lambda: op(x, x, lambda_od=-1.0), ValueError, ("lambda_od", "-1.0", ">= 0"))
    yield BadCall("factor in words", lambda: op(x, x, lambda_d="2"), TypeError, ("lambda_d", "str", "number"))
    yield BadCall("no sample", lambda: op(x[:0], x[:0]), ValueError, ("mean", "empty", "one sample"))


# Workloads and what an ideal kernel would do on them.


def _total_correlation_workload(batch: int, dims: int, **options: str) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        z, mean, logvar = (torch.randn(batch, dims, device=device).to(dtype) for _ in range(3))
        return Sample("drawn", (mean + 0.6 * z, mean, 0.3 * logvar - 1), {"dataset_size": 60_000, **options})

    return Workload(", ".join((*options.values(), f"[{batch}, {dims}]")), make)


def _mmd_workload(batch: int, dims: int, kernel: str) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        x, y = (torch.randn(batch, dims, device=device).to(dtype) for _ in range(2))
        return Sample("drawn", (x + 0.1, y), {"kernel": kernel})

    return Workload(f"{kernel}, 7 scales [{batch}, {dims}]", make)


def _dip_workload(batch: int, dims: int) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        mean, logvar = (torch.randn(batch, dims, device=device).to(dtype) for _ in range(2))
        return Sample("drawn", (mean, logvar), {"kind": "ii"})

    return Workload(f"ii [{batch}, {dims}]", make)


def _bytes(sample: Sample, backward: bool) -> int:
    """Inputs read once; backward writes their gradients too."""
    size = sum(t.numel() * t.element_size() for t in sample.tensors())
    return 2 * size if backward else size


def _total_correlation_flops(sample: Sample, backward: bool) -> int:
    batch, dims = sample.args[0].shape
    return batch * batch * dims * (13 if backward else 6)


def _mmd_flops(sample: Sample, backward: bool) -> int:
    (n, dims), m = sample.args[0].shape, sample.args[1].shape[0]
    pairs = n * n + m * m + n * m
    return pairs * (dims * (7 if backward else 3) + 3 * len(sample.kwargs.get("scales", range(7))))


def _dip_flops(sample: Sample, backward: bool) -> int:
    batch, dims = sample.args[0].shape
    return batch * dims * dims * (4 if backward else 2)


def _kept_normalizers(sample: Sample) -> int:
    z = sample.args[0]
    return 2 * z.shape[0] * (z.shape[1] + 1) * (8 if z.dtype == torch.float64 else 4)


def _kept_moments(sample: Sample) -> int:
    mean = sample.args[0]
    return (mean.shape[1] + 1) * mean.shape[1] * (8 if mean.dtype == torch.float64 else 4)


def _covariances(sample: Sample) -> tuple[float, float]:
    """What the rounding of a covariance, of the size of its terms, does to the penalty and to the gradients."""
    mean = sample.args[0].detach().double()
    (batch, dims), kind = mean.shape, sample.kwargs["kind"]
    off_diagonal = sample.kwargs.get("lambda_od", 10.0)
    on_diagonal = sample.kwargs.get("lambda_d", off_diagonal * (10 if kind == "i" else 1))
    factors = off_diagonal + (on_diagonal - off_diagonal) * torch.eye(dims, dtype=mean.dtype, device=mean.device)
    centred = mean - mean.mean(0)
    covariance, terms = centred.t() @ centred / batch, centred.t().abs() @ centred.abs() / batch
    # A difference from the average is off by the rounding of what it is a difference of.
    rounding = torch.finfo(torch.float64 if sample.args[0].dtype == torch.float64 else torch.float32).eps
    terms = terms + 16 * rounding * mean.abs().amax() ** 2 if mean.numel() else terms
    variance = torch.diag(sample.args[1].detach().double().exp().mean(0)) if kind == "ii" else torch.zeros_like(terms)
    identity = torch.eye(dims, dtype=mean.dtype, device=mean.device)
    slope, rounded = 2 * factors * (covariance + variance - identity), 2 * factors * (terms + variance + identity)
    # Of the covariance's rounding, and of that of the differences from an average, which is off by a few units in the
    # last place; and by the log-variances.
    terms_of_gradients = centred.abs() @ rounded + 4 * mean.abs() @ (slope.abs() + rounding * rounded)
    if kind == "ii":
        terms_of_gradients = terms_of_gradients + sample.args[1].detach().double().exp() * rounded.diagonal()
    of_gradients = 2 / batch * terms_of_gradients.amax().item() if mean.numel() else 0.0
    of_square = factors * (rounding * terms) ** 2 / rounding  # where the covariance is nothing but rounding
    return (slope.abs() * (terms + variance + identity) + of_square).sum().item(), of_gradients


def _densities(sample: Sample) -> tuple[float, float]:
    """The largest log-density of a sample under its posterior or the prior and the log of its weight, of which results
    are differences; and a sample's part in the gradient of its own log-variance, (eps² - 1) / 2, times a weight, which
    is as exact as the log-density that it is the exponential of."""
    z, mean, logvar = (t.detach().double() for t in sample.args)
    terms = (_log_density(z, mean, logvar), _log_density(z, torch.zeros_like(z), torch.zeros_like(z)))
    density = max(t.abs().sum(1).max().item() for t in terms)
    of_outputs = math.log(sample.kwargs["dataset_size"]) + density
    spread = ((z - mean).square() * (-logvar).exp()).amax().item() if z.numel() else 0.0
    return 2 * of_outputs, (spread + 1) * max(1.0, density / 16) / z.shape[0]


def _kernels(sample: Sample) -> tuple[float, float]:
    """Three means of a kernel, which is at most 1 for each scale; a kernel's slope is below 1 over its length."""
    (n, dims), m = sample.args[0].shape, sample.args[1].shape[0]
    scales = sample.kwargs.get("scales", (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))
    return 3.0 * len(scales), sum(4 / math.sqrt(2 * max(dims, 1) * s) for s in scales) / min(n, m)


register(
    OpSpec(
        name="total_correlation",
        family="aggregate",
        summary="mutual information, total correlation, dimension-wise KL (MSS or MWS) without a B x B x D tensor",
        public=ops.total_correlation,
        eager=eager_total_correlation,
        gradient_order=2,
        dispatcher_ops=("total_correlation", "total_correlation_backward"),
        differentiable=(0, 1, 2),
        samples=_total_correlation_samples,
        bad_calls=_bad_total_correlation,
        workloads=(
            _total_correlation_workload(1024, 64),
            _total_correlation_workload(256, 32),
            _total_correlation_workload(256, 32, estimator="mws"),
            _total_correlation_workload(64, 10),
        ),
        gpu_workloads=(_total_correlation_workload(2048, 64),),
        bytes_moved=_bytes,
        flops=_total_correlation_flops,
        modules=("TotalCorrelation", "BetaTCVAELoss"),
        kept_bytes=_kept_normalizers,
        magnitude=_densities,
        pointwise=False,
    )
)
register(
    OpSpec(
        name="mmd",
        family="aggregate",
        summary="squared MMD, RBF or inverse multiquadratic, each distance once for all scales",
        public=ops.mmd,
        eager=eager_mmd,
        gradient_order=2,
        dispatcher_ops=("mmd", "mmd_backward"),
        differentiable=(0, 1),
        samples=_mmd_samples,
        bad_calls=_bad_mmd,
        workloads=(
            _mmd_workload(1024, 64, "imq"),
            _mmd_workload(256, 64, "imq"),
            _mmd_workload(64, 10, "imq"),
            _mmd_workload(256, 64, "rbf"),
        ),
        bytes_moved=_bytes,
        flops=_mmd_flops,
        modules=("MMD",),
        magnitude=_kernels,
        pointwise=False,
    )
)
register(
    OpSpec(
        name="dip",
        family="aggregate",
        summary="covariance penalties of DIP-VAE I and II",
        public=ops.dip,
        eager=eager_dip,
        gradient_order=2,
        dispatcher_ops=("dip", "dip_backward"),
        differentiable=(0, 1),
        samples=_dip_samples,
        bad_calls=_bad_dip,
        workloads=(_dip_workload(1024, 64), _dip_workload(64, 10)),
        bytes_moved=_bytes,
        flops=_dip_flops,
        modules=("DIP",),
        kept_bytes=_kept_moments,
        magnitude=_covariances,
        pointwise=False,
    )
)
