"""Predict self: an autoencoder, and one that is shown a noisy copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.pretext.heads import ImageHead
from genmod.pretext.task import Draws, Shape, Task, device_of, number, whole


@dataclass(frozen=True)
class PredictSelf(Task):
    """Draw the image from its features; with `noise`, from the features of a noisy copy.

    The autoencoder of Hinton and Salakhutdinov (Science 2006) and the denoising one of Vincent et al. (ICML 2008). The
    loss is the squared error summed over an image, the score
    is the mean squared error of a pixel, and chance is that of answering with the batch's mean image.

    Attributes:
        noise: standard deviation of the noise added to the input, 0 for none.
        latent_dim: size of the bottleneck between features and image; None for all features. Where the features are
            more numbers than the image, only noise or a bottleneck keeps copying from being the solution.
    """

    name: ClassVar[str] = "predict_self"
    noise: float = 0.0
    latent_dim: int | None = 32

    def __post_init__(self) -> None:
        number("noise", self.noise)
        if self.latent_dim is not None:
            whole("latent_dim", self.latent_dim)

    def draw(self, n: int, shape: Shape, generator: torch.Generator | None = None) -> Draws:
        """The noise."""
        if not self.noise:
            return {}
        return {"noise": torch.randn(n, *shape, generator=generator, device=device_of(generator))}

    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images to (noisy) images, and the images."""
        draws = self._prepare(x, generator, draws)
        return (x + self.noise * draws["noise"].to(x.dtype) if self.noise else x), x

    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """Upsampling stages."""
        channels, height, width = shape
        return ImageHead(encoder.feature_shape, (channels, height, width), latent_dim=self.latent_dim)

    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """An image for each image."""
        return head(encoder.features(input))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error of an image."""
        return ops.mse(output, target)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error of a pixel."""
        return ops.mse(output, target, reduction="mean")

    def chance(self, input: Tensor, target: Tensor) -> float:
        """The squared error of the batch's mean image."""
        return float(target.float().var(0, correction=0).mean())
