"""Which images and which random numbers belong to a training step: functions of the seed and the step alone.

So there is no loader whose place in the data would have to be saved: a run that is resumed at step 500 sees what it
would have seen, and so does one that shares each batch among several processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# What a seed is for comes first in its key, so that no two uses of one seed meet.
ORDER, DRAWS, PROCESS, CLIPS, SCORE = range(5)


def seed_of(*key: int) -> int:
    """A seed for torch's generators from whole numbers >= 0, mixed so that neighbouring keys have nothing in common."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Batches:
    """All images in a new order every epoch, one epoch after the other, cut into batches of one size.

    Args:
        count: number of images.
        size: images in a batch; a batch may reach over the end of an epoch, or of several.
        seed: of the orders.
    """

    def __init__(self, count: int, size: int, seed: int) -> None:
        self.count, self.size, self.seed = count, size, seed
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, number: int) -> Tensor:
        """The images of batch `number` = 0, 1, 2, ...: indices, int64 `[size]`."""
        return torch.cat(list(self._pieces(number * self.size, self.size)))

    def _pieces(self, start: int, wanted: int) -> Iterator[Tensor]:
        while wanted:
            epoch, offset = divmod(start, self.count)
            piece = self._order(epoch)[offset : offset + wanted]
            yield piece
            start, wanted = start + len(piece), wanted - len(piece)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(seed_of(ORDER, self.seed, epoch))
            # A batch lies in this epoch and at most the ones next to it: older orders are not asked for again.
            self._orders = {epoch: torch.randperm(self.count, generator=generator)}
        return self._orders[epoch]
