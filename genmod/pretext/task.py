"""What a pretext task is: labels made from the data itself, and what is put on an encoder to predict them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Draws = dict[str, Tensor]
Shape = tuple[int, ...]


class Task(ABC):
    """A transform `x -> (input, target)`, a head on an encoder, and a loss.

    Tasks are frozen dataclasses of plain values, so that one can be written into a checkpoint. They hold no tensors:
    what is trained is in the head, and everything runs where `x` is.

    Attributes:
        name: the task's name in :func:`genmod.pretext.tasks`.
        clips: whether `x` is clips `[B, T, C, H, W]` instead of images `[B, C, H, W]`.
        metric: what `score` returns: "accuracy", of which more is better, or "error", of which less is.
    """

    name: ClassVar[str]
    clips: ClassVar[bool] = False
    metric: ClassVar[Literal["accuracy", "error"]] = "error"

    def draw(self, n: int, shape: Shape, generator: torch.Generator | None = None) -> Draws:
        """The random numbers for n samples of this shape, each tensor `[n, ...]`, on the generator's device."""
        return {}

    @abstractmethod
    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Any]:
        """Samples to (input, target), on the device of `x`; randomness from `draws` or else from `generator`.

        Raises:
            TypeError, ValueError: an `x` that is not floating-point or of another rank, or that the task cannot take.
        """

    @abstractmethod
    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """A new head for an encoder, of which it needs `num_features` or `feature_shape`, and samples of this shape."""

    @abstractmethod
    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """The output for an input: the head on what the encoder makes of it."""

    @abstractmethod
    def loss(self, output: Tensor, target: Any) -> Tensor:
        """What training minimises: 0-d, a mean over the batch."""

    @abstractmethod
    def score(self, output: Tensor, target: Any) -> Tensor:
        """How good the output is, 0-d, in the unit of `metric`."""

    @abstractmethod
    def chance(self, input: Tensor, target: Any) -> float:
        """The score of the best guess that learned nothing; each task says which guess that is."""

    def critic(self, shape: Shape) -> nn.Module | None:
        """A critic for samples of this shape, where a task has one; see :class:`genmod.pretext.MissingPatch`."""
        return None

    def view(self, images: Tensor) -> Tensor:
        """Images as this task's encoder takes them; as they are, unless the task says otherwise."""
        return images

    def view_channels(self, channels: int) -> int:
        """Channels of `view` for images of so many."""
        return channels

    # -------------------------------------------------------------------------------------------- for those that follow

    def _prepare(self, x: Tensor, generator: torch.Generator | None, draws: Draws | None) -> Draws:
        """Check `x`; then the draws given, or new ones, on its device."""
        check_samples(x, clips=self.clips)
        if draws is None:
            draws = self.draw(len(x), tuple(x.shape[1:]), generator)
        return {name: tensor.to(x.device) for name, tensor in draws.items()}


class Classification(Task):
    """A task whose output is one of a few classes for each sample; the target holds their numbers, `[B]`."""

    metric = "accuracy"

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many there are, all equally likely."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(output, target)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """The part that is classified rightly."""
        return (output.argmax(1) == target).float().mean()

    def chance(self, input: Tensor, target: Tensor) -> float:
        """One in `num_classes`."""
        return 1 / self.num_classes


def check_samples(x: Any, *, clips: bool, name: str = "x") -> None:
    """Raise unless `x` is floating-point images `[B, C, H, W]`, or clips `[B, T, C, H, W]`."""
    wanted = "[B, T, C, H, W]" if clips else "[B, C, H, W]"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: got {got}, expected a floating-point tensor {wanted}")
    if x.dim() != (5 if clips else 4):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {wanted}")


def device_of(generator: torch.Generator | None) -> torch.device:
    """Where a generator draws."""
    return torch.device("cpu") if generator is None else generator.device


def whole(name: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Raise unless `value` is an integer in this range."""
    wanted = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected {wanted}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: got {value}, expected {wanted}")


def number(name: str, value: Any, *, least: float = 0.0, most: float = float("inf"), open: bool = False) -> None:
    """Raise unless `value` is a finite number from `least` (or, if `open`, above it) to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, expected a number")
    inside = (least < value if open else least <= value) and value <= most and value < float("inf")
    if not inside:
        upper = "" if most == float("inf") else f" and <= {most:g}"
        raise ValueError(f"{name}: got {value}, expected a finite number {'>' if open else '>='} {least:g}{upper}")
