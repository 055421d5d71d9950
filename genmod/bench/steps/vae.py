"""Training steps of VAEs as people write them: Bernoulli pixels, a logistic mixture, and β-TCVAE at a large batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genmod import nn as gnn
from genmod.bench.step import Contenders, Step, agree
from genmod.specs import specs

#: `(decoder's output, images, z, mean, logvar)` to the whole loss.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_DATASET = 60_000


@dataclass(frozen=True)
class _Layers:
    """The layers that a network is built from: PyTorch's, or genmod's in their place."""

    norm_act: Callable[[int], nn.Module]
    upsample: Callable[[int, int], nn.Module]


_STOCK = _Layers(
    lambda channels: nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU()),
    lambda inputs, outputs: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1)),
)
_OURS = _Layers(lambda channels: gnn.GroupNormAct(8, channels), lambda i, o: gnn.UpsampleConv2d(i, o))


class _VAE(nn.Module):
    """Encoder and decoder, and the loss between them. `sample` is `(encoder's output, noise)` to `(z, kl)`."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def _convolutional(layers: _Layers, size: int, width: int, latent: int, outputs: int) -> _VAE:
    """Three stages down and up, for images of `size` x `size`."""
    bottom = (4 * width, size // 8, size // 8)
    flat = bottom[0] * bottom[1] * bottom[2]
    down: list[nn.Module] = []
    for i, o in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        down += [nn.Conv2d(i, o, 4, 2, 1), layers.norm_act(o)]
    up: list[nn.Module] = []
    for i, o in ((4 * width, 2 * width), (2 * width, width), (width, width)):
        up += [layers.upsample(i, o), layers.norm_act(o)]
    return _VAE(
        nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, 2 * latent)),
        nn.Sequential(nn.Linear(latent, flat), nn.Unflatten(1, bottom), *up, nn.Conv2d(width, outputs, 1)),
    )


def _dense(layers: _Layers, size: int, width: int, latent: int, outputs: int) -> _VAE:
    """β-TCVAE's network for 64 x 64 shapes in black and white (Chen et al. 2018)."""
    pixels = outputs * size * size
    return _VAE(
        nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 2 * latent),
        ),
        nn.Sequential(
            nn.Linear(latent, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, pixels), nn.Unflatten(1, (outputs, size, size)),
        ),
    )  # fmt: skip


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum() / mean.shape[0]


def _bce(output: Tensor, images: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, images, reduction="sum") / len(images)


def _stock_bernoulli(output: Tensor, images: Tensor, z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return _bce(output, images) + _kl(mean, logvar)


def _stock_mixture(output: Tensor, images: Tensor, z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return specs()["logistic_mixture_nll"].eager(output, 2 * images - 1) + _kl(mean, logvar)


def _stock_tcvae(output: Tensor, images: Tensor, z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    mutual_information, correlation, dimension_kl = specs()["total_correlation"].eager(
        z, mean, logvar, dataset_size=_DATASET
    )
    return _bce(output, images) + mutual_information + 6.0 * correlation + dimension_kl


@dataclass(frozen=True)
class _Race:
    """A VAE with the loss as people write it and with genmod's; `kl_inside`: the loss makes the divergence from z."""

    build: Callable[[_Layers, int, int, int, int], _VAE]
    loss: Loss
    ours: Callable[[], nn.Module]
    latent: int
    outputs: int
    channels: int = 3

    def contenders(self, batch: int, size: int, width: int, device: torch.device, dtype: torch.dtype) -> Contenders:
        stock, ours = (self.build(k, size, width, self.latent, self.outputs).to(device, dtype) for k in (_STOCK, _OURS))
        # The same parameters in the same order; a pair of layers that became one has other names.
        ours.load_state_dict(dict(zip(ours.state_dict(), stock.state_dict().values(), strict=True)))
        images = torch.rand(batch, self.channels, size, size, device=device).to(dtype)
        # Given, so that all see the same noise, and that compile need not draw it.
        noise = torch.randn(batch, self.latent, device=device).to(dtype)
        fused = self.ours()

        def eager(images: Tensor, noise: Tensor) -> Tensor:
            mean, logvar = stock.encoder(images).chunk(2, 1)
            z = mean + noise * torch.exp(0.5 * logvar)
            return self.loss(stock.decoder(z), images, z, mean, logvar)

        def genmod(images: Tensor, noise: Tensor) -> Tensor:
            return fused(ours, images, noise)

        def step(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
            def run() -> None:
                model.zero_grad()
                loss(images, noise).backward()

            return run

        contenders = {
            "eager": step(stock, eager),
            "compile": step(stock, torch.compile(eager)),
            "genmod": step(ours, genmod),
        }
        agree(stock, contenders["eager"], ours, contenders["genmod"])
        return contenders


class _Likelihood(nn.Module):
    """Sampling with its divergence in one pass, and a likelihood."""

    def __init__(self, likelihood: nn.Module, scaled: bool = False) -> None:
        super().__init__()
        self.sampler, self.likelihood, self.scaled = gnn.GaussianSampler(), likelihood, scaled

    def forward(self, vae: _VAE, images: Tensor, noise: Tensor) -> Tensor:
        z, kl = self.sampler(vae.encoder(images), noise=noise)
        return self.likelihood(vae.decoder(z), 2 * images - 1 if self.scaled else images).mean() + kl


class _TCVAE(nn.Module):
    """β-TCVAE's loss from genmod's parts."""

    def __init__(self) -> None:
        super().__init__()
        self.reconstruction, self.loss = gnn.ReconstructionLoss("bernoulli"), gnn.BetaTCVAELoss(_DATASET, beta=6.0)

    def forward(self, vae: _VAE, images: Tensor, noise: Tensor) -> Tensor:
        posterior = gnn.DiagonalGaussian(vae.encoder(images), clamp="none")
        z = posterior.sample(noise=noise)
        return self.loss(self.reconstruction(vae.decoder(z), images), z, posterior.mean, posterior.logvar)[0]


_SMALL = _Race(_convolutional, _stock_bernoulli, lambda: _Likelihood(gnn.ReconstructionLoss("bernoulli")), 64, 3)
_MIXTURE = _Race(_convolutional, _stock_mixture, lambda: _Likelihood(gnn.LogisticMixture(10), True), 64, 100)
_TC = _Race(_dense, _stock_tcvae, _TCVAE, 10, 1, channels=1)


def _step(name: str, race: _Race, batch: int, size: int, width: int) -> Step:
    return Step(
        "vae_step",
        f"{name} [{batch}, {race.channels}, {size}, {size}], forward and backward",
        lambda device, dtype: race.contenders(batch, size, width, device, dtype),
        lambda device, dtype: race.contenders(4, 16, 8, device, dtype),
    )


STEPS = (
    _step("small convolutional VAE, Bernoulli", _SMALL, 64, 32, 32),
    _step("convolutional VAE, mixture of 10 logistics", _MIXTURE, 32, 32, 32),
    _step("beta-TCVAE, dense, 10 latents", _TC, 1024, 64, 1200),
)
