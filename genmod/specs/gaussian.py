"""Specs of the family `gaussian`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genmod import ops
from genmod.registry import BadCall, OpSpec, Sample, Workload, register

# The ops as people write them.


def _halves(mean: Tensor, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    if logvar is not None:
        return mean, logvar
    mean, logvar = mean.chunk(2, dim=1)
    return mean, logvar


def _eager_clamp(logvar: Tensor, clamp: str) -> Tensor:
    if clamp == "hard":
        return torch.clamp(logvar, -30.0, 20.0)
    if clamp == "soft":
        zero = torch.zeros((), dtype=logvar.dtype, device=logvar.device)
        logvar = 20.0 - torch.logaddexp(20.0 - logvar, zero)
        return -30.0 + torch.logaddexp(logvar + 30.0, zero)
    return logvar


def _eager_reduce(kl: Tensor, free_bits: float, reduction: str) -> Tensor:
    if free_bits > 0:
        kl = torch.clamp(kl, min=free_bits)
    if reduction == "none":
        return kl
    if reduction == "per_dim":
        return kl.mean(0)
    if reduction == "batch":
        return kl.flatten(1).sum(1) if kl.dim() > 1 else kl
    if reduction == "batchmean":
        return kl.sum() / max(kl.shape[0], 1)
    return kl.sum() if reduction == "sum" else kl.mean()


def eager_reparameterize(mean, logvar=None, *, noise=None, generator=None, clamp="none"):
    """`mu + eps * exp(logvar / 2)`."""
    mean, logvar = _halves(mean, logvar)
    noise = torch.randn_like(mean) if noise is None else noise
    return mean + noise * torch.exp(0.5 * _eager_clamp(logvar, clamp))


def eager_gaussian_kl(
    mean, logvar=None, other_mean=None, other_logvar=None, *, free_bits=0.0, reduction="batchmean", clamp="none"
):
    """`-(1 + logvar - mu^2 - exp(logvar)) / 2`, or the same between two Gaussians."""
    mean, logvar = _halves(mean, logvar)
    logvar = _eager_clamp(logvar, clamp)
    if other_mean is None:
        return _eager_reduce(-0.5 * (1 + logvar - mean.pow(2) - logvar.exp()), free_bits, reduction)
    other_mean, other_logvar = _halves(other_mean, other_logvar)
    other_logvar = _eager_clamp(other_logvar, clamp)
    ratio = ((mean - other_mean).pow(2) + logvar.exp()) / other_logvar.exp()
    return _eager_reduce(0.5 * (other_logvar - logvar - 1 + ratio), free_bits, reduction)


def eager_sample_kl(
    mean, logvar=None, *, free_bits=0.0, noise=None, generator=None, reduction="batchmean", clamp="none"
):
    """The two above, one after the other."""
    z = eager_reparameterize(mean, logvar, noise=noise, clamp=clamp)
    return z, eager_gaussian_kl(mean, logvar, free_bits=free_bits, reduction=reduction, clamp=clamp)


# Samples: what the test battery runs.


def _tensors(device: torch.device, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    # Drawn in float64, so that every dtype sees the same numbers up to rounding.
    return (scale * torch.randn(*shape, dtype=torch.float64)).to(device, dtype)


def _pairs(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Means and log-variances of every size, rank and layout that matters."""

    def t(*shape: int, scale: float = 1.0) -> Tensor:
        return _tensors(device, dtype, *shape, scale=scale)

    yield "matrix", t(6, 5), t(6, 5, scale=0.7)
    yield "vector", t(7), t(7)
    yield "one element", t(1, 1), t(1, 1)
    yield "empty batch", t(0, 5), t(0, 5)
    yield "empty event", t(3, 0), t(3, 0)
    yield "primes", t(13, 11, 3), t(13, 11, 3)
    yield "several chunks", t(5, 509), t(5, 509)
    yield "rank 4", t(2, 3, 4, 5), t(2, 3, 4, 5)
    yield "rank 5", t(2, 3, 2, 3, 2), t(2, 3, 2, 3, 2)
    yield "packed", t(3, 10), None
    yield "packed rank 4", t(2, 6, 3, 5), None
    channels_last = t(2, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    yield "packed channels_last", channels_last, None
    yield "channels_last", channels_last[:, :3].contiguous(memory_format=torch.channels_last), t(2, 3, 3, 5)
    mean, logvar = channels_last.chunk(2, 1)
    yield "channels_last halves", mean, logvar
    yield "packed channels_last_3d", t(2, 4, 2, 3, 2).contiguous(memory_format=torch.channels_last_3d), None
    mean, logvar = t(4, 14).chunk(2, 1)
    yield "halves of one tensor", mean, logvar
    yield "slice with offset", t(9, 8)[2:7, 1:6], t(9, 8)[2:7, 3:8]
    yield "every other column", t(4, 12)[:, ::2], t(4, 6)
    yield "every other channel", t(2, 6, 3, 3).contiguous(memory_format=torch.channels_last)[:, ::2], t(2, 3, 3, 3)
    yield "permuted", t(5, 6).t(), t(6, 5)
    yield "expanded", t(1, 5).expand(6, 5), t(6, 1).expand(6, 5)
    yield "far from the prior", t(4, 9, scale=30.0), t(4, 9, scale=8.0)
    yield "close to the prior", t(4, 9, scale=1e-3), t(4, 9, scale=1e-3)
    yield "beyond the clamp", t(4, 9), t(4, 9, scale=25.0)
    yield "at the lower clamp", t(4, 9), t(4, 9) - 30


def _noise_like(mean: Tensor, logvar: Tensor | None) -> Tensor:
    shape = list(mean.shape)
    if logvar is None:
        shape[1] //= 2
    return _tensors(mean.device, mean.dtype, *shape)


def _clamp_for(name: str) -> tuple[str, ...]:
    # Without a clamp e^l overflows half precision there, in every implementation.
    return ("hard", "soft") if name.endswith("clamp") else ("none",)


def _reparameterize_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mean, logvar in _pairs(device, dtype):
        for clamp in _clamp_for(name):
            yield Sample(f"{name}, {clamp}", (mean, logvar), {"noise": _noise_like(mean, logvar), "clamp": clamp})


def _kl_options(name: str) -> Iterator[dict[str, object]]:
    for clamp in _clamp_for(name):
        yield {"clamp": clamp}
    if name in ("matrix", "rank 4", "packed channels_last", "several chunks", "vector", "empty batch"):
        for reduction in ("none", "per_dim", "batch", "mean", "sum"):
            yield {"reduction": reduction}
        yield {"free_bits": 0.3}
        yield {"free_bits": 0.3, "reduction": "batch", "clamp": "soft"}


def _label(name: str, options: dict[str, object]) -> str:
    return ", ".join([name, *(f"{k}={v}" for k, v in options.items())])


def _sample_kl_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mean, logvar in _pairs(device, dtype):
        for options in _kl_options(name):
            yield Sample(_label(name, options), (mean, logvar), {"noise": _noise_like(mean, logvar), **options})


def _gaussian_kl_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, mean, logvar in _pairs(device, dtype):
        for options in _kl_options(name):
            yield Sample(_label(name, options), (mean, logvar), options)
            if name == "far from the prior":
                continue  # (mean - mean')^2 / e^logvar' leaves half precision's range
            second = _noise_like(mean, logvar), _noise_like(mean, logvar) * 0.5
            yield Sample(_label(f"{name}, second Gaussian", options), (mean, logvar, *second), options)
            if mean.dim() > 1:
                packed = torch.cat(second, 1)
                yield Sample(_label(f"{name}, packed second", options), (mean, logvar, packed), options)


# Calls that must raise.


def _bad_gaussians(op) -> Iterator[BadCall]:
    x = torch.zeros(2, 4)
    yield BadCall("not a tensor", lambda: op([1.0], x), TypeError, ("mean", "list", "tensor"))
    yield BadCall("integers", lambda: op(x.int(), x.int()), TypeError, ("mean", "int32", "float32"))
    yield BadCall("shapes", lambda: op(x, x[:, :3]), ValueError, ("logvar", "(2, 3)", "(2, 4)"))
    yield BadCall("dtypes", lambda: op(x, x.double()), TypeError, ("logvar", "float64", "float32"))
    yield BadCall("devices", lambda: op(x, x.to("meta")), ValueError, ("logvar", "meta", "cpu"))
    yield BadCall("odd channels", lambda: op(torch.zeros(2, 5)), ValueError, ("mean", "(2, 5)", "even"))
    yield BadCall("packed vector", lambda: op(torch.zeros(4)), ValueError, ("mean", "(4,)", "logvar"))
    yield BadCall("no dimension", lambda: op(torch.zeros(()), torch.zeros(())), ValueError, ("mean", "0-d"))
    yield BadCall("sparse", lambda: op(x.to_sparse(), x), TypeError, ("mean", "sparse", "dense"))
    yield BadCall("clamp", lambda: op(x, x, clamp="tight"), ValueError, ("clamp", "tight", "soft"))


def _bad_noise(op) -> Iterator[BadCall]:
    x = torch.zeros(2, 4)
    yield BadCall("noise shape", lambda: op(x, x, noise=x[:1]), ValueError, ("noise", "(1, 4)", "(2, 4)"))
    yield BadCall("noise dtype", lambda: op(x, x, noise=x.half()), TypeError, ("noise", "float16", "float32"))
    yield BadCall("both", lambda: op(x, x, noise=x, generator=torch.Generator()), ValueError, ("generator", "noise"))


def _bad_kl_options(op) -> Iterator[BadCall]:
    x = torch.zeros(2, 4)
    yield BadCall("negative free bits", lambda: op(x, x, free_bits=-1.0), ValueError, ("free_bits", "-1.0", ">= 0"))
    yield BadCall("NaN free bits", lambda: op(x, x, free_bits=float("nan")), ValueError, ("free_bits", "nan"))
    yield BadCall("free bits in words", lambda: op(x, x, free_bits="2"), TypeError, ("free_bits", "str", "number"))
    yield BadCall("reduction", lambda: op(x, x, reduction="total"), ValueError, ("reduction", "total", "batchmean"))


def _bad_reparameterize() -> Iterator[BadCall]:
    yield from _bad_gaussians(ops.reparameterize)
    yield from _bad_noise(ops.reparameterize)


def _bad_gaussian_kl() -> Iterator[BadCall]:
    x, op = torch.zeros(2, 4), ops.gaussian_kl
    yield from _bad_gaussians(op)
    yield from _bad_kl_options(op)
    yield BadCall("lone other_logvar", lambda: op(x, x, None, x), ValueError, ("other_mean", "other_logvar"))
    yield BadCall("other shape", lambda: op(x, x, x[:1], x[:1]), ValueError, ("other_mean", "(1, 4)", "(2, 4)"))
    yield BadCall("other not packed", lambda: op(x, x, x), ValueError, ("other_mean", "(2, 4)", "(2, 8)"))
    yield BadCall("other dtype", lambda: op(x, x, x.double(), x.double()), TypeError, ("other_mean", "float64"))


def _bad_sample_kl() -> Iterator[BadCall]:
    yield from _bad_gaussians(ops.sample_kl)
    yield from _bad_noise(ops.sample_kl)
    yield from _bad_kl_options(ops.sample_kl)


# Workloads and what an ideal kernel would do on them.


def _workload(name: str, *shape: int, noise: bool = False, second: bool = False) -> Workload:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        mean, logvar, other = (torch.randn(shape, device=device).to(dtype) for _ in range(3))
        args = (mean, 0.3 * logvar, other, 0.3 * other) if second else (mean, 0.3 * logvar)
        return Sample(name, args, {"noise": other} if noise else {})

    return Workload(name, make)


def _both_noises(name: str, *shape: int) -> tuple[Workload, Workload]:
    return _workload(f"{name}, noise given", *shape, noise=True), _workload(f"{name}, noise drawn", *shape)


_SAMPLING = (
    *_both_noises("large batch [4096, 512]", 4096, 512),
    *_both_noises("small VAE [128, 32]", 128, 32),
    *_both_noises("SD latent [8, 4, 64, 64]", 8, 4, 64, 64),
    *_both_noises("NVAE scale [16, 20, 32, 32]", 16, 20, 32, 32),
)
_DIVERGENCE_ON_GPU = (_workload("beyond the cache [65536, 512]", 65536, 512),)
_SAMPLING_ON_GPU = _both_noises("beyond the cache [65536, 512]", 65536, 512)
_DIVERGENCE = (
    _workload("large batch [4096, 512]", 4096, 512),
    _workload("small VAE [128, 32]", 128, 32),
    _workload("two Gaussians [4096, 512]", 4096, 512, second=True),
    _workload("two Gaussians, NVAE scale [16, 20, 32, 32]", 16, 20, 32, 32, second=True),
)


def _bytes(outputs: int, *, loss_only: bool = False):
    """Inputs read once and `outputs` written forward; backward reads inputs and grad_z and writes input gradients."""

    def count(sample: Sample, backward: bool) -> int:
        inputs = sample.tensors()
        size = sum(t.numel() * t.element_size() for t in inputs)
        latent = sample.args[0].numel() * sample.args[0].element_size()
        if not backward:
            return size + outputs * latent
        grads = sum(t.numel() * t.element_size() for t in sample.args if isinstance(t, Tensor))
        return size + (0 if loss_only else latent) + grads

    return count


def _flops(forward: int, backward: int):
    def count(sample: Sample, is_backward: bool) -> int:
        return sample.args[0].numel() * (backward if is_backward else forward)

    return count


register(
    OpSpec(
        name="reparameterize",
        family="gaussian",
        summary="z = mean + exp(logvar/2) * noise; noise drawn in the kernel and again in backward, never stored",
        public=ops.reparameterize,
        eager=eager_reparameterize,
        gradient_order=2,
        dispatcher_ops=("reparameterize", "reparameterize_backward", "sample_kl_double_backward"),
        differentiable=(0, 1),
        samples=_reparameterize_samples,
        bad_calls=_bad_reparameterize,
        workloads=_SAMPLING,
        gpu_workloads=_SAMPLING_ON_GPU,
        bytes_moved=_bytes(1),
        flops=_flops(4, 5),
        modules=("DiagonalGaussian",),
    )
)
register(
    OpSpec(
        name="gaussian_kl",
        family="gaussian",
        summary="KL to the standard normal or to a second Gaussian, with free bits, exact near the prior",
        public=ops.gaussian_kl,
        eager=eager_gaussian_kl,
        gradient_order=2,
        dispatcher_ops=("gaussian_kl", "gaussian_kl_backward", "sample_kl_double_backward"),
        differentiable=(0, 1, 2, 3),
        samples=_gaussian_kl_samples,
        bad_calls=_bad_gaussian_kl,
        workloads=_DIVERGENCE,
        gpu_workloads=_DIVERGENCE_ON_GPU,
        bytes_moved=_bytes(0, loss_only=True),
        flops=_flops(6, 5),
        modules=("DiagonalGaussian",),
    )
)
register(
    OpSpec(
        name="sample_kl",
        family="gaussian",
        summary="both of the above in one pass over the inputs forward and one backward",
        public=ops.sample_kl,
        eager=eager_sample_kl,
        gradient_order=2,
        dispatcher_ops=("sample_kl", "sample_kl_backward", "sample_kl_double_backward"),
        differentiable=(0, 1),
        samples=_sample_kl_samples,
        bad_calls=_bad_sample_kl,
        workloads=_SAMPLING,
        gpu_workloads=_SAMPLING_ON_GPU,
        bytes_moved=_bytes(1),
        flops=_flops(9, 9),
        modules=("GaussianSampler",),
    )
)
