"""Autoencoders: images squeezed through a few numbers and drawn again from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from genmod.models import configs
from genmod.models.base import Draws, Losses, Model
from genmod.models.networks import ConvDecoder, ConvEncoder
from genmod.nn import ReconstructionLoss

OBJECTIVES = ("plain", "denoising")
LOSSES = ("bernoulli", "mse", "l1")


@dataclass(frozen=True)
class AutoencoderConfig:
    """What an :class:`Autoencoder` is made of.

    Attributes:
        image_size: height and width, a multiple of 2**stages.
        channels: 1 for grey, 3 for colour.
        latent_dim: numbers that an image is squeezed into.
        width: feature maps of the first stage; they double with each later one, up to four times as many.
        stages: how often the image is halved.
        objective: "plain", or "denoising": the image is drawn from a noisy copy of it.
        noise: standard deviation of the noise that "denoising" adds.
        loss: "bernoulli" (cross-entropy of pixels in [0, 1]), "mse" or "l1", summed over an image.
    """

    image_size: int = 32
    channels: int = 3
    latent_dim: int = 32
    width: int = 32
    stages: int = 3
    objective: Literal["plain", "denoising"] = "plain"
    noise: float = 0.3
    loss: Literal["bernoulli", "mse", "l1"] = "bernoulli"

    def __post_init__(self) -> None:
        configs.image(self)
        configs.choice("objective", self.objective, OBJECTIVES)
        configs.number(self, "noise")
        configs.choice("loss", self.loss, LOSSES)


class Autoencoder(Model):
    r"""A convolutional autoencoder, :math:`\min E\, \ell(\mathrm{dec}(\mathrm{enc}(\tilde x)), x)`.

    :math:`\tilde x = x` for "plain"; for "denoising" :math:`\tilde x = x + \sigma\epsilon`, with which the encoder has
    to know what images look like (Vincent, Larochelle, Bengio and Manzagol, ICML 2008).

    The codes of an autoencoder have no distribution of their own. For `prior` and `sample` a normal distribution is
    fitted to them by :meth:`fit_prior`, mean and covariance; until then it is the standard normal.

    Parts of the loss: "reconstruction".
    """

    config_class = AutoencoderConfig
    config: AutoencoderConfig
    code_mean: Tensor
    code_factor: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_dim = config.latent_dim
        self.image_shape = (config.channels, config.image_size, config.image_size)
        shape = (config.width, config.stages)
        self.encoder = ConvEncoder(config.image_size, config.channels, *shape)
        self.to_latent = nn.Linear(self.encoder.num_features, config.latent_dim)
        self.decoder = ConvDecoder(config.image_size, config.channels, config.latent_dim, *shape)
        self.reconstruction = ReconstructionLoss(config.loss)
        self.register_buffer("code_mean", torch.zeros(config.latent_dim))
        self.register_buffer("code_factor", torch.eye(config.latent_dim))

    def draw(self, phase: str, n: int, generator: torch.Generator | None = None) -> Draws:
        """The noise of the images, for "denoising"."""
        self._check_phase(phase)
        if self.config.objective == "plain":
            return {}
        return {"noise": torch.randn(n, *self.image_shape, generator=generator, device=_device(generator))}

    def loss(
        self, images: Tensor, *, step: int = 0, generator: torch.Generator | None = None, draws: Draws | None = None
    ) -> Losses:
        """See :class:`Model`; `step` does not matter."""
        self._check_images(images)
        draws = self._draws("model", images, draws, generator)
        seen = images if "noise" not in draws else images + self.config.noise * draws["noise"].to(images.dtype)
        return Losses.of(reconstruction=self.reconstruction(self.decoder(self.encode(seen)), images))

    def encode(self, images: Tensor) -> Tensor:
        """The codes of images, `[B, D]`."""
        self._check_images(images)
        return self.to_latent(self.encoder(images))

    def latents(self, images: Tensor) -> Tensor:
        """The same as `encode`."""
        return self.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        """The images of codes."""
        self._check_latents(z)
        output = self.decoder(z)
        return torch.sigmoid(output) if self.config.loss == "bernoulli" else output.clamp(0, 1)

    @torch.no_grad()
    def fit_prior(self, images: Tensor) -> None:
        """Fit the normal distribution of `prior` to the codes of these images; it is saved with the model."""
        codes = torch.cat([self.encode(batch.to(self.code_mean.device)) for batch in images.split(256)]).double()
        self.code_mean.copy_(codes.mean(0))
        centred = codes - codes.mean(0)
        covariance = centred.T @ centred / max(len(codes) - 1, 1)
        # A code that never changes has no variance, and a covariance of few images no full rank.
        jitter = 1e-6 * covariance.diagonal().mean().clamp(min=1e-6)
        eye = torch.eye(self.latent_dim, dtype=codes.dtype, device=codes.device)
        self.code_factor.copy_(torch.linalg.cholesky(covariance + jitter * eye))

    def prior(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Codes from the fitted normal distribution."""
        return self.code_mean + super().prior(n, generator) @ self.code_factor.T


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
