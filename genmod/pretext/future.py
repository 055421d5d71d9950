"""Predict the future: the next frames of a clip, and the next step of a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genmod import ops
from genmod.pretext.conv_lstm import ConvLSTM
from genmod.pretext.heads import ImageHead
from genmod.pretext.task import Draws, Shape, Task, whole


class FramesForecaster(nn.Module):
    """Features of past frames to future frames: the encoding and forecasting network of Shi et al., on features.

    A ConvLSTM reads the features; a second one, without inputs, goes on from its states; an :class:`ImageHead` draws
    each of its states. What is drawn is added to the last frame that was seen, in which nearly everything already is.

    Shape:
        features `[B, T, F, h, w]` and the last frame `[B, C, H, W]`, to frames `[B, future, C, H, W]`.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        image_shape: tuple[int, int, int],
        future: int,
        hidden: int,
    ) -> None:
        super().__init__()
        features, *size = feature_shape
        height, width = size
        self.future = future
        self.past = ConvLSTM(features, hidden, size=(height, width))
        self.forecast = ConvLSTM(0, hidden, size=(height, width))
        self.image = ImageHead((hidden, height, width), image_shape)

    def forward(self, features: Tensor, last: Tensor) -> Tensor:
        """The frames that follow."""
        _, state = self.past(features)
        states, _ = self.forecast(None, state, steps=self.future)
        drawn = self.image(states.flatten(0, 1))
        return drawn.unflatten(0, states.shape[:2]) + last[:, None]


@dataclass(frozen=True)
class FutureFrames(Task):
    """The last frames of a clip from those before, with a ConvLSTM (Shi et al., NeurIPS 2015; Srivastava et al., 2015).

    The encoder sees each past frame by itself; what moves, the head has to find out from the features. The loss is the
    squared error of a frame, the score that of a pixel, and chance is that of repeating the last frame seen.

    Attributes:
        future: frames to be predicted, from the end of a clip; the clip must have at least one more.
        hidden: feature maps of the ConvLSTMs' states.
    """

    name: ClassVar[str] = "future"
    clips: ClassVar[bool] = True
    future: int = 2
    hidden: int = 32

    def __post_init__(self) -> None:
        whole("future", self.future)
        whole("hidden", self.hidden)

    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Clips `[B, T, C, H, W]` to their first T - future frames, and their last `future`."""
        self._prepare(x, generator, draws)
        if x.shape[1] <= self.future:
            raise ValueError(f"x: got clips of {x.shape[1]} frames, expected more than future={self.future}")
        return x[:, : -self.future], x[:, -self.future :]

    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """Two ConvLSTMs and upsampling stages."""
        _, channels, height, width = shape
        return FramesForecaster(encoder.feature_shape, (channels, height, width), self.future, self.hidden)

    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """The frames that follow, `[B, future, C, H, W]`."""
        features = encoder.features(input.flatten(0, 1)).unflatten(0, input.shape[:2])
        return head(features, input[:, -1])

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error of a frame."""
        return ops.mse(output, target) / self.future

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error of a pixel."""
        return ops.mse(output, target, reduction="mean")

    def chance(self, input: Tensor, target: Tensor) -> float:
        """The squared error of the last frame seen, repeated."""
        return float((input[:, -1:].float() - target.float()).square().mean())


class SequenceEncoder(nn.Module):
    """A causal encoder of sequences: a GRU, so that the features of a step depend on that step and those before.

    Shape:
        `[B, T, D]` to `[B, T, num_features]`.
    """

    def __init__(self, size: int, num_features: int = 64, layers: int = 1) -> None:
        super().__init__()
        self.num_features = num_features
        self.recurrent = nn.GRU(size, num_features, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The features of every step."""
        return self.recurrent(x)[0]


@dataclass(frozen=True)
class NextStep(Task):
    """Every step of a sequence `[B, T, D]` from those before (Elman, *Finding structure in time*, 1990).

    The encoder has to be causal, such as :class:`SequenceEncoder`; what the head makes of its features is added to the
    step before, near which most steps are. An image is a sequence of its rows, from top to bottom: images
    `[B, C, H, W]` are taken as `[B, H, C W]`. The loss is the squared error of a step, the score that of
    a number, and chance is that of repeating the step before.
    """

    name: ClassVar[str] = "next_step"

    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sequences to their first T - 1 steps, and their last T - 1."""
        sequences = self.view(x)
        if not isinstance(sequences, Tensor) or not sequences.is_floating_point() or sequences.dim() != 3:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: got {got}, expected floating-point sequences [B, T, D] or images [B, C, H, W]")
        if sequences.shape[1] < 2:
            raise ValueError(f"x: got sequences of {sequences.shape[1]} step, expected at least 2")
        return sequences[:, :-1], sequences[:, 1:]

    def view(self, images: Tensor) -> Tensor:
        """Images as sequences of rows; sequences as they are."""
        if isinstance(images, Tensor) and images.dim() == 4:
            return images.transpose(1, 2).flatten(2)
        return images

    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """A linear layer; for images `shape` is (C, H, W), for sequences (T, D)."""
        size = shape[-1] if len(shape) == 2 else shape[0] * shape[2]
        return nn.Linear(encoder.num_features, size)

    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """The step after each, `[B, T - 1, D]`."""
        return input + head(encoder(input))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error of a step."""
        return ops.mse(output, target) / output.shape[1]

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """The squared error of a number."""
        return ops.mse(output, target, reduction="mean")

    def chance(self, input: Tensor, target: Tensor) -> float:
        """The squared error of each step as the one after it."""
        return float((input.float() - target.float()).square().mean())
