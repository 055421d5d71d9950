"""Maximum mean discrepancy on a GPU, forward and backward. For the tiles see kernels/pairs.py.

Both samples are one set of points, x and then y, each padded by itself, so that a tile has pairs of one kind only, and
one factor. So all three sums are one launch; and in the backward, where rows and columns are the same points, a pair's
pull on both is two pulls on rows.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.launch import launch
from genmod.kernels.pairs import PITCH, REGISTERS, cut_samples, dims_block, empty, pitch, wide

_SIZES = [
    *("n", "m", "held_n", "held_m", "walked_n", "walked_m", "dims", "first_x", "first_y", "steps", "parts"),
    *("x_tiles", "all_tiles", "held_x_tiles", "held_tiles", "walked_x_tiles", "walked_tiles", "blocks", "tiles"),
    *("x_row", "x_dim", "y_row", "y_dim"),
]


@triton.jit(do_not_specialize=_SIZES)
def _copy(
    out, x, y, x_row, x_dim, y_row, y_dim, n, m, dims, x_tiles, all_tiles, steps,
    DIMS: tl.constexpr, MEMBERS: tl.constexpr, CHUNK: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Both samples to [D, points], in the type of the arithmetic and padded with zeros."""
    k = tl.program_id(0).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)[:, None]
    i = k - x_tiles.to(tl.int64) * PITCH
    for first in range(0, steps * DIMS, CHUNK):
        d = (first + tl.arange(0, CHUNK)).to(tl.int64)[None, :]
        of_x = tl.load(x + k * x_row + d * x_dim, mask=(k < n) & (d < dims), other=0.0).to(out.dtype.element_ty)
        inside = (i >= 0) & (i < m) & (d < dims)
        of_y = tl.load(y + i * y_row + d * y_dim, mask=inside, other=0.0).to(out.dtype.element_ty)
        place = d * (all_tiles.to(tl.int64) * PITCH) + k
        tl.store(
            out + place, tl.where(i < 0, of_x, of_y), mask=(d < steps * DIMS) & (k < all_tiles.to(tl.int64) * PITCH)
        )


@triton.jit
def _members(index, n, x_tiles, SIZE: tl.constexpr, PITCH: tl.constexpr):
    """Whether a block is of y, the place of its first point among all, and that point's index in its sample."""
    of_x = (n + SIZE - 1) // SIZE
    is_y = index >= of_x
    first = tl.where(is_y, index - of_x, index) * SIZE
    return is_y, first + tl.where(is_y, x_tiles * PITCH, 0), first


