"""A small convolutional variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114) for square images.

Encoder q(z|x) and decoder p(x|z) are mirror images of each other: every stage halves or doubles the resolution.
The pixels are Bernoulli given z, from logits, or the mean of several Bernoulli trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmod.nn import GaussianSampler


@dataclass(frozen=True)
class ConvVAEConfig:
    """The shape of a `ConvVAE`.

    image_size: height and width in pixels, divisible by 2**stages. channels: 1 for grey, 3 for colour.
    latent_dim: number of latent variables. width: feature maps of the first stage; they double with each later
    stage, up to 4 * width. stages: how often the resolution is halved. trials: a pixel is the mean of that many
    Bernoulli trials (binomial): 1 for black and white, 16 for 17 grey levels; more of them ask for sharper images.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 32
    width: int = 32
    stages: int = 3
    trials: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.image_size % 2**self.stages:
            raise ValueError(
                f"image_size must be divisible by 2**stages = {2**self.stages}, got image_size={self.image_size}"
            )

    @property
    def widths(self) -> list[int]:
        """Feature maps after each stage of the encoder."""
        return [self.width * min(2**stage, 4) for stage in range(self.stages)]

    @property
    def bottom(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) between the convolutions and the latent layer."""
        size = self.image_size // 2**self.stages
        return (self.widths[-1], size, size)


class VAELoss(NamedTuple):
    """Scalars in nats per image, averaged over the batch: loss = nll + kl, the negative ELBO.

    nll leaves out the binomial coefficients, which depend on the images alone; with one trial there are none.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor


class ConvVAE(nn.Module):
    """A convolutional VAE whose sampling step is a module of its own.

    sampler: `(params [B, 2 * latent_dim], noise=None, generator=None) -> (z [B, latent_dim], kl)`, where params holds
    the means first and then the log variances, and kl is summed over the latents and averaged over the batch. The
    default is `genmod.nn.GaussianSampler()`; any module of that form will do, and nothing else here is genmod's.
    """

    def __init__(self, config: ConvVAEConfig, sampler: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.sampler = GaussianSampler() if sampler is None else sampler
        channels, height, width = config.bottom
        sizes = [config.channels, *config.widths]
        stages = list(pairwise(sizes))
        self.encoder = nn.Sequential(
            *(layer for narrow, wide in stages for layer in _down(narrow, wide)),
            nn.Flatten(),
            nn.Linear(channels * height * width, 2 * config.latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent_dim, channels * height * width),
            nn.Unflatten(1, config.bottom),
            *(layer for narrow, wide in reversed(stages[1:]) for layer in _up(wide, narrow)),
            nn.Upsample(scale_factor=2.0),
            nn.Conv2d(config.width, config.channels, 3, padding=1),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> parameters of q(z|x), [B, 2 * latent_dim], means first."""
        return self.encoder(images)

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, latent_dim] -> logits of the pixels [B, C, H, W]."""
        return self.decoder(z)

    def forward(self, images: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> VAELoss:
        """The negative ELBO of images [B, C, H, W] in [0, 1], with one latent sample for each image.

        noise: standard normal [B, latent_dim]; without it the sampler draws its own, from generator where given.
        """
        z, kl = self.sampler(self.encode(images), noise=noise, generator=generator)
        pixels = F.binary_cross_entropy_with_logits(self.decode(z), images, reduction="sum")
        nll = pixels * (self.config.trials / len(images))
        return VAELoss(nll + kl, nll, kl)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """The decoder's mean image [B, C, H, W] at the mean of q(z|x)."""
        mean = self.encode(images)[:, : self.config.latent_dim]
        return torch.sigmoid(self.decode(mean))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The decoder's mean image [n, C, H, W] at n latents drawn from the prior N(0, I)."""
        weight = next(self.decoder.parameters())
        # The generator decides where the draw happens, so that one CPU seed gives the same images on every device.
        device = weight.device if generator is None else generator.device
        z = torch.randn(n, self.config.latent_dim, generator=generator, device=device).to(weight)
        return torch.sigmoid(self.decode(z))


# Kernels of 4 with stride 2 touch every pixel equally often, and on a CPU a transposed convolution costs half of
# upsampling first. Only the last stage of the decoder upsamples: there a transposed one would leave a grid to be seen.
def _down(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), *_norm_act(outputs)]


def _up(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), *_norm_act(outputs)]


def _norm_act(channels: int) -> list[nn.Module]:
    # One group: in a flat image a few channels by themselves hardly vary, and dividing by that would magnify rounding.
    return [nn.GroupNorm(1, channels), nn.SiLU()]
