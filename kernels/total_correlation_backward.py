"""The backward of kernels/total_correlation.py, whose tiles it computes again.

`_prepare` copies; then a sweep that holds rows, for z, and one that holds columns, for mean and logvar, each followed
by a kernel that adds up parts. With W the gradient of a pair's log-density in a dimension, the joint's and the
marginal's share of it, all three gradients are sums of W, W delta and W delta^2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.pairs import empty
from genmod.kernels.total_correlation import (
    DIMS_AT_ONCE,
    SIZES,
    Batch,
    case,
    gradient,
    is_special,
    own_part,
    term,
    weight_of,
)


@triton.jit
def _densities(
    z, columns, sums, z_offset, column_offset, row_pitch, column_pitch, steps,
    ROWS_HELD: tl.constexpr, DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The joint log2-densities of a tile, [WALKED, HELD]."""
    total = tl.zeros([DIMS, WALKED, HELD], z.dtype.element_ty)
    plane = steps * (DIMS * column_pitch)
    for _ in range(steps):
        if ROWS_HELD:
            at = tl.load(z + z_offset)
            centre, scale = (
                tl.load(columns + column_offset)[:, :, None],
                tl.load(columns + plane + column_offset)[:, :, None],
            )
        else:
            at = tl.load(z + z_offset)[:, :, None]
            centre, scale = tl.load(columns + column_offset), tl.load(columns + plane + column_offset)
        delta, bent = term(at, centre, scale)
        total = tl.fma(bent, delta, total)
        z += DIMS * row_pitch
        columns += DIMS * column_pitch
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=SIZES)
def _to_rows(
    pulls, points, joints, columns, sums,
    rows, batch, first_row, row_tiles, column_tiles, blocks, tiles, steps, own: tl.float64, successor: tl.float64,
    PITCH: tl.constexpr, DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """What a part of the columns does to a block of rows: sum over j of W scale (z - centre), [parts, D, rows]."""
    block, part, tile, last = own_part(blocks, tiles, batch, WALKED)
    row_pitch, column_pitch = row_tiles.to(tl.int64) * PITCH, column_tiles.to(tl.int64) * PITCH
    d, lane, k = tl.arange(0, DIMS), tl.arange(0, HELD), tl.arange(0, WALKED)
    i = block * HELD + lane
    row = i + first_row
    z_offset = d[:, None, None] * row_tiles * PITCH + i[None, None, :]
    place = d[:, None] * row_tiles * PITCH + i[None, :]
    row_plane, column_plane = steps * (DIMS * row_pitch), steps * (DIMS * column_pitch)
    pulls += part * row_plane
    joint_top, joint_factor = tl.load(joints + i)[None, :], tl.load(joints + row_pitch + i)[None, :]
    begun = tile < 0
    for index in range(tile, last):
        column = index * WALKED
        j = column + k
        column_offset = d[:, None] * column_tiles * PITCH + j[None, :]
        special = is_special(block * HELD + first_row, HELD, column, WALKED, batch)
        density = _densities(
            points, columns, sums, z_offset, column_offset, row_pitch, column_pitch, steps, True, DIMS, WALKED, HELD
        )
        density += tl.load(sums + j)[:, None]
        of_joint = tl.exp2(tl.minimum(density - joint_top, 0.0)) * joint_factor
        z, c, out = points, columns, pulls
        if special:
            weight = weight_of(row[None, :], j[:, None], batch, own, successor, joint_top)
            of_joint *= weight
            for _ in range(steps):
                pull = _row_pull(z, c, row_plane, column_plane, z_offset, column_offset, of_joint, weight, True)
                tl.store(out + place, tl.load(out + place, mask=begun, other=0.0) + pull)
                z += DIMS * row_pitch
                out += DIMS * row_pitch
                c += DIMS * column_pitch
        else:
            for _ in range(steps):
                pull = _row_pull(z, c, row_plane, column_plane, z_offset, column_offset, of_joint, None, False)
                tl.store(out + place, tl.load(out + place, mask=begun, other=0.0) + pull)
                z += DIMS * row_pitch
                out += DIMS * row_pitch
                c += DIMS * column_pitch
        begun = index >= 0


@triton.jit
def _share(bent, delta, offset, top, factor, of_joint, weight, SPECIAL: tl.constexpr):
    """W, the gradient of a pair's t in a dimension."""
    power = tl.exp2(tl.minimum(tl.fma(bent, delta, offset) - top, 0.0))
    if SPECIAL:
        power *= weight[None, :, :]
    return tl.fma(power, factor, of_joint[None, :, :])


@triton.jit
def _row_pull(
    z, columns, row_plane, column_plane, z_offset, column_offset, of_joint, weight, SPECIAL: tl.constexpr
):  # fmt: skip
    at = tl.load(z + z_offset)
    top = tl.load(z + row_plane + z_offset)
    factor = tl.load(z + 2 * row_plane + z_offset)
    centre = tl.load(columns + column_offset)[:, :, None]
    scale = tl.load(columns + column_plane + column_offset)[:, :, None]
    offset = tl.load(columns + 2 * column_plane + column_offset)[:, :, None]
    delta, bent = term(at, centre, scale)
    return tl.sum(_share(bent, delta, offset, top, factor, of_joint, weight, SPECIAL) * bent, axis=1)


@triton.jit
def _column_pull(
    out, z, columns, row_plane, column_plane, z_offset, column_offset, place, of_joint, weight, begun,
    SPECIAL: tl.constexpr,
):  # fmt: skip
    """Adds W, W delta and W delta^2, summed over a tile's rows, to `out`."""
    at = tl.load(z + z_offset)[:, :, None]
    top = tl.load(z + row_plane + z_offset)[:, :, None]
    factor = tl.load(z + 2 * row_plane + z_offset)[:, :, None]
    centre = tl.load(columns + column_offset)
    scale = tl.load(columns + column_plane + column_offset)
    offset = tl.load(columns + 2 * column_plane + column_offset)
    first = tl.load(out + place, mask=begun, other=0.0)
    second = tl.load(out + column_plane + place, mask=begun, other=0.0)
    third = tl.load(out + 2 * column_plane + place, mask=begun, other=0.0)
    delta, bent = term(at, centre, scale)
    share = _share(bent, delta, offset, top, factor, of_joint, weight, SPECIAL)
    pull = share * delta
    tl.store(out + place, first + tl.sum(share, axis=1))
    tl.store(out + column_plane + place, second + tl.sum(pull, axis=1))
    tl.store(out + 2 * column_plane + place, third + tl.sum(pull * delta, axis=1))


@triton.jit(do_not_specialize=SIZES)
def _to_columns(
    pulls, points, joints, columns, sums,
    rows, batch, first_row, row_tiles, column_tiles, blocks, tiles, steps, own: tl.float64, successor: tl.float64,
    PITCH: tl.constexpr, DIMS: tl.constexpr, WALKED: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """What a part of the rows does to a block of columns: sums over i of W, W delta and W delta^2, delta being
    z - centre, [parts, 3, D, columns]."""
    block, part, tile, last = own_part(blocks, tiles, rows, WALKED)
    row_pitch, column_pitch = row_tiles.to(tl.int64) * PITCH, column_tiles.to(tl.int64) * PITCH
    d, lane, k = tl.arange(0, DIMS), tl.arange(0, HELD), tl.arange(0, WALKED)
    j = block * HELD + lane
    column_offset = d[:, None, None] * column_tiles * PITCH + j[None, None, :]
    place = d[:, None] * column_tiles * PITCH + j[None, :]
    row_plane, column_plane = steps * (DIMS * row_pitch), steps * (DIMS * column_pitch)
    pulls += part * 3 * column_plane
    of_column = tl.load(sums + j)[None, :]
    begun = tile < 0
    for index in range(tile, last):
        i = index * WALKED + k
        row = i + first_row
        z_offset = d[:, None] * row_tiles * PITCH + i[None, :]
        special = is_special(index * WALKED + first_row, WALKED, block * HELD, HELD, batch)
        density = _densities(
            points, columns, sums, z_offset, column_offset, row_pitch, column_pitch, steps, False, DIMS, WALKED, HELD
        )
        density += of_column
        joint_top, joint_factor = tl.load(joints + i)[:, None], tl.load(joints + row_pitch + i)[:, None]
        of_joint = tl.exp2(tl.minimum(density - joint_top, 0.0)) * joint_factor
        z, c, out = points, columns, pulls
        if special:
            weight = weight_of(row[:, None], j[None, :], batch, own, successor, of_column)
            of_joint *= weight
            for _ in range(steps):
                _column_pull(
                    out, z, c, row_plane, column_plane, z_offset, column_offset, place, of_joint, weight, begun, True
                )
                z += DIMS * row_pitch
                out += DIMS * column_pitch
                c += DIMS * column_pitch
        else:
            for _ in range(steps):
                _column_pull(
                    out, z, c, row_plane, column_plane, z_offset, column_offset, place, of_joint, None, begun, False
                )
                z += DIMS * row_pitch
                out += DIMS * column_pitch
                c += DIMS * column_pitch
        begun = index >= 0


@triton.jit(do_not_specialize=SIZES)
def _finish_rows(
    out, pulls, points, columns, information, kl, rows, batch, dims, first_row, row_tiles, column_tiles, steps, parts,
    PITCH: tl.constexpr, DIMS: tl.constexpr, MEMBERS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradient of z: what all columns do, and a row's own density and the prior."""
    blocks = row_tiles * (PITCH // MEMBERS)
    i = (tl.program_id(0) % blocks).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)[None, :]
    d = (tl.program_id(0) // blocks * CHUNK + tl.arange(0, CHUNK)).to(tl.int64)[:, None]
    row_pitch, column_pitch = row_tiles.to(tl.int64) * PITCH, column_tiles.to(tl.int64) * PITCH
    inside, padded = (d < dims) & (i < rows), (steps * DIMS).to(tl.int64)
    place = d * row_pitch + i
    at = tl.load(points + place, mask=inside, other=0.0)
    of_column = d * column_pitch + first_row + i
    centre = tl.load(columns + of_column, mask=inside, other=0.0)
    scale = tl.load(columns + padded * column_pitch + of_column, mask=inside, other=0.0)
    total = tl.zeros([CHUNK, MEMBERS], at.dtype)
    for _ in tl.range(0, parts, loop_unroll_factor=4):
        total += tl.load(pulls + place, mask=inside, other=0.0)
        pulls += padded * row_pitch
    to_own, to_prior = gradient(information, batch, at), gradient(kl, batch, at)
    result = 1.38629436111989061883 * (total + to_own * (scale * (at - centre))) + to_prior * at
    tl.store(out + i * dims + d, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _finish_columns(
    d_mean, d_logvar, pulls, points, columns, information,
    rows, batch, dims, first_row, row_tiles, column_tiles, steps, parts,
    PITCH: tl.constexpr, DIMS: tl.constexpr, MEMBERS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The gradients of mean and logvar: what all rows do, and the column's own row, if that is one of them."""
    blocks = column_tiles * (PITCH // MEMBERS)
    j = (tl.program_id(0) % blocks).to(tl.int64) * MEMBERS + tl.arange(0, MEMBERS)[None, :]
    d = (tl.program_id(0) // blocks * CHUNK + tl.arange(0, CHUNK)).to(tl.int64)[:, None]
    row_pitch, column_pitch = row_tiles.to(tl.int64) * PITCH, column_tiles.to(tl.int64) * PITCH
    inside, padded = (d < dims) & (j < batch), (steps * DIMS).to(tl.int64)
    place, plane, i = d * column_pitch + j, padded * column_pitch, j - first_row
    centre = tl.load(columns + place, mask=inside, other=0.0)
    scale = tl.load(columns + plane + place, mask=inside, other=0.0)
    total = tl.zeros([CHUNK, MEMBERS], centre.dtype)
    bend, square = total, total
    for _ in tl.range(0, parts, loop_unroll_factor=4):
        total += tl.load(pulls + place, mask=inside, other=0.0)
        bend += tl.load(pulls + plane + place, mask=inside, other=0.0)
        square += tl.load(pulls + 2 * plane + place, mask=inside, other=0.0)
        pulls += 3 * plane
    mine = inside & (i >= 0) & (i < rows)
    delta = tl.where(mine, tl.load(points + d * row_pitch + i, mask=mine, other=0.0) - centre, 0.0)
    to_own = tl.where(mine, gradient(information, batch, centre), 0.0)
    precision = -1.38629436111989061883 * scale
    if d_mean is not None:
        result = precision * (bend + to_own * delta)
        tl.store(d_mean + j * dims + d, result.to(d_mean.dtype.element_ty), mask=inside)
    if d_logvar is not None:
        result = 0.5 * (precision * (square + to_own * delta * delta) - (total + to_own))
        tl.store(d_logvar + j * dims + d, result.to(d_logvar.dtype.element_ty), mask=inside)


# --- Launcher.


def total_correlation_backward(
    grad_mutual_information: Tensor | None,
    grad_total_correlation: Tensor | None,
    grad_dimension_kl: Tensor | None,
    z: Tensor,
    mean: Tensor,
    logvar: Tensor,
    normalizers: Tensor,
    dataset_size: int,
    estimator: str,
    first_row: int,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = (grad_mutual_information, grad_total_correlation, grad_dimension_kl)
    b = Batch(z, mean, logvar, dataset_size, estimator, first_row, normalizers.contiguous(), gradients)
    found = [t.new_empty(t.shape) if wanted >> i & 1 else None for i, t in enumerate((z, mean, logvar))]
    d_z, d_mean, d_logvar = found
    chunks = triton.cdiv(b.dims, DIMS_AT_ONCE)
    tensors = {"points": b.points, "joints": b.joints}
    shared = {"points": b.points, "columns": b.columns, "information": grad_mutual_information}
    shared |= b.take("rows", "batch", "dims", "first_row", "row_tiles", "column_tiles", "PITCH")
    if d_z is not None:
        how = b.cut(b.rows, b.batch)
        pulls = empty(z, how.parts, b.padded, b.row_pitch)
        b.sweep(_to_rows, how, {"pulls": pulls, **tensors})
        arguments = {"out": d_z, "pulls": pulls, "kl": grad_dimension_kl, **shared}
        b.add_up(_finish_rows, how, b.row_pitch, chunks, arguments)
        del pulls, arguments  # their memory serves the columns
    if d_mean is not None or d_logvar is not None:
        how = b.cut(b.batch, b.rows)
        pulls = empty(z, how.parts, 3, b.padded, b.column_pitch)
        b.sweep(_to_columns, how, {"pulls": pulls, **tensors})
        arguments = {"d_mean": d_mean, "d_logvar": d_logvar, "pulls": pulls, **shared}
        b.add_up(_finish_columns, how, b.column_pitch, chunks, arguments)
    return tuple(z.new_empty(0) if g is None else g for g in found)


# --- What to compile ahead of time (see genmod/testing/compile_only.py).

#: Between them they reach every branch of every kernel.
CASES = {
    "total_correlation_backward, float32": case(total_correlation_backward, torch.float32, 128, 64),
    "total_correlation_backward, bfloat16, odd": case(total_correlation_backward, torch.bfloat16, 77, 3),
    "total_correlation_backward, float64, odd": case(total_correlation_backward, torch.float64, 77, 10),
}
