"""Total correlation on a GPU, forward. See kernels/aggregate.py, and kernels/pairs.py for the tiles.

The log2-density of a pair in a dimension is t = scale (z - centre)^2 + offset. A sum of powers 2^t is kept as its
largest t and what the sum is relative to that one: the rounding of a large log is itself large. t is computed by the
same instructions everywhere (so the explicit `fma`), so that none is above its maximum when it is computed again.

`_prepare` copies, `_sweep` has the sums of each part of the columns, `_normalizers` puts parts together, and `_finish`
adds up rows. The backward is in kernels/total_correlation_backward.py.

All are bound by instructions: per pair and dimension, with what tiles share, some 10 forward, 14 for z and 18 for the
columns, of which one exponential each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.elementary import exp_parts
from genmod.kernels.launch import launch
from genmod.kernels.pairs import PITCH, REGISTERS, Cut, cut, dims_block, empty, pitch, wide

_LN2 = math.log(2.0)
SIZES = ["rows", "batch", "dims", "first_row", "row_tiles", "column_tiles", "steps", "blocks", "tiles", "parts"]
_STRIDES = [f"{name}_{axis}" for name in ("z", "mean", "logvar") for axis in ("row", "dim")]


@triton.jit
def _number(value, like):
    """A scalar argument in the type of the arithmetic."""
    return tl.full([1], value, like.dtype)


@triton.jit
def weight_of(row, column, batch, own, successor, like):
    """The weight of a pair, relative to that of most pairs. `row` and `column` are indices in the batch."""
    next_column = tl.where(row + 1 == batch, 0, row + 1)
    by_successor = tl.where(next_column == column, _number(successor, like), 1.0)
    return tl.where(row == column, _number(own, like), by_successor)


@triton.jit
def is_special(row, ROWS: tl.constexpr, column, COLUMNS: tl.constexpr, batch):
    """Whether a tile has a pair whose weight is not that of most: it is on the diagonal or one beside."""
    return ((column <= row + ROWS) & (row < column + COLUMNS)) | ((column == 0) & (row + ROWS >= batch))


@triton.jit
def gradient(value, batch, like):
    """An incoming gradient over the batch, 0 if there is none."""
    if value is None:
        return tl.zeros([1], like.dtype)
    else:
        return tl.load(value + tl.zeros([1], tl.int32)) / batch


@triton.jit
def _load(pointer, inside, like):
    return tl.load(pointer, mask=inside, other=0.0).to(like.dtype)


@triton.jit(do_not_specialize=[*SIZES, *_STRIDES])
def _prepare(
    points, joints, columns, sums, z, mean, logvar, normalizers, information, correlation, kl,
    z_row, z_dim, mean_row, mean_dim, logvar_row, logvar_dim,
    rows, batch, dims, row_tiles, column_tiles, steps,
    DIMS: tl.constexpr, MEMBERS: tl.constexpr, CHUNK: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Of a block of members: `columns` [3, D, columns] has centre, scale and offset, `sums` each column's sum of
    offsets, and `points` [1 or 3, D, rows] z and, of every marginal, the top and the factor of its gradient; `joints`
    [2, rows] the same of the joint. Padding gives what adds nothing."""
    k = tl.program_id(0).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)[:, None]
    row_pitch, column_pitch = row_tiles.to(tl.int64) * PITCH, column_tiles.to(tl.int64) * PITCH
    padded = steps * DIMS
    is_row, is_column = k < rows, k < batch
    total = tl.zeros([MEMBERS], sums.dtype.element_ty)
    second = rows.to(tl.int64) * (dims + 1)
    if normalizers is not None:
        of_correlation = gradient(correlation, batch, total)
        of_joint = (of_correlation - gradient(information, batch, total))[None, :]
        of_marginals = (gradient(kl, batch, total) - of_correlation)[None, :]
        last = k * (dims + 1) + dims
        tl.store(joints + k, tl.load(normalizers + last, mask=is_row, other=float("inf")), mask=k < row_pitch)
        inverse = tl.load(normalizers + second + last, mask=is_row, other=0.0)
        tl.store(joints + row_pitch + k, inverse * of_joint, mask=k < row_pitch)
    for first in range(0, padded, CHUNK):
        d = (first + tl.arange(0, CHUNK)).to(tl.int64)[None, :]
        known = d < dims
        centre = _load(mean + k * mean_row + d * mean_dim, is_column & known, total)
        spread = _load(logvar + k * logvar_row + d * logvar_dim, is_column & known, total)
        precision, _, _ = exp_parts(-spread)
        scale = tl.where(is_column & known, -0.72134752044448170368 * precision, 0.0)
        offset = -0.72134752044448170368 * spread - 1.32574806473616046210  # log2(2 pi) / 2
        offset = tl.where(is_column & known, offset, tl.where(is_column, 0.0, -float("inf")))
        total += tl.sum(offset, axis=1)
        stored, place = (d < padded) & (k < column_pitch), d * column_pitch + k
        plane = padded * column_pitch
        tl.store(columns + place, centre, mask=stored)
        tl.store(columns + plane + place, scale, mask=stored)
        tl.store(columns + 2 * plane + place, offset, mask=stored)
        stored, place = (d < padded) & (k < row_pitch), d * row_pitch + k
        at = _load(z + k * z_row + d * z_dim, is_row & known, total)
        tl.store(points + place, at, mask=stored)
        if normalizers is not None:
            plane = padded * row_pitch
            above = k * (dims + 1) + d
            top = tl.load(normalizers + above, mask=is_row & known, other=float("inf"))
            factor = tl.load(normalizers + second + above, mask=is_row & known, other=0.0) * of_marginals
            tl.store(points + plane + place, top, mask=stored)
            tl.store(points + 2 * plane + place, factor, mask=stored)
    k = tl.program_id(0).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)
    tl.store(sums + k, tl.where(k < batch, total, -float("inf")), mask=k < column_pitch)


