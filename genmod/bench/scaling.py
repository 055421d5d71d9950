"""Time and memory as one size grows: batch, channels, resolution or latent dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genmod.registry import OpSpec, Sample, Workload

Make = Callable[..., Sample]


@dataclass(frozen=True)
class Axes:
    """How to make a call of any size, and where on each axis to make one; `base` is what the others stand at."""

    make: Make  # (device, dtype, **sizes)
    base: dict[str, int]
    sizes: dict[str, tuple[int, ...]]


def _draw(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _images(make: Callable[..., Sample], **base: int) -> Axes:
    """`make(draw, batch, channels, resolution)`, from small calls to four times the usual ones."""
    sizes = {
        "batch": (1, 2, 4, 8, 16, 32),
        "channels": (32, 64, 128, 256, 512),
        "resolution": (8, 16, 32, 64, 128),
    }

    def at(device: torch.device, dtype: torch.dtype, batch: int, channels: int, resolution: int) -> Sample:
        return make(lambda *shape: _draw(device, dtype, *shape), batch, channels, resolution)

    return Axes(at, {"batch": 8, "channels": 128, "resolution": 32} | base, sizes)


def _latents(make: Callable[..., Sample], batches: tuple[int, ...], **base: int) -> Axes:
    """`make(draw, batch, latent)`."""

    def at(device: torch.device, dtype: torch.dtype, batch: int, latent: int) -> Sample:
        return make(lambda *shape: _draw(device, dtype, *shape), batch, latent)

    return Axes(at, base, {"batch": batches, "latent": (8, 16, 32, 64, 128, 256)})


def _posterior(draw: Callable[..., Tensor], b: int, d: int) -> Sample:
    return Sample("", (draw(b, d), 0.3 * draw(b, d)))


def _total_correlation(draw: Callable[..., Tensor], b: int, d: int) -> Sample:
    mean = draw(b, d)
    return Sample("", (mean + 0.6 * draw(b, d), mean, 0.3 * draw(b, d) - 1), {"dataset_size": 60_000})


def _group_norm(draw: Callable[..., Tensor], b: int, c: int, r: int) -> Sample:
    return Sample("", (draw(b, c, r, r), min(32, c), draw(c), draw(c)))


def _batch_norm(draw: Callable[..., Tensor], b: int, c: int, r: int) -> Sample:
    zero = torch.zeros(c, device=draw(1).device)
    return Sample("", (draw(b, c, r, r), zero, zero + 1, draw(c), draw(c), True), {"activation": "relu"})


def _bias_act(draw: Callable[..., Tensor], b: int, c: int, r: int) -> Sample:
    return Sample("", (draw(b, c, r, r), draw(c)), {"activation": "leaky_relu", "negative_slope": 0.2})


def _upsample(draw: Callable[..., Tensor], b: int, c: int, r: int) -> Sample:
    return Sample("", (draw(b, c, r, r), (9 * c) ** -0.5 * draw(c, c, 3, 3), draw(c)))


def _halved(draw: Callable[..., Tensor], b: int, c: int, r: int) -> Sample:
    return Sample("", (draw(b, c, r, r), (16 * c) ** -0.5 * draw(c, c, 4, 4), draw(c)))


def _loss(draw: Callable[..., Tensor], b: int, c: int, r: int) -> Sample:
    return Sample("", (draw(b, c, r, r), torch.sigmoid(draw(b, c, r, r))))


_SMALL, _LARGE = (32, 64, 128, 256, 512, 1024), (64, 256, 1024, 4096, 16384)
AXES: dict[str, Axes] = {
    "reparameterize": _latents(_posterior, _LARGE, batch=1024, latent=64),
    "gaussian_kl": _latents(_posterior, _LARGE, batch=1024, latent=64),
    "sample_kl": _latents(_posterior, _LARGE, batch=1024, latent=64),
    "total_correlation": _latents(_total_correlation, _SMALL, batch=256, latent=16),
    "mmd": _latents(lambda draw, b, d: Sample("", (draw(b, d), draw(b, d))), _SMALL, batch=128, latent=16),
    "dip": _latents(
        lambda draw, b, d: Sample("", (draw(b, d), draw(b, d)), {"kind": "ii"}), _LARGE, batch=1024, latent=64
    ),
    "group_norm_act": _images(_group_norm),
    "batch_norm_act": _images(_batch_norm),
    "bias_act": _images(_bias_act),
    "critic_leaky_relu": _images(lambda draw, b, c, r: Sample("", (draw(b, c, r, r),))),
    "conv3x3": _images(_upsample, channels=64),
    "conv4x4": _images(_halved, channels=64),
    "upsample_conv2d": _images(_upsample, channels=64, resolution=16),
    "bernoulli_nll": _images(_loss, channels=3, resolution=64),
    "mse": _images(_loss, channels=3, resolution=64),
    "l1": _images(_loss, channels=3, resolution=64),
}
AXIS_NAMES = ("batch", "channels", "resolution", "latent")


def workloads(spec: OpSpec, axis: str, sizes: tuple[int, ...] = ()) -> Iterator[tuple[int, Workload]]:
    """The op at every size on the axis (or those given), its other sizes fixed; nothing if it has no such axis."""
    axes = AXES.get(spec.name)
    if axes is None or axis not in axes.sizes:
        return
    for size in sizes or axes.sizes[axis]:
        at = axes.base | {axis: size}
        name = ", ".join(f"{key} {value}" for key, value in at.items())

        def make(device: torch.device, dtype: torch.dtype, at: dict[str, int] = at) -> Sample:
            return axes.make(device, dtype, **at)

        yield size, Workload(name, make)