@triton.jit
def _squares(
    held, walked, held_offset, walked_offset, held_pitch, walked_pitch, steps,
    DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The squared distances of a tile, [WALKED, HELD]."""
    squares = tl.zeros([DIMS, WALKED, HELD], held.dtype.element_ty)
    for _ in range(steps):
        delta = tl.load(held + held_offset) - tl.load(walked + walked_offset)[:, :, None]
        squares = tl.fma(delta, delta, squares)
        held += DIMS * held_pitch
        walked += DIMS * walked_pitch
    return tl.sum(squares, axis=0)


@triton.jit
def _kernel(squares, KERNEL: tl.constexpr, WIDTHS: tl.constexpr, COUNT: tl.constexpr, SLOPE: tl.constexpr):
    """The kernel, or its derivative by the squared distance."""
    result = tl.zeros_like(squares)
    for s in tl.static_range(COUNT):
        if KERNEL == "imq":
            share = WIDTHS[s] / (WIDTHS[s] + squares)
            if SLOPE:
                result -= share * share / WIDTHS[s]
            else:
                result += share
        else:
            share = tl.exp2(squares * (-1.44269504088896340736 / WIDTHS[s]))
            if SLOPE:
                result -= share / WIDTHS[s]
            else:
                result += share
    return result


@triton.jit
def _factor(held_y, walked_y, xx, xy, yx, yy, like):
    """The factor of a tile, in the type of the arithmetic."""
    of_x = tl.where(walked_y, tl.full([1], xy, like.dtype), tl.full([1], xx, like.dtype))
    of_y = tl.where(walked_y, tl.full([1], yy, like.dtype), tl.full([1], yx, like.dtype))
    return tl.where(held_y, of_y, of_x)


@triton.jit(do_not_specialize=_SIZES)
def _values(
    out, held, walked, held_n, held_m, walked_n, walked_m, held_x_tiles, held_tiles, walked_x_tiles, walked_tiles,
    first_x, first_y, blocks, tiles, steps, xx: tl.float64, xy: tl.float64, yx: tl.float64, yy: tl.float64,
    KERNEL: tl.constexpr, WIDTHS: tl.constexpr, COUNT: tl.constexpr, SKIP: tl.constexpr,
    PITCH: tl.constexpr, DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """A block's and a part's sum of kernel values times factors. There are no pairs of a held y and a walked x."""
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    last = tl.minimum(part * tiles + tiles, (walked_n + WALKED - 1) // WALKED + (walked_m + WALKED - 1) // WALKED)
    d = tl.arange(0, DIMS)
    held_y, start, first = _members(block, held_n, held_x_tiles, HELD, PITCH)
    i, row = start + tl.arange(0, HELD), first + tl.arange(0, HELD)
    held_offset = d[:, None, None] * held_tiles * PITCH + i[None, None, :]
    known = row < tl.where(held_y, held_m, held_n)
    row += tl.where(held_y, first_y, first_x)
    total = tl.zeros([HELD], held.dtype.element_ty)
    for index in range(part * tiles, last):
        walked_y, start, first = _members(index, walked_n, walked_x_tiles, WALKED, PITCH)
        if walked_y | (held_y == 0):
            j, column = start + tl.arange(0, WALKED), first + tl.arange(0, WALKED)
            squares = _squares(
                held, walked, held_offset, d[:, None] * walked_tiles * PITCH + j[None, :],
                held_tiles.to(tl.int64) * PITCH, walked_tiles.to(tl.int64) * PITCH, steps, DIMS, WALKED, HELD,
            )  # fmt: skip
            value = _kernel(squares, KERNEL, WIDTHS, COUNT, False)
            if SKIP:  # times 0, which leaves the NaN of a point that is not finite
                itself = (row[None, :] == column[:, None]) & (held_y == walked_y)
                value *= tl.where(itself, 0.0, 1.0)
            here = column < tl.where(walked_y, walked_m, walked_n)
            value = tl.where(here[:, None] & known[None, :], value, 0.0)
            total += tl.sum(value, axis=0) * _factor(held_y, walked_y, xx, xy, yx, yy, total)
    tl.store(out + tl.program_id(0), tl.sum(total, axis=0))


@triton.jit(do_not_specialize=_SIZES)
def _pulls(
    out, held, walked, held_n, held_m, walked_n, walked_m, held_x_tiles, held_tiles, walked_x_tiles, walked_tiles,
    blocks, tiles, steps, xx: tl.float64, xy: tl.float64, yx: tl.float64, yy: tl.float64,
    KERNEL: tl.constexpr, WIDTHS: tl.constexpr, COUNT: tl.constexpr,
    PITCH: tl.constexpr, DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """What a part of the walked points does to a block of held ones: sums of factor * slope * (held - walked)."""
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    last = tl.minimum(part * tiles + tiles, (walked_n + WALKED - 1) // WALKED + (walked_m + WALKED - 1) // WALKED)
    d = tl.arange(0, DIMS)
    held_pitch, walked_pitch = held_tiles.to(tl.int64) * PITCH, walked_tiles.to(tl.int64) * PITCH
    held_y, start, first = _members(block, held_n, held_x_tiles, HELD, PITCH)
    i = start + tl.arange(0, HELD)
    held_offset = d[:, None, None] * held_tiles * PITCH + i[None, None, :]
    place = d[:, None] * held_tiles * PITCH + i[None, :]
    out += part * steps * DIMS * held_pitch
    begun = part < 0
    for index in range(part * tiles, last):
        walked_y, start, first = _members(index, walked_n, walked_x_tiles, WALKED, PITCH)
        j, column = start + tl.arange(0, WALKED), first + tl.arange(0, WALKED)
        walked_offset = d[:, None] * walked_tiles * PITCH + j[None, :]
        squares = _squares(
            held, walked, held_offset, walked_offset, held_pitch, walked_pitch, steps, DIMS, WALKED, HELD
        )
        slope = _kernel(squares, KERNEL, WIDTHS, COUNT, True)
        slope *= _factor(held_y, walked_y, xx, xy, yx, yy, slope)[:, None]
        here = column < tl.where(walked_y, walked_m, walked_n)
        slope = tl.where(here[:, None], slope, 0.0)
        p, q, to = held, walked, out
        for _ in range(steps):
            delta = tl.load(p + held_offset) - tl.load(q + walked_offset)[:, :, None]
            before = tl.load(to + place, mask=begun, other=0.0)
            tl.store(to + place, before + tl.sum(slope[None, :, :] * delta, axis=1))
            p += DIMS * held_pitch
            to += DIMS * held_pitch
            q += DIMS * walked_pitch
        begun = index >= 0


@triton.jit(do_not_specialize=_SIZES)
def _finish_pulls(
    d_x, d_y, pulls, grad, n, m, dims, x_tiles, all_tiles, steps, parts,
    DIMS: tl.constexpr, MEMBERS: tl.constexpr, CHUNK: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """The gradients of both samples."""
    blocks, pitch = all_tiles * (PITCH // MEMBERS), all_tiles.to(tl.int64) * PITCH
    k = (tl.program_id(0) % blocks).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)[None, :]
    d = (tl.program_id(0) // blocks * CHUNK + tl.arange(0, CHUNK)).to(tl.int64)[:, None]
    i = k - x_tiles.to(tl.int64) * PITCH
    in_x, in_y = (k < n) & (d < dims), (i >= 0) & (i < m) & (d < dims)
    total = tl.zeros([CHUNK, MEMBERS], pulls.dtype.element_ty)
    for _ in tl.range(0, parts, loop_unroll_factor=4):
        total += tl.load(pulls + d * pitch + k, mask=in_x | in_y, other=0.0)
        pulls += (steps * DIMS) * pitch
    total *= 2.0 * tl.load(grad)
    if d_x is not None:
        tl.store(d_x + k * dims + d, total.to(d_x.dtype.element_ty), mask=in_x)
    if d_y is not None:
        tl.store(d_y + i * dims + d, total.to(d_y.dtype.element_ty), mask=in_y)


# --- Launchers.

_WARPS = 4
_MEMBERS, _CHUNK = 32, 16  # of what the kernels that copy and add up take at a time


class _Samples:
    """A copy of two samples that the kernels work on."""

    def __init__(self, x: Tensor, y: Tensor):
        (self.n, self.dims), self.m, self.like = x.shape, y.shape[0], x
        self.x_tiles, self.tiles = pitch(self.n) // PITCH.value, (pitch(self.n) + pitch(self.m)) // PITCH.value
        block = dims_block(self.dims)
        self.steps = triton.cdiv(self.dims, block)
        self.points = empty(x, self.steps * block, self.tiles * PITCH.value)
        self.cut = {"steps": self.steps, "DIMS": block, "PITCH": PITCH.value, "MEMBERS": _MEMBERS, "CHUNK": _CHUNK}
        arguments = {"out": self.points, "x": x, "y": y, "x_row": x.stride(0), "x_dim": x.stride(1)}
        arguments |= {"y_row": y.stride(0), "y_dim": y.stride(1), **self.sizes(), **self.cut}
        launch(_copy, self.blocks, _WARPS, x, arguments)

    @property
    def blocks(self) -> int:
        return self.tiles * (PITCH.value // _MEMBERS)

    def sizes(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m, "dims": self.dims, "x_tiles": self.x_tiles, "all_tiles": self.tiles}


def _sweep(
    kernel: Any, held: _Samples, walked: _Samples, factors: tuple[float, ...], shape: Any, arguments: dict[str, Any]
) -> tuple[Tensor, int]:
    """Run a kernel over all pairs, into a tensor whose shape a function of the number of programs and parts gives."""
    how = cut_samples((held.n, held.m), (walked.n, walked.m), held.dims, held.like.dtype)
    out = empty(held.like, *shape(how))
    arguments = {"out": out, "held": held.points, "walked": walked.points, **how.sizes(), **arguments}
    arguments |= {"held_n": held.n, "held_m": held.m, "held_x_tiles": held.x_tiles, "held_tiles": held.tiles}
    arguments |= {"walked_n": walked.n, "walked_m": walked.m}
    arguments |= {"walked_x_tiles": walked.x_tiles, "walked_tiles": walked.tiles, "PITCH": PITCH.value}
    if wide(held.like.dtype) == torch.float32:
        arguments["maxnreg"] = REGISTERS
    launch(kernel, how.programs, how.dims, held.like, arguments | dict(zip(("xx", "xy", "yx", "yy"), factors)))
    return out, how.parts


def _factors(all_x: Tensor, all_y: Tensor, unbiased: bool) -> tuple[float, float, float]:
    """Of the sums within x, within y and between them."""
    n, m = all_x.shape[0], all_y.shape[0]
    return 1 / (n * (n - 1 if unbiased else n)), 1 / (m * (m - 1 if unbiased else m)), -2 / (n * m)


def _options(kernel: str, widths: list[float]) -> dict[str, Any]:
    return {"KERNEL": kernel, "WIDTHS": tuple(widths), "COUNT": len(widths)}


def mmd(
    x: Tensor,
    y: Tensor,
    all_x: Tensor | None,
    all_y: Tensor | None,
    first_x: int,
    first_y: int,
    kernel: str,
    widths: list[float],
    unbiased: bool,
) -> Tensor:
    columns = (x if all_x is None else all_x, y if all_y is None else all_y)
    held = _Samples(x, y)
    walked = held if all_x is None and all_y is None else _Samples(*columns)
    xx, yy, xy = _factors(*columns, unbiased)
    arguments = {"first_x": first_x, "first_y": first_y, "SKIP": unbiased, **_options(kernel, widths)}
    partials, _ = _sweep(_values, held, walked, (xx, xy, 0.0, yy), lambda how: (how.programs,), arguments)
    return partials.sum()


def _gradients(
    held: _Samples, walked: _Samples, factors: tuple[float, ...], grad: Tensor, options: dict[str, Any],
    d_x: Tensor | None, d_y: Tensor | None,
) -> None:  # fmt: skip
    """Write the gradients of the held points, of those that are wanted."""
    if d_x is None and d_y is None:
        return
    padded = held.points.shape
    pulls, parts = _sweep(_pulls, held, walked, factors, lambda how: (how.parts, *padded), options)
    arguments = {"d_x": d_x, "d_y": d_y, "pulls": pulls, "grad": grad, "parts": parts, **held.sizes(), **held.cut}
    launch(_finish_pulls, held.blocks * triton.cdiv(held.dims, _CHUNK), _WARPS, held.like, arguments)


def mmd_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    all_x: Tensor | None,
    all_y: Tensor | None,
    first_x: int,
    first_y: int,
    kernel: str,
    widths: list[float],
    unbiased: bool,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    points, options = (x, y, all_x, all_y), _options(kernel, widths)
    found = [t.new_empty(t.shape) if t is not None and wanted >> i & 1 else None for i, t in enumerate(points)]
    columns = (x if all_x is None else all_x, y if all_y is None else all_y)
    xx, yy, xy = _factors(*columns, unbiased)
    held = _Samples(x, y)
    if all_x is None and all_y is None:
        _gradients(held, held, (2 * xx, xy, xy, 2 * yy), grad, options, *found[:2])
    else:
        walked = _Samples(*columns)
        _gradients(held, walked, (xx, xy, 0.0, yy), grad, options, *found[:2])
        # Where a sample is its own columns, what it does as those is added.
        of_columns = [
            torch.empty_like(g, memory_format=torch.contiguous_format) if t is None and g is not None else found[2 + i]
            for i, (t, g) in enumerate(zip((all_x, all_y), found))
        ]
        _gradients(walked, held, (xx, 0.0, xy, yy), grad, options, *of_columns)
        for i, t in enumerate((all_x, all_y)):
            if t is None and found[i] is not None:
                found[i] = found[i] + of_columns[i]
    return tuple(x.new_empty(0) if g is None else g for g in found)


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(op: Any, dtype: torch.dtype, batch: int, dims: int, kernel: str) -> Any:
    def call() -> None:
        x, y = (torch.empty(batch, dims, dtype=dtype, device="meta") for _ in range(2))
        rest = (None, None, 0, 0, kernel, [2.0 * dims * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)], True)
        if op is mmd:
            op(x, y, *rest)
        else:
            op(torch.empty((), dtype=wide(dtype), device="meta"), x, y, *rest, 3)

    return call


#: Between them they reach every branch of every kernel.
CASES = {
    "mmd, float32": _case(mmd, torch.float32, 128, 64, "imq"),
    "mmd, float64, odd, rbf": _case(mmd, torch.float64, 77, 10, "rbf"),
    "mmd_backward, float32": _case(mmd_backward, torch.float32, 128, 64, "imq"),
    "mmd_backward, float64, odd, rbf": _case(mmd_backward, torch.float64, 77, 10, "rbf"),
}
