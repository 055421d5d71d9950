"""Encoders, decoders, critics and generators of small square images, from the fused modules of `genmod.nn`.

Every stage halves or doubles the resolution; the number of feature maps doubles with each stage away from the image, up
to four times the first. Halving is a 4x4 convolution with stride 2, which touches every pixel equally often; doubling
is `nn.UpsampleBlock`, which costs what a transposed convolution costs and leaves no checkerboard.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from genmod.nn import (
    BatchNormAct,
    BiasAct,
    Conv4x4,
    ConvTransposeBlock,
    CriticConv2d,
    CriticLeakyReLU,
    CriticLinear,
    GroupNormAct,
    UpsampleBlock,
    UpsampleConv2d,
)
from genmod.ops import _checks

Norm = Literal["group", "batch", "none"]
NORMS = ("group", "batch", "none")
_SLOPE = 0.2  # of leaky ReLUs


def stage_widths(width: int, stages: int) -> list[int]:
    """Feature maps after each halving: width, 2 width, then 4 width."""
    return [width * min(2**stage, 4) for stage in range(stages)]


def _bottom(image_size: int, width: int, stages: int) -> tuple[int, int, int]:
    if image_size % 2**stages:
        raise ValueError(f"image_size: got {image_size}, expected a multiple of 2**stages = {2**stages}")
    size = image_size // 2**stages
    return stage_widths(width, stages)[-1], size, size


class ConvEncoder(nn.Module):
    """Images to features, by convolutions that halve the image, each followed by a norm and SiLU.

    Args:
        image_size: height and width, a multiple of 2**stages.
        channels: of the image.
        width: feature maps of the first stage.
        stages: how often the image is halved.
        norm: "group" (one group, so layer normalisation over the image), "batch", or "none".

    Attributes:
        feature_shape: (F, h, w) of `features`.
        num_features: F h w, of `forward`, which flattens them.

    Shape:
        `features(x)`: `[B, C, H, W]` to `[B, F, h, w]`; `forward(x)`: to `[B, num_features]`.
    """

    def __init__(
        self, image_size: int, channels: int, width: int = 32, stages: int = 3, *, norm: Norm = "group"
    ) -> None:
        super().__init__()
        _checks.choice("norm", norm, NORMS)
        self.feature_shape = _bottom(image_size, width, stages)
        self.num_features = self.feature_shape[0] * self.feature_shape[1] * self.feature_shape[2]
        sizes = [channels, *stage_widths(width, stages)]
        self.stages = nn.Sequential(*(_Down(narrow, wide, norm) for narrow, wide in pairwise(sizes)))

    def features(self, x: Tensor) -> Tensor:
        """The map of features, `[B, F, h, w]`."""
        return self.stages(x)

    def forward(self, x: Tensor) -> Tensor:
        """All features of an image in one row, `[B, num_features]`."""
        return self.features(x).flatten(1)


_MANY_CHANNELS = 64


class _Down(nn.Module):
    """Convolution with stride 2, norm and activation."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        # Where little is convolved, what Conv4x4 gains is little beside the memory that it works in.
        convolution = Conv4x4 if inputs >= _MANY_CHANNELS else nn.Conv2d
        self.conv = convolution(inputs, outputs, 4, 2, 1, bias=norm == "group")
        self.norm = _norm_act(outputs, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Half the image."""
        return self.norm(self.conv(x))


def _norm_act(channels: int, norm: Norm) -> nn.Module:
    if norm == "group":
        # One group: in a flat image a few channels by themselves hardly vary, and dividing by that magnifies rounding.
        return GroupNormAct(1, channels, activation="silu")
    return BatchNormAct(channels, activation="silu") if norm == "batch" else BiasAct(channels, "silu")


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`: latents to the raw parameters of pixels.

    Args:
        image_size, channels, width, stages, norm: as there; `channels` is what comes out, which for most likelihoods is
            more than the image's.
        latent_dim: D.

    Shape:
        `[B, D]` to `[B, channels, H, W]`, not bounded.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        latent_dim: int,
        width: int = 32,
        stages: int = 3,
        *,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        _checks.choice("norm", norm, NORMS)
        self.bottom = _bottom(image_size, width, stages)
        self.input = nn.Linear(latent_dim, math.prod(self.bottom))
        widths = stage_widths(width, stages)[::-1]
        self.stages = nn.Sequential(
            *(
                UpsampleBlock(wide, narrow, norm=norm, activation="silu", num_groups=1)
                for wide, narrow in pairwise(widths)
            )
        )
        self.output = UpsampleConv2d(width, channels)

    def forward(self, z: Tensor) -> Tensor:
        """The parameters of the pixels."""
        return self.output(self.stages(self.input(z).unflatten(1, self.bottom)))


class Critic(nn.Module):
    """Images to one number each, piecewise linear: 4x4 convolutions with stride 2 and leaky ReLUs, no norm (DCGAN).

    Args:
        image_size, channels, width, stages: as of `ConvEncoder`.

    Attributes:
        feature_shape: (F, h, w) of `features`.

    Shape:
        `features(x)`: `[B, C, H, W]` to `[B, F, h, w]`; `forward(x)`: to `[B]`.
    """

    def __init__(self, image_size: int, channels: int, width: int = 32, stages: int = 3) -> None:
        super().__init__()
        self.feature_shape = _bottom(image_size, width, stages)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise([channels, *stage_widths(width, stages)]):
            layers += [CriticConv2d(narrow, wide, 4, stride=2, padding=1), CriticLeakyReLU(_SLOPE)]
        self.stages = nn.Sequential(*layers)
        self.output = CriticLinear(math.prod(self.feature_shape), 1)
        _keep_variance(self)

    def features(self, x: Tensor) -> Tensor:
        """The map of features, `[B, F, h, w]`."""
        return self.stages(x)

    def forward(self, x: Tensor) -> Tensor:
        """One value per image, `[B]`."""
        return self.output(self.features(x).flatten(1)).flatten(0)


class Generator(nn.Module):
    """Latents to images with values in [-1, 1].

    Args:
        image_size, channels, width, stages: as of `ConvDecoder`.
        latent_dim: D.
        norm: "batch", DCGAN's blocks of transposed convolution, batch norm and ReLU; or "none", upsampling, convolution
            and leaky ReLU.

    Shape:
        `[B, D]` to `[B, channels, H, W]`.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        latent_dim: int,
        width: int = 32,
        stages: int = 3,
        *,
        norm: Literal["batch", "none"] = "batch",
    ) -> None:
        super().__init__()
        _checks.choice("norm", norm, ("batch", "none"))
        self.bottom = _bottom(image_size, width, stages)
        plain = norm == "none"
        self.input = nn.Linear(latent_dim, math.prod(self.bottom), bias=plain)
        self.act: nn.Module = BatchNormAct(self.bottom[0])
        if plain:
            self.act = BiasAct(self.bottom[0], "leaky_relu", negative_slope=_SLOPE, bias=False)
        widths = stage_widths(width, stages)[::-1]
        self.stages = nn.Sequential(
            *(
                UpsampleBlock(wide, narrow, norm="none", activation="leaky_relu", negative_slope=_SLOPE)
                if plain
                else ConvTransposeBlock(wide, narrow)
                for wide, narrow in pairwise(widths)
            )
        )
        self.output = UpsampleConv2d(width, channels)
        if plain:
            _keep_variance(self)

    def forward(self, z: Tensor) -> Tensor:
        """The images."""
        x = self.act(self.input(z).unflatten(1, self.bottom))
        return torch.tanh(self.output(self.stages(x)))


def _keep_variance(network: nn.Module) -> None:
    """Weights with which signals keep their size through leaky ReLUs, as they must where no norm does it for them."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, _SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
