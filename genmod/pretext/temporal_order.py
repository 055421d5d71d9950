"""Before and after: in which order were these frames taken?"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from genmod.pretext.heads import FramesHead
from genmod.pretext.task import Classification, Draws, Shape, device_of, whole

KINDS = ("pair", "verification", "sorting")


@functools.cache
def orders(frames: int) -> Tensor:
    """All orders of so many frames that are no reversal of another one, `[frames! / 2, frames]`; the first is 0, 1, ...

    An order and its reversal count as one, because a motion backward mostly looks as likely as the motion (Lee et al.).
    """
    kept = [order for order in itertools.permutations(range(frames)) if order[0] < order[-1]]
    return torch.tensor(kept, device="cpu")


@dataclass(frozen=True)
class TemporalOrder(Classification):
    r"""The order of frames taken from a clip. The encoder sees each frame by itself, the head their features in a row.

    - "pair": of two frames at different times, does the first come before the second? Target 1 for yes. It can be
      learned only where time has a direction in the data: see `direction` of :func:`genmod.pretext.clips.pan`.
    - "verification": Misra, Zitnick and Hebert, *Shuffle and learn* (ECCV 2016). Of five frames
      :math:`a<b<c<d<e`, spread over the clip, the input is (b, c, d), target 1, or (b, a, d) or (b, e, d), target 0;
      each tuple is also turned around in time, at random, which leaves its target.
    - "sorting": Lee et al., *Sorting sequences* (ICCV 2017). `frames` frames, spread over the clip, in one of
      frames!/2 orders (see :func:`orders`); the target is its number.

    Classes are drawn equally likely, so chance is one in their number.

    Attributes:
        kind: which of them.
        frames: of "sorting", 3 to 5.
    """

    name: ClassVar[str] = "temporal_order"
    clips: ClassVar[bool] = True
    kind: Literal["pair", "verification", "sorting"] = "verification"
    frames: int = 4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}, expected one of {', '.join(map(repr, KINDS))}")
        whole("frames", self.frames, least=3, most=5)

    @property
    def num_classes(self) -> int:
        """Two, or frames!/2."""
        return math.factorial(self.frames) // 2 if self.kind == "sorting" else 2

    @property
    def shown(self) -> int:
        """Frames in the input."""
        return {"pair": 2, "verification": 3, "sorting": self.frames}[self.kind]

    @property
    def needed(self) -> int:
        """Frames that a clip must have at least."""
        return {"pair": 2, "verification": 5, "sorting": self.frames}[self.kind]

    def draw(self, n: int, shape: Shape, generator: torch.Generator | None = None) -> Draws:
        """Three uniform numbers for each clip: which class, which times, and which of several ways to show it."""
        uniform = torch.rand(n, 3, generator=generator, device=device_of(generator))
        return {"uniform": uniform}

    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Clips `[B, T, C, H, W]` to the frames shown, `[B, shown, C, H, W]`, and their class `[B]`."""
        times, target = self.times(x, self._prepare(x, generator, draws)["uniform"])
        return x[torch.arange(len(x), device=x.device)[:, None], times], target

    def times(self, x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The times `[B, shown]` of the frames that are shown, and the class `[B]`; `uniform` is what `draw` drew."""
        length = x.shape[1]
        if length < self.needed:
            raise ValueError(f"x: got clips of {length} frames, expected at least {self.needed} for kind={self.kind!r}")
        target = _below(uniform[:, 0], self.num_classes)
        if self.kind == "pair":
            # The k-th of all pairs first < second.
            pairs = torch.combinations(torch.arange(length, device=x.device))
            times = pairs[_below(uniform[:, 1], len(pairs))]
            return torch.where(target[:, None] == 1, times, times.flip(1)), target
        spread = _spread(length, self.needed, uniform[:, 1])
        if self.kind == "sorting":
            return spread.gather(1, orders(self.frames).to(x.device)[target]), target
        a, b, c, d, e = spread.unbind(1)
        way = _below(uniform[:, 2], 4)
        middle = torch.where(target == 1, c, torch.where(way % 2 == 1, a, e))
        times = torch.stack([b, middle, d], 1)
        return torch.where((way >= 2)[:, None], times.flip(1), times), target

    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """A hidden layer on the frames' features, and a linear one."""
        return FramesHead(encoder.num_features, self.shown, self.num_classes)

    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """Logits `[B, num_classes]`."""
        return head(encoder(input.flatten(0, 1)).unflatten(0, input.shape[:2]))


def _below(uniform: Tensor, n: int) -> Tensor:
    """A uniform number in [0, 1) as one of 0, ..., n - 1."""
    return (uniform * n).long().clamp(max=n - 1)


def _spread(length: int, frames: int, uniform: Tensor) -> Tensor:
    """Times `[B, frames]` with equal steps, as long as the clip allows, and the first of them where `uniform` says."""
    stride = (length - 1) // (frames - 1)
    start = _below(uniform, length - stride * (frames - 1))
    return start[:, None] + stride * torch.arange(frames, device=uniform.device)
