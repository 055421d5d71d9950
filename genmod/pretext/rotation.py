"""Rotation: by how many quarter turns was the image turned?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genmod.pretext.task import Classification, Draws, Shape, device_of


def quarter_turns(x: Tensor, turns: Tensor) -> Tensor:
    """Turn sample b by `turns[b]` times 90 degrees, as `torch.rot90(x[b], turns[b], (-2, -1))` does.

    Half turns first, then quarter turns, so that the batch is read twice and the device never waited for.

    Args:
        x: `[B, ..., H, W]` with H = W.
        turns: integers `[B]`, of any size and sign.
    """
    if x.dim() < 3 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected square images, [B, ..., H, H]")
    if turns.shape != x.shape[:1]:
        raise ValueError(f"turns: got shape {tuple(turns.shape)}, expected one number for each of {len(x)} samples")
    turns = turns.remainder(4).reshape(-1, *[1] * (x.dim() - 1))
    halved = torch.where(turns >= 2, x.flip(-2, -1), x)
    return torch.where(turns % 2 == 1, halved.rot90(1, (-2, -1)), halved)


@dataclass(frozen=True)
class Rotation(Classification):
    """Which of four quarter turns a square image was given (Gidaris, Singh and Komodakis, ICLR 2018).

    The output is four logits, the target the number of turns, counter-clockwise; chance is 1/4.

    Attributes:
        every: take every image in all four ways, as the paper does, instead of in one drawn at random. The batch is
            then four times as large: all images unturned, then all turned once, and so on.
    """

    name: ClassVar[str] = "rotation"
    every: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.every, bool):
            raise TypeError(f"every: got {self.every!r}, expected True or False")

    @property
    def num_classes(self) -> int:
        """Four."""
        return 4

    def draw(self, n: int, shape: Shape, generator: torch.Generator | None = None) -> Draws:
        """The turns of each image."""
        if self.every:
            return {}
        return {"turns": torch.randint(4, (n,), generator=generator, device=device_of(generator))}

    def transform(
        self, x: Tensor, generator: torch.Generator | None = None, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images `[B, C, H, H]` to turned ones, and the turns `[B]`."""
        draws = self._prepare(x, generator, draws)
        if self.every:
            turns = torch.arange(4, device=x.device).repeat_interleave(len(x))
            return quarter_turns(x.repeat(4, 1, 1, 1), turns), turns
        return quarter_turns(x, draws["turns"]), draws["turns"]

    def head(self, encoder: Any, shape: Shape) -> nn.Module:
        """A linear layer."""
        return nn.Linear(encoder.num_features, 4)

    def predict(self, encoder: Any, head: nn.Module, input: Tensor) -> Tensor:
        """Four logits for each image."""
        return head(encoder(input))