@triton.jit
def own_part(blocks, tiles, walked, WALKED: tl.constexpr):
    """The block of a program, its part, and that part's first and last tile."""
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    first = part * tiles
    return block, part, first, tl.minimum(first + tiles, (walked + WALKED - 1) // WALKED)


@triton.jit
def term(at, centre, scale):
    delta = at - centre
    return delta, delta * scale


@triton.jit
def _sweep_tile(
    z, columns, sums, tops, totals, z_offset, column_offset, place, weight, row_pitch, column_pitch, steps, begun,
    SPECIAL: tl.constexpr, FLOOR: tl.constexpr,
    DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Adds a tile to the running maxima and sums of the marginals; and its joint log2-densities, [WALKED, HELD]."""
    joint = tl.zeros([DIMS, WALKED, HELD], z.dtype.element_ty)
    plane = steps * (DIMS * column_pitch)
    for _ in range(steps):
        at = tl.load(z + z_offset)
        top = tl.load(tops + place, mask=begun, other=FLOOR)
        total = tl.load(totals + place, mask=begun, other=0.0)
        centre = tl.load(columns + column_offset)[:, :, None]
        scale = tl.load(columns + plane + column_offset)[:, :, None]
        offset = tl.load(columns + 2 * plane + column_offset)[:, :, None]
        delta, bent = term(at, centre, scale)
        joint = tl.fma(bent, delta, joint)
        t = tl.fma(bent, delta, offset)
        higher = tl.maximum(top, tl.max(t, axis=1))
        power = tl.exp2(t - higher[:, None, :])
        if SPECIAL:
            power *= weight[None, :, :]
        tl.store(totals + place, total * tl.exp2(top - higher) + tl.sum(power, axis=1))
        tl.store(tops + place, higher)
        z += DIMS * row_pitch
        tops += DIMS * row_pitch
        totals += DIMS * row_pitch
        columns += DIMS * column_pitch
    return tl.sum(joint, axis=0) + tl.load(sums)[:, None]


@triton.jit(do_not_specialize=SIZES)
def _sweep(
    tops, totals, own_density, z, columns, sums,
    rows, batch, first_row, row_tiles, column_tiles, blocks, tiles, steps, own: tl.float64, successor: tl.float64,
    FLOOR: tl.constexpr, PITCH: tl.constexpr, DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The largest terms and the sums relative to them, [parts, D + 1, rows], of a block of rows and a part of the
    columns; the last is the joint. And the joint log2-density of a row's own column."""
    block, part, tile, last = own_part(blocks, tiles, batch, WALKED)
    row_pitch, column_pitch = row_tiles.to(tl.int64) * PITCH, column_tiles.to(tl.int64) * PITCH
    d, lane, k = tl.arange(0, DIMS), tl.arange(0, HELD), tl.arange(0, WALKED)
    i = block * HELD + lane
    row = i + first_row
    z_offset = d[:, None, None] * row_tiles * PITCH + i[None, None, :]
    place = d[:, None] * row_tiles * PITCH + i[None, :]
    state = part * (steps * DIMS + 1).to(tl.int64) * row_pitch
    like = tl.load(sums + lane)
    joint_top = tl.full([HELD], FLOOR, like.dtype)
    joint_total = tl.zeros([HELD], like.dtype)
    begun = tile < 0
    for index in range(tile, last):
        column = index * WALKED
        j = column + k
        column_offset = d[:, None] * column_tiles * PITCH + j[None, :]
        special = is_special(block * HELD + first_row, HELD, column, WALKED, batch)
        if special:
            weight = weight_of(row[None, :], j[:, None], batch, own, successor, like)
            density = _sweep_tile(
                z, columns, sums + j, tops + state, totals + state, z_offset, column_offset, place, weight, row_pitch,
                column_pitch, steps, begun, True, FLOOR, DIMS, WALKED, HELD,
            )  # fmt: skip
            mine = tl.sum(tl.where(row[None, :] == j[:, None], density, 0.0), axis=0)
            tl.store(own_density + i, mine, mask=(row >= column) & (row < column + WALKED) & (i < rows))
            higher = tl.maximum(joint_top, tl.max(density, axis=0))
            total = tl.sum(tl.exp2(density - higher[None, :]) * weight, axis=0)
        else:
            density = _sweep_tile(
                z, columns, sums + j, tops + state, totals + state, z_offset, column_offset, place, None, row_pitch,
                column_pitch, steps, begun, False, FLOOR, DIMS, WALKED, HELD,
            )  # fmt: skip
            higher = tl.maximum(joint_top, tl.max(density, axis=0))
            total = tl.sum(tl.exp2(density - higher[None, :]), axis=0)
        joint_total = joint_total * tl.exp2(joint_top - higher) + total
        joint_top = higher
        begun = index >= 0
    state += steps * DIMS * row_pitch
    tl.store(tops + state + i, joint_top)
    tl.store(totals + state + i, joint_total)


@triton.jit(do_not_specialize=SIZES)
def _normalizers(
    out, marginals, distances, tops, totals, z, rows, dims, row_tiles, steps, parts, rest: tl.float64,
    FLOOR: tl.constexpr, PITCH: tl.constexpr, DIMS: tl.constexpr, MEMBERS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Puts the parts of a block of densities together: `out` [2, rows, D + 1] is what the op returns. Over a chunk of
    dimensions, each row's sum of the logs of the marginals, and of their distance from those of the prior."""
    blocks = row_tiles * (PITCH // MEMBERS)
    i = (tl.program_id(0) % blocks).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)
    chunk = tl.program_id(0) // blocks
    d = (chunk * CHUNK + tl.arange(0, CHUNK)).to(tl.int64)[:, None]
    pitch = row_tiles.to(tl.int64) * PITCH
    # The joint, which comes after the marginals, comes after the padding in the parts.
    place = tl.where(d < dims, d, (steps * DIMS).to(tl.int64)) * pitch + i[None, :]
    inside, marginal = (d <= dims) & (i < rows)[None, :], (d < dims) & (i < rows)[None, :]
    at = tl.load(z + d * pitch + i[None, :], mask=marginal, other=0.0)
    top = tl.full([CHUNK, MEMBERS], FLOOR, at.dtype)
    total = tl.zeros([CHUNK, MEMBERS], at.dtype)
    for _ in tl.range(0, parts, loop_unroll_factor=4):
        t = tl.load(tops + place, mask=inside, other=FLOOR)
        s = tl.load(totals + place, mask=inside, other=0.0)
        higher = tl.maximum(top, t)
        total = total * tl.exp2(top - higher) + s * tl.exp2(t - higher)
        top = higher
        tops += (steps * DIMS + 1).to(tl.int64) * pitch
        totals += (steps * DIMS + 1).to(tl.int64) * pitch
    kept = i[None, :] * (dims + 1) + d
    tl.store(out + kept, top, mask=inside)
    tl.store(out + rows.to(tl.int64) * (dims + 1) + kept, 1.0 / total, mask=inside)
    log = tl.where(marginal, top + tl.log2(total), 0.0)
    prior = -0.72134752044448170368 * at * at - 1.32574806473616046210
    distance = tl.where(marginal, (log + _number(rest, at)) - prior, 0.0)
    tl.store(marginals + chunk * pitch + i, tl.sum(log, axis=0))
    tl.store(distances + chunk * pitch + i, tl.sum(distance, axis=0))


@triton.jit(do_not_specialize=[*SIZES, "chunks"])
def _finish(
    information, correlation, kl, normalizers, own_density, marginals, distances,
    rows, dims, row_tiles, chunks, rest: tl.float64, factor: tl.float64, PITCH: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """The sums over rows of what they say, times a factor."""
    pitch = row_tiles.to(tl.int64) * PITCH
    like = tl.zeros([MEMBERS], normalizers.dtype.element_ty)
    to_information, to_correlation, to_kl = like, like, like
    rest, factor = _number(rest, like), _number(factor, like)
    for first in range(0, rows, MEMBERS):
        i = (first + tl.arange(0, MEMBERS)).to(tl.int64)
        inside = i < rows
        top = tl.load(normalizers + i * (dims + 1) + dims, mask=inside, other=0.0)
        inverse = tl.load(normalizers + (rows + i) * (dims + 1) + dims, mask=inside, other=1.0)
        density = tl.load(own_density + i, mask=inside, other=0.0)
        log = like
        for chunk in range(chunks):
            log += tl.load(marginals + chunk * pitch + i, mask=inside, other=0.0)
            to_kl += tl.load(distances + chunk * pitch + i, mask=inside, other=0.0)
        # The largest density first: what the others have in common with it then cancels exactly.
        to_information += tl.where(inside, (density - top) + tl.log2(inverse) - rest, 0.0)
        to_correlation += tl.where(inside, (top - tl.log2(inverse)) + rest - (log + dims * rest), 0.0)
    one = tl.zeros([1], tl.int32)
    tl.store(information + one, tl.sum(to_information, axis=0) * factor)
    tl.store(correlation + one, tl.sum(to_correlation, axis=0) * factor)
    tl.store(kl + one, tl.sum(to_kl, axis=0) * factor)


# --- Launchers.

_WARPS = 4
_MEMBERS, DIMS_AT_ONCE = 32, 16  # of what the kernels that copy and add up take at a time


def _weights(batch: int, dataset_size: int, estimator: str) -> tuple[float, float, float]:
    """The weights of a row's own column and of the next one, relative to that of the rest, and log2 of that."""
    if estimator == "mws":
        return 1.0, 1.0, -math.log2(dataset_size * batch)
    others = batch - 1
    return others / dataset_size, (dataset_size - others) / dataset_size, -math.log2(others)


class Batch:
    """The copies that the kernels work on, and the arguments that they take."""

    def __init__(
        self, z: Tensor, mean: Tensor, logvar: Tensor, dataset_size: int, estimator: str, first_row: int,
        normalizers: Tensor | None = None, gradients: tuple[Tensor | None, ...] = (None, None, None),
    ):  # fmt: skip
        (self.rows, self.dims), self.batch, self.like = z.shape, mean.shape[0], z
        self.padded = triton.cdiv(self.dims, dims_block(self.dims)) * dims_block(self.dims)
        self.row_pitch, self.column_pitch = pitch(self.rows), pitch(self.batch)
        self.points = empty(z, 1 if normalizers is None else 3, self.padded, self.row_pitch)
        self.joints = None if normalizers is None else empty(z, 2, self.row_pitch)
        self.columns, self.sums = empty(z, 3, self.padded, self.column_pitch), empty(z, self.column_pitch)
        self.own, self.successor, self.rest = _weights(self.batch, dataset_size, estimator)
        self.first_row = first_row
        given = {"information": gradients[0], "correlation": gradients[1], "kl": gradients[2]}
        arguments = {"points": self.points, "joints": self.joints, "columns": self.columns, "sums": self.sums}
        arguments |= {"z": z, "mean": mean, "logvar": logvar, "normalizers": normalizers, **given}
        for name, t in (("z", z), ("mean", mean), ("logvar", logvar)):
            arguments |= {f"{name}_row": t.stride(0), f"{name}_dim": t.stride(1)}
        block = dims_block(self.dims)
        arguments |= self.take("rows", "batch", "dims", "row_tiles", "column_tiles", "PITCH")
        arguments |= {"steps": self.padded // block, "DIMS": block, "MEMBERS": _MEMBERS, "CHUNK": DIMS_AT_ONCE}
        self.launch(_prepare, self.column_pitch // _MEMBERS, arguments, num_warps=8)

    def take(self, *names: str) -> dict[str, Any]:
        """The arguments of these names."""
        values = {"rows": self.rows, "batch": self.batch, "dims": self.dims, "first_row": self.first_row}
        values |= {"row_tiles": self.row_pitch // PITCH.value, "column_tiles": self.column_pitch // PITCH.value}
        values |= {"own": self.own, "successor": self.successor, "rest": self.rest, "PITCH": PITCH.value}
        return {name: values[name] for name in names}

    def cut(self, held: int, walked: int) -> Cut:
        return cut(held, walked, self.dims, self.like.dtype)

    def launch(self, kernel: Any, programs: int, arguments: dict[str, Any], num_warps: int = _WARPS) -> None:
        launch(kernel, programs, num_warps, self.like, arguments)

    def sweep(self, kernel: Any, how: Cut, arguments: dict[str, Any]) -> None:
        """A kernel over all pairs."""
        names = ("rows", "batch", "first_row", "row_tiles", "column_tiles", "own", "successor", "PITCH")
        arguments |= {"columns": self.columns, "sums": self.sums, **self.take(*names), **how.sizes()}
        if wide(self.like.dtype) == torch.float32:
            arguments["maxnreg"] = REGISTERS
        self.launch(kernel, how.programs, arguments, num_warps=how.dims)

    def add_up(self, kernel: Any, how: Cut, members: int, chunks: int, arguments: dict[str, Any]) -> None:
        """A kernel over blocks of padded members and of dimensions."""
        arguments |= {
            "steps": how.steps,
            "parts": how.parts,
            "DIMS": how.dims,
            "MEMBERS": _MEMBERS,
            "CHUNK": DIMS_AT_ONCE,
        }
        self.launch(kernel, members // _MEMBERS * chunks, arguments)


def total_correlation(
    z: Tensor, mean: Tensor, logvar: Tensor, dataset_size: int, estimator: str, first_row: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b = Batch(z, mean, logvar, dataset_size, estimator, first_row)
    how = b.cut(b.rows, b.batch)
    tops, totals = (empty(z, how.parts, b.padded + 1, b.row_pitch) for _ in range(2))
    own_density, floor = empty(z, b.row_pitch), torch.finfo(wide(z.dtype)).min
    tensors = {"tops": tops, "totals": totals, "own_density": own_density, "z": b.points}
    b.sweep(_sweep, how, {**tensors, "FLOOR": floor})

    chunks = triton.cdiv(b.dims + 1, DIMS_AT_ONCE)
    marginals, distances = (empty(z, chunks, b.row_pitch) for _ in range(2))
    normalizers, scalars = empty(z, 2, b.rows, b.dims + 1), [empty(z) for _ in range(3)]
    tensors = {"out": normalizers, "marginals": marginals, "distances": distances, "tops": tops, "totals": totals}
    tensors |= {"z": b.points, "FLOOR": floor, **b.take("rows", "dims", "row_tiles", "rest", "PITCH")}
    b.add_up(_normalizers, how, b.row_pitch, chunks, tensors)

    tensors = dict(zip(("information", "correlation", "kl"), scalars))
    tensors |= {"normalizers": normalizers, "own_density": own_density, "marginals": marginals, "distances": distances}
    tensors |= {"chunks": chunks, "factor": _LN2 / b.batch, "MEMBERS": 1024 if b.rows > 128 else 128}
    b.launch(_finish, 1, tensors | b.take("rows", "dims", "row_tiles", "rest", "PITCH"))
    return *scalars, normalizers


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def case(op: Any, dtype: torch.dtype, batch: int, dims: int) -> Any:
    """A call of one of the two ops on meta tensors."""

    def call() -> None:
        def make(*sizes: int, of: torch.dtype = dtype) -> Tensor:
            return torch.empty(sizes, dtype=of, device="meta")

        inputs, of = [make(batch, dims) for _ in range(3)], wide(dtype)
        if op is total_correlation:
            op(*inputs, 60_000, "mss", 0)
        else:
            op(*(make(of=of) for _ in range(3)), *inputs, make(2, batch, dims + 1, of=of), 60_000, "mss", 0, 7)

    return call


#: Between them they reach every branch of every kernel.
CASES = {
    "total_correlation, float32": case(total_correlation, torch.float32, 128, 64),
    "total_correlation, bfloat16, odd": case(total_correlation, torch.bfloat16, 77, 3),
    "total_correlation, float64, odd": case(total_correlation, torch.float64, 77, 10),
}
