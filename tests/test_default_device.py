"""`torch.set_default_device` is for what a user makes: genmod's own tensors lie where its inputs do, draws by a CPU
generator on the CPU. The ops are asked in tests/ops/test_battery.py.

The default device here is one without data: what is made on it by mistake fails, or is found in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from genmod import latent, penalties
from genmod import nn as layers
from genmod.latent import metrics
from genmod.models import GAN, VAE, Autoencoder, AutoencoderConfig, GANConfig, Model, VAEConfig
from genmod.pretext import PretextConfig, PretextModel, ab_bins, clips, lab, tasks
from genmod.pretext.temporal_order import orders

SMALL: dict[str, Any] = {"image_size": 8, "channels": 3, "width": 4, "stages": 2}


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def codes(n: int = 40) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(n))


def factors() -> Tensor:
    return torch.randint(0, 3, (40, 2), generator=torch.Generator().manual_seed(0))


def decoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Unflatten(1, (3, 2, 2)))


def critic() -> nn.Module:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 4, 4, 2, 1), nn.Conv2d(4, 1, 4)
    return nn.Sequential(first, nn.LeakyReLU(0.2), last, nn.Flatten())


def trained(model: Model, x: Tensor, generator: torch.Generator) -> list[Any]:
    """The losses and gradients of every phase."""
    results: list[Any] = []
    for phase in model.phases:
        model.zero_grad()
        results += model.backward(phase, x, model.draw(phase, len(x), generator))
        results += [p.grad for p in model.parameters()]
    return results


def afresh(cached: Any, *args: Any) -> Any:
    """What a function that remembers its results makes, if this is its first call."""
    cached.cache_clear()
    return cached(*args)


def penalty(name: str) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    def call(model: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator) -> Any:
        model.zero_grad()
        step = penalties.critic_step(model, real, fake, penalty=name, generator=generator)
        return [*step, *(p.grad for p in model.parameters())]

    return call, lambda: (critic(), images(), 1 - images())


def orthogonality(estimator: str) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
    normalize = estimator != "hutchinson"

    def call(decode: nn.Module, z: Tensor, generator: torch.Generator) -> Tensor:
        return latent.orthogonality_penalty(
            decode, z, estimator=estimator, probes=2, normalize=normalize, generator=generator
        )

    return call, lambda: (decoder(), codes(4))


#: What is called with a generator behind its inputs, and what makes those.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "draws of posteriors": (
        lambda m, v, g: latent.from_aggregate_posterior(m, v, 50, g),
        lambda: (codes(), 0.1 * codes()),
    ),
    "a mixture": (lambda z, g: latent.fit_mixture(z, 2).sample(5, g), lambda: (codes(),)),
    "principal components": (lambda z, g: latent.principal_components(z).directions, lambda: (codes(),)),
    "neighbours": (lambda a, b, g: tuple(latent.nearest(a, b, 3)), lambda: (codes(5), codes())),
    "inversion": (
        lambda d, x, g: tuple(latent.invert(d, x, 3, steps=2, restarts=2, generator=g)),
        lambda: (decoder(), images()[..., :2, :2]),
    ),
    **{f"orthogonality, {estimator}": orthogonality(estimator) for estimator in ("exact", "pairs", "hutchinson")},
    "information gap": (
        lambda m, v, f, g: metrics.mig_of_posterior(m, v, f, samples=50, generator=g).score,
        lambda: (codes(), 0.1 * codes(), factors()),
    ),
    "total correlation": (
        lambda m, v, g: torch.tensor(
            metrics.posterior_total_correlation(m, v, batch_size=8, generator=g), device="cpu"
        ),
        lambda: (codes(), 0.1 * codes()),
    ),
    "bins of colours": (lambda g: afresh(ab_bins._bins, torch.device("cpu")), tuple),
    "colours in bins": (
        lambda ab, g: (ab_bins._windows.cache_clear(), *ab_bins.soft_encode(ab))[1:],
        lambda: (lab.rgb_to_lab(images())[:, 1:],),
    ),
    "orders of frames": (lambda g: afresh(orders, 4), tuple),
    "a window that moves": (lambda x, g: tuple(clips.pan(x, 3, 4, generator=g)), lambda: (images(),)),
    "images that move": (lambda x, g: tuple(clips.translate(x, 3, 12, generator=g)), lambda: (images(),)),
    **{f"penalty {name}": penalty(name) for name in ("r1", "r1+r2", "wgan-gp", "dragan", "max-gp")},
    "posterior": (
        lambda p, g: (layers.DiagonalGaussian(p).sample(g), layers.DiagonalGaussian(p).kl()),
        lambda: (images(4).repeat(1, 2, 1, 1),),
    ),
    "autoencoder": (trained, lambda: (Autoencoder(AutoencoderConfig(latent_dim=3, **SMALL)), images())),
    "VAE": (trained, lambda: (VAE(VAEConfig(latent_dim=3, **SMALL)), images())),
    "GAN": (trained, lambda: (GAN(GANConfig(latent_dim=3, **SMALL)), images())),
}


def same(call: Callable[..., Any], make: Callable[[], tuple[Any, ...]]) -> None:
    torch.manual_seed(1)
    inputs = make()
    results = []
    for default in ("cpu", "meta"):
        torch.manual_seed(2)
        generator = torch.Generator("cpu").manual_seed(3)
        with torch.device(default):
            results.append(
                [t.clone() if isinstance(t, Tensor) else t for t in pytree.tree_leaves(call(*inputs, generator))]
            )
    for expected, got in zip(*results, strict=True):
        if isinstance(expected, Tensor):
            assert got.device == expected.device
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
        else:
            assert got == expected


@pytest.mark.parametrize("name", CALLS)
def test_default_device(name):
    same(*CALLS[name])


@pytest.mark.parametrize("name", sorted(tasks()))
def test_default_device_of_a_pretext_task(name):
    def make() -> tuple[PretextModel, Tensor]:
        model = PretextModel.from_config(PretextConfig(name, frames=5, **SMALL))
        x = clips.translate(images()[..., :4, :4], 5, 8, generator=torch.Generator().manual_seed(0)).frames
        return model, x if model.task.clips else images()

    same(trained, make)
