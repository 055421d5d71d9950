"""How the kernels over all pairs of a batch cut their work. Used by kernels/total_correlation.py and kernels/mmd.py.

A tile is [DIMS, walked, held] of (dimension, member, member). The members that are *held* lie along the lanes, a few to
a thread; those that are *walked* over lie in each thread's registers, so that a sum over them is a thread's own; and a
warp has one of the DIMS dimensions, of which a program takes DIMS at a time. What a pair says, a sum over dimensions,
so crosses warps once in a tile; what a dimension says goes to memory that only this program writes, and comes back.

Members and dimensions are copied first to [dimensions, members], padded so that no access of a tile needs a mask and
all are aligned. A program holds one block of members and walks over one part of the others; the parts' results are put
together by another kernel in a fixed order, so that there are enough programs to fill a GPU and no atomics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Members are padded to a multiple of this many.
PITCH: tl.constexpr = tl.constexpr(128)
#: Programs of one launch that fill a large GPU: as many as run at once on 132 multiprocessors. They are fewer where
#: what they keep of their members would be more than the second number of bytes, but for one on each multiprocessor.
_PROGRAMS, _BYTES = 396, 1 << 26
#: Registers of a thread: as many as leave room for three programs of four warps on a multiprocessor.
REGISTERS = 168


#: The largest tile: dimensions, members walked over, members held.
_DIMS, _WALKED, _HELD = 4, 8, 128


class Cut(NamedTuple):
    """How a launch is cut: `held` members and `walked` ones to a tile, `dims` dimensions at a time and warps."""

    dims: int
    walked: int
    held: int
    blocks: int  # of held members
    parts: int  # of the walked ones
    tiles: int  # of one part at most
    steps: int  # over dimensions

    @property
    def programs(self) -> int:
        return self.blocks * self.parts

    @property
    def padded_dims(self) -> int:
        return self.steps * self.dims

    def sizes(self) -> dict[str, Any]:
        """The arguments that say so to a kernel."""
        cut = {"blocks": self.blocks, "tiles": self.tiles, "steps": self.steps}
        return cut | {"DIMS": self.dims, "WALKED": self.walked, "HELD": self.held}


def dims_block(dims: int) -> int:
    """Dimensions that a program takes at a time, one to a warp."""
    return min(_DIMS, triton.next_power_of_2(max(dims, 1)))


def cut(held: int, walked: int, dims: int, dtype: torch.dtype) -> Cut:
    """Cut `held` x `walked` pairs of `dims` dimensions. There are no more parts than fill a GPU: each has memory of its
    own for every held member and dimension, so that the memory is bounded whatever the batch."""
    return cut_samples((held,), (walked,), dims, dtype)


def cut_samples(held: tuple[int, ...], walked: tuple[int, ...], dims: int, dtype: torch.dtype) -> Cut:
    """The same of members that come in several samples; no tile has members of two."""
    block, held_block = dims_block(dims), _HELD if dtype != torch.float64 else 32
    blocks, all_tiles = (
        sum(triton.cdiv(members, size) for members in samples)
        for samples, size in ((held, held_block), (walked, _WALKED))
    )
    steps = triton.cdiv(dims, block)
    programs = min(_PROGRAMS, max(_PROGRAMS // 3, _BYTES // max(1, held_block * steps * block * wide(dtype).itemsize)))
    tiles = triton.cdiv(all_tiles, max(1, min(all_tiles, programs // max(blocks, 1))))
    parts = triton.cdiv(all_tiles, max(tiles, 1))
    return Cut(block, _WALKED, held_block, blocks, parts, tiles, steps)


def pitch(members: int) -> int:
    """Members, padded."""
    return triton.cdiv(members, PITCH.value) * PITCH.value


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty(like: Tensor, *sizes: int) -> Tensor:
    return like.new_empty(sizes, dtype=wide(like.dtype))
