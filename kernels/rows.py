"""The row model of genmod/layout.py on a GPU: which elements a program has, and where they lie in each tensor.

Flat index i is the place of an element in the outputs' memory order. It is cut into *segments* (one for everything; one
per sample when a result is per sample; one per row when rows are long), and these into blocks whose bounds are
multiples of BLOCK in i, not in the segment, so that blocks of noise are always whole. A program owns the part of one
block that lies in its segment. Element i of a tensor is at `i + row * gap`, gap being what lies between two of its
rows. Kernels take lengths of segments and gaps in units of UNIT elements, the largest power of two up to 16 that
divides them all; from it the compiler knows how wide it may load and store.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from genmod import layout

#: Sizes that kernels take. Triton would compile more kernels for those that are 1 or multiples of 16; UNIT says it all.
SIZES = ("length", "chunks", "cols")


@triton.jit
def place(length, chunks, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """This program's segment, the flat indices where that begins and ends, and where the aligned block starts."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    segment = program // chunks
    begin = segment * length * UNIT
    return segment, begin, (segment + 1) * length * UNIT, (begin // BLOCK + program % chunks) * BLOCK


@triton.jit
def elements(
    segment, begin, end, start, cols, part,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Flat indices of one of the block's `PARTS` parts, which of them are in the segment, and UNIT times their rows.

    Of four parts, part w is every element whose noise is word w of its counter.
    """
    lane = tl.arange(0, BLOCK // PARTS)
    if PARTS == 4:
        start += 64 * (lane // 16) + 16 * part
        index = start + lane % 16
    else:
        index = start + lane
    if SHORT:
        # A unit is in one row. Dividing its first element lets the compiler see that, divide once, and load it whole.
        unit = lane // UNIT
        if PARTS == 4:
            unit %= 16 // UNIT
        row = (start + unit * UNIT) // cols * UNIT
    else:
        row = segment * UNIT
    return index, (index >= begin) & (index < end), row


@triton.jit
def load(pointer, offset, inside):
    """Values in float32, or float64 if that is what the memory holds."""
    value = tl.load(pointer + offset, mask=inside, other=0.0)
    if pointer.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def store(pointer, offset, value, inside):
    tl.store(pointer + offset, value.to(pointer.dtype.element_ty), mask=inside)


_BYTES = 2048  # of one tensor, moved by one access of 16 bytes in each of the 4 * 32 lanes of a program


class Plan(NamedTuple):
    """How one launch is cut. `arguments` has the tensors (or dense copies of them), their gaps, and the cut."""

    programs: int
    num_warps: int
    per_sample: int  # segments in a sample
    arguments: dict[str, Any]


def plan(like: Tensor, per_sample: bool, parts: int, accesses: int, **tensors: Tensor | None) -> Plan:
    """Cut `tensors`, all of the shape of the mean view `like`; those to be written come first.

    `per_sample` keeps every segment within one sample. `parts` is 4 where noise is drawn and 1 elsewhere. `accesses` is
    how many 16-byte accesses in a row a lane makes to a tensor: they hide latency, until the registers run out.
    """
    cut = layout.rows(like, *tensors.values())
    numel, itemsize, batch = like.numel(), like.element_size(), like.shape[0]
    gaps = [0 if tensor is None else stride - cut.cols for tensor, stride in zip(cut.tensors, cut.strides, strict=True)]
    segments = batch if per_sample else 1
    full = accesses * _BYTES // itemsize
    if cut.rows > 1 and cut.cols >= full:
        segments = cut.rows  # which costs no division
    short = cut.rows not in (1, segments)
    length = numel // max(segments, 1)
    unit = math.gcd(16, length, *gaps, cut.cols if short else 0)
    block = min(full, max(256, 1 << (length - 1).bit_length()))
    # A segment begins in its first block wherever the common divisor of the two lengths lets it.
    slack = 0 if segments == 1 else block - math.gcd(length, block)
    chunks = -(-(length + slack) // block)
    arguments: dict[str, Any] = {
        "length": length // unit,
        "chunks": chunks,
        "cols": cut.cols,
        "PARTS": parts,
        "SHORT": short,
        "UNIT": unit,
        "WIDE": max(numel + 2 * block, cut.rows * max(cut.strides)) >= 2**31,
        "BLOCK": block,
    }
    for name, tensor, gap in zip(tensors, cut.tensors, gaps, strict=True):
        arguments[name] = tensor
        arguments[f"{name}_gap"] = gap // unit
    num_warps = max(1, 4 * block // full)
    return Plan(segments * chunks, num_warps, max(segments // max(batch, 1), 1), arguments)
