"""What is put on an encoder: a linear layer for a class, or upsampling stages for an image."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from genmod.nn import GroupNormAct, UpsampleBlock


class ImageHead(nn.Module):
    """A map of features to an image, by stages that each double it (:class:`genmod.nn.UpsampleBlock`).

    Args:
        feature_shape: (F, h, w) of the features.
        image_shape: (C, H, W) of what comes out, with H / h = W / w a power of two.
        latent_dim: so many numbers are all that passes from the features to the image; by default, all of them.

    Shape:
        `[B, F, h, w]` to `[B, C, H, W]`, not bounded.

    Raises:
        ValueError: sizes that are not a power of two apart.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        image_shape: tuple[int, int, int],
        *,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        features, height, width = feature_shape
        channels, *size = image_shape
        doublings = round(math.log2(size[0] / height))
        if [height << doublings, width << doublings] != size:
            raise ValueError(
                f"image_shape: got {size[0]} x {size[1]} pixels for features of {height} x {width}, expected features "
                "that are smaller by a power of two, the same in both directions"
            )
        numbers = features * height * width
        self.bottleneck = (
            nn.Sequential()
            if latent_dim is None
            else nn.Sequential(
                nn.Flatten(),
                nn.Linear(numbers, latent_dim),
                nn.Linear(latent_dim, numbers),
                nn.Unflatten(1, feature_shape),
            )
        )
        widths = [max(features >> stage, 8) for stage in range(doublings + 1)]
        self.stages = nn.Sequential(
            *(UpsampleBlock(a, b, norm="group", activation="silu", num_groups=1) for a, b in pairwise(widths))
        )
        self.output = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """The image."""
        return self.output(self.stages(self.bottleneck(features)))


class FramesHead(nn.Module):
    """The features of several frames, side by side, to a class: a hidden layer, layer norm, SiLU, and a linear layer.

    Shape:
        `[B, T, num_features]` to `[B, num_classes]`.
    """

    def __init__(self, num_features: int, frames: int, num_classes: int, width: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(frames * num_features, width)
        self.norm = GroupNormAct(1, width)
        self.output = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """The class's logits."""
        return self.output(self.norm(self.hidden(features.flatten(1))))
