"""How a GPU sees `[N, C, ...]` where something is computed per channel: tiles of channels by positions.

A dense tensor is `samples` x `channels` x `space` elements, with either the positions (contiguous) or the channels
(channels_last) fastest; the same kernel serves both, since a tile only computes its addresses differently. A program
owns one sample, one block of channels and one chunk of positions, which it walks tile by tile.

Where samples do not matter (a batch norm in channels_last), positions of all of them are one space. Sizes come in
units: of `fast`, the size of the fastest dimension, the compiler learns by UNIT that it is a multiple of up to 16, and
so how wide it may load and store.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout

#: Sizes that kernels take; not to be specialised on, as in kernels/rows.py.
SIZES = ("fast", "slow", "blocks", "chunks", "steps")


@triton.jit
def sizes(fast, slow, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr):
    """Channels and positions."""
    if CHANNELS_LAST:
        channels, space = fast * UNIT, slow
    else:
        channels, space = slow, fast * UNIT
    return channels, space


@triton.jit
def place(blocks, chunks, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's sample, channels and chunk. Programs side by side share rows of memory."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    if CHANNELS_LAST:
        block, chunk = program % blocks, program // blocks % chunks
    else:
        block, chunk = program // chunks % blocks, program % chunks
    sample = program // (blocks * chunks)
    return sample, block * BLOCK_C + tl.arange(0, BLOCK_C), chunk


@triton.jit
def offsets(sample, channel, position, channels, space, CHANNELS_LAST: tl.constexpr):
    """Where `channel` and `position`, blocks of any shapes that fit, are in a tensor."""
    if CHANNELS_LAST:
        at = (sample * space + position) * channels + channel
    else:
        at = (sample * channels + channel) * space + position
    return at


class View(NamedTuple):
    """A dense tensor as samples x channels x space, and which of the last two is fastest."""

    samples: int
    channels: int
    space: int
    channels_last: bool


class Cut(NamedTuple):
    """How one launch is cut. A chunk is `chunk` positions (the last one less), `chunks` of them in a sample."""

    programs: int
    num_warps: int
    chunks: int
    chunk: int
    arguments: dict[str, Any]


def dense(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, all of the shape of `x`, in the memory format of what is made from `x`: copies where need be."""
    form = layout.memory_format_of(x)
    return [None if t is None else t.contiguous(memory_format=form) for t in tensors]


def view(x: Tensor, per_sample: bool) -> View:
    """The view of a tensor that is dense in the memory format of what is made from `x`."""
    samples, channels, space = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    channels_last = space == 1 or layout.memory_format_of(x) is not torch.contiguous_format
    if channels_last and not per_sample:
        samples, space = 1, samples * space
    return View(samples, channels, space, channels_last)


_LANES = 128  # in a program of full size
_BYTES = 16 * _LANES  # of one tensor, moved by one access of each
_PROGRAMS = 2048  # enough to fill the largest GPU; beyond it a program takes several tiles
_STEPS = 64  # at most, which bounds how long the last programs run alone


def power_of_two(size: int) -> int:
    """The next one."""
    return 1 << max(size - 1, 0).bit_length()


def cut(like: View, itemsize: int, accesses: int, *, reduces: bool) -> Cut:
    """Cut a view into tiles. `accesses` is how many 16-byte accesses in a row a lane makes to a tensor; of narrower
    ones, where sizes are odd, twice as many.

    A kernel that `reduces` its positions takes several tiles per program, to leave few partial results, and is
    launched for an empty space too.
    """
    samples, channels, space, channels_last = like
    unit = math.gcd(16, channels if channels_last else space)
    full = min(accesses * _BYTES // itemsize, 2 * accesses * unit * _LANES)
    if channels_last:  # 128 bytes of neighbouring channels; more only if there are not positions enough
        block_c = min(power_of_two(channels), 128 // itemsize, full)
        block_p = min(power_of_two(space), full // block_c)
        block_c = min(power_of_two(channels), full // block_p)
    else:
        block_p = min(power_of_two(space), full)
        block_c = min(power_of_two(channels), full // block_p)
    blocks, tiles = -(-channels // block_c), -(-space // block_p)
    steps = max(1, min(samples * blocks * tiles // _PROGRAMS, _STEPS)) if reduces else 1
    chunks = max(-(-tiles // steps), 1 if reduces else 0)
    arguments = {
        "fast": (channels if channels_last else space) // unit,
        "slow": space if channels_last else channels,
        "blocks": blocks,
        "chunks": chunks,
        "CHANNELS_LAST": channels_last,
        "UNIT": unit,
        "WIDE": samples * channels * space + 2 * full >= 2**31,
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
    }
    if reduces:
        arguments["steps"] = steps
    num_warps = max(1, 4 * block_c * block_p // full)
    return Cut(samples * blocks * chunks, num_warps, chunks, steps * block_p, arguments)
