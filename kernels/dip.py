"""The covariance penalty of DIP-VAE on a GPU, forward and backward. For the maths see genmod/reference/aggregate.py.

Forward: `_sums` adds up the columns of each part of the rows; `_products` has every part's share of each tile of the
covariance, of means less their average; `_penalties` adds up the parts of a tile; and one sum adds up the tiles. Tiles
below the diagonal are those above it, and are not computed. Backward: `_pulls` multiplies the centred means by the
penalty's slope.

Both products are sums of outer products in registers, in the full precision of float32: tensor cores would round what
is multiplied, and the covariance of a batch is a small part of a step.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.elementary import exp_parts
from genmod.kernels.launch import launch
from genmod.kernels.pairs import empty, wide

_STRIDES = ["mean_row", "mean_dim", "logvar_row", "logvar_dim"]
_SIZES = ["rows", "dims", "parts", "part", "tiles"]


@triton.jit(do_not_specialize=[*_SIZES, *_STRIDES])
def _sums(
    out, mean, logvar, mean_row, mean_dim, logvar_row, logvar_dim, rows, dims, parts, part,
    ROWS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The sums over a part's rows: `out` [2, parts, D] of means and of variances."""
    index, block = tl.program_id(0) % parts, tl.program_id(0) // parts
    d = (block * DIMS + tl.arange(0, DIMS)).to(tl.int64)[None, :]
    of_means = tl.zeros([DIMS], out.dtype.element_ty)
    of_variances = tl.zeros([DIMS], out.dtype.element_ty)
    for first in range(index * part, tl.minimum(index * part + part, rows), ROWS):
        k = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (k < tl.minimum(index * part + part, rows)) & (d < dims)
        of_means += tl.sum(
            tl.load(mean + k * mean_row + d * mean_dim, mask=inside, other=0.0).to(out.dtype.element_ty), 0
        )
        if logvar is not None:
            raw = tl.load(logvar + k * logvar_row + d * logvar_dim, mask=inside, other=0.0).to(out.dtype.element_ty)
            of_variances += tl.sum(tl.where(inside, exp_parts(raw)[0], 0.0), 0)
    place = out + index.to(tl.int64) * dims + block * DIMS + tl.arange(0, DIMS)
    known = block * DIMS + tl.arange(0, DIMS) < dims
    tl.store(place, of_means, mask=known)
    tl.store(place + parts.to(tl.int64) * dims, of_variances, mask=known)


@triton.jit
def _average(sums, parts, rows, dims, d):
    """The average of columns, from the parts' sums."""
    total = tl.zeros(d.shape, sums.dtype.element_ty)
    for _ in tl.range(0, parts, loop_unroll_factor=4):
        total += tl.load(sums + d, mask=d < dims, other=0.0)
        sums += dims
    return total / rows


@triton.jit
def _tile(index):
    """Row and column, in tiles, of a tile on the diagonal or above it. They are numbered column by column."""
    column = index * 0
    while (column + 1) * (column + 2) // 2 <= index:
        column += 1
    return index - column * (column + 1) // 2, column


@triton.jit(do_not_specialize=[*_SIZES, *_STRIDES])
def _products(
    out, moments, mean, sums, mean_row, mean_dim, rows, dims, parts, part, tiles,
    TILE: tl.constexpr,
):  # fmt: skip
    """A part's share of a tile of the covariance, times the batch: `out` [parts, tiles, TILE, TILE]."""
    index, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row, column = _tile(tile)
    i, j = row * TILE + tl.arange(0, TILE), column * TILE + tl.arange(0, TILE)
    average_i, average_j = _average(sums, parts, rows, dims, i), _average(sums, parts, rows, dims, j)
    if (index == 0) & (row == column):
        tl.store(moments + dims.to(tl.int64) * dims + j, average_j, mask=j < dims)
    products = tl.zeros([TILE, TILE], out.dtype.element_ty)
    first = index * part
    line = mean + first.to(tl.int64) * mean_row
    for _ in tl.range(first, tl.minimum(first + part, rows), loop_unroll_factor=2):
        of_i = tl.load(line + i.to(tl.int64) * mean_dim, mask=i < dims, other=0.0).to(out.dtype.element_ty) - average_i
        of_j = tl.load(line + j.to(tl.int64) * mean_dim, mask=j < dims, other=0.0).to(out.dtype.element_ty) - average_j
        products += of_i[:, None] * of_j[None, :]
        line += mean_row
    place = tl.program_id(0).to(tl.int64) * (TILE * TILE)
    inner = tl.arange(0, TILE)
    tl.store(out + place + inner[:, None] * TILE + inner[None, :], products)


@triton.jit(do_not_specialize=_SIZES)
def _penalties(
    out, moments, products, sums, rows, dims, parts, tiles, lambda_od: tl.float64, lambda_d: tl.float64,
    TILE: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """Of a band of a tile: its covariances, which go to `moments` on both sides of the diagonal, and their penalty."""
    tile, band = tl.program_id(0) // (TILE // BAND), tl.program_id(0) % (TILE // BAND)
    row, column = _tile(tile)
    r, c = band * BAND + tl.arange(0, BAND)[:, None], tl.arange(0, TILE)[None, :]
    i, j = row * TILE + r, column * TILE + c
    place = products + tile.to(tl.int64) * (TILE * TILE) + r * TILE + c
    value = tl.zeros([BAND, TILE], products.dtype.element_ty)
    for _ in tl.range(0, parts, loop_unroll_factor=4):
        value += tl.load(place)
        place += tiles.to(tl.int64) * (TILE * TILE)
    value /= rows
    inside = (i < dims) & (j < dims) & (i <= j)
    # Without log-variances these are sums of zeros.
    value += tl.where(i == j, _average(sums + parts.to(tl.int64) * dims, parts, rows, dims, j), 0.0)
    tl.store(moments + i.to(tl.int64) * dims + j, value, mask=inside)
    tl.store(moments + j.to(tl.int64) * dims + i, value, mask=inside)
    off_diagonal, diagonal = tl.full([1], 2 * lambda_od, value.dtype), tl.full([1], lambda_d, value.dtype)
    penalty = tl.where(i == j, diagonal * (value - 1.0) * (value - 1.0), off_diagonal * value * value)
    tl.store(out + tl.program_id(0), tl.sum(tl.sum(tl.where(inside, penalty, 0.0), 1), 0))


@triton.jit(do_not_specialize=[*_SIZES, *_STRIDES])
def _pulls(
    d_mean, d_logvar, grad, mean, logvar, moments, mean_row, mean_dim, logvar_row, logvar_dim, rows, dims, tiles,
    lambda_od: tl.float64, lambda_d: tl.float64, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The gradients of a block of rows and a tile of columns."""
    k = (tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    j = (tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)).to(tl.int64)
    outer = (k < rows) & (j < dims)[None, :]
    share = tl.load(grad) / rows
    off_diagonal = share * tl.full([1], 2 * lambda_od, moments.dtype.element_ty)
    diagonal = share * tl.full([1], 2 * lambda_d, moments.dtype.element_ty)
    if d_mean is not None:
        pull = tl.zeros([ROWS, TILE], moments.dtype.element_ty)
        average, covariance = moments + dims.to(tl.int64) * dims, moments + j
        column = mean + k * mean_row
        for i in range(dims):
            of_i = tl.load(column, mask=k < rows, other=0.0).to(pull.dtype) - tl.load(average)
            value = tl.load(covariance, mask=j < dims, other=0.0)
            slope = tl.where(j == i, diagonal * (value - 1.0), off_diagonal * value)
            pull += of_i * slope[None, :]
            column += mean_dim
            covariance += dims
            average += 1
        tl.store(d_mean + k * dims + j[None, :], (2.0 * pull).to(d_mean.dtype.element_ty), mask=outer)
    if d_logvar is not None:
        slope = diagonal * (tl.load(moments + j * dims + j, mask=j < dims, other=0.0) - 1.0)
        raw = tl.load(logvar + k * logvar_row + j[None, :] * logvar_dim, mask=outer, other=0.0).to(slope.dtype)
        tl.store(
            d_logvar + k * dims + j[None, :],
            (slope[None, :] * exp_parts(raw)[0]).to(d_logvar.dtype.element_ty),
            mask=outer,
        )


# --- Launchers.

_WARPS = 4
_PROGRAMS = 264  # that fill a large GPU: two to each of 132 multiprocessors
_LEAST = 16  # rows of a part at least: below that, adding up parts takes longer than the rows


def _tile_size(dtype: torch.dtype, dims: int) -> int:
    return min(32 if dtype == torch.float64 else 64, max(16, triton.next_power_of_2(dims)))


def _inputs(mean: Tensor, logvar: Tensor | None) -> dict[str, Any]:
    rows, dims = mean.shape
    given = mean if logvar is None else logvar
    strides = dict(zip(_STRIDES, (*mean.stride(), *given.stride())))
    return {"mean": mean, "logvar": logvar, "rows": rows, "dims": dims, **strides}


def dip(mean: Tensor, logvar: Tensor | None, lambda_od: float, lambda_d: float) -> tuple[Tensor, Tensor]:
    rows, dims = mean.shape
    size = _tile_size(mean.dtype, dims)
    columns = triton.cdiv(dims, size)
    tiles = columns * (columns + 1) // 2
    part = max(_LEAST, triton.cdiv(rows, max(1, _PROGRAMS // max(tiles, 1))))
    parts = triton.cdiv(rows, part)
    sums, products = empty(mean, 2, parts, dims), empty(mean, parts, tiles, size, size)
    moments, inputs = empty(mean, dims + 1, dims), _inputs(mean, logvar)

    cut: dict[str, Any] = {"parts": parts, "part": part}
    block = {"ROWS": 16, "DIMS": min(size, 64)}
    launch(_sums, parts * triton.cdiv(dims, block["DIMS"]), _WARPS, mean, {"out": sums, **inputs, **cut, **block})

    cut |= {"tiles": tiles, "TILE": size, "sums": sums, "moments": moments}
    taken = {name: inputs[name] for name in ("mean", "mean_row", "mean_dim", "rows", "dims")}
    launch(_products, parts * tiles, _WARPS, mean, {"out": products, **taken, **cut})

    del cut["part"]
    band = min(size, 16)
    penalties = empty(mean, tiles * (size // band))
    cut |= {"rows": rows, "dims": dims, "lambda_od": lambda_od, "lambda_d": lambda_d, "BAND": band}
    launch(_penalties, penalties.numel(), _WARPS, mean, {"out": penalties, "products": products, **cut})
    return penalties.sum(), moments


def dip_backward(
    grad: Tensor,
    mean: Tensor,
    logvar: Tensor | None,
    moments: Tensor,
    lambda_od: float,
    lambda_d: float,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    rows, dims = mean.shape
    d_mean, d_logvar = (
        mean.new_empty(rows, dims) if t is not None and wanted >> bit & 1 else None
        for bit, t in enumerate((mean, logvar))
    )
    size, held = _tile_size(mean.dtype, dims), 16
    tiles = triton.cdiv(dims, size)
    arguments = {"d_mean": d_mean, "d_logvar": d_logvar, "grad": grad, "moments": moments.contiguous(), "tiles": tiles}
    arguments |= {**_inputs(mean, logvar), "lambda_od": lambda_od, "lambda_d": lambda_d, "ROWS": held, "TILE": size}
    launch(_pulls, triton.cdiv(rows, held) * tiles, _WARPS, mean, arguments)
    d_mean, d_logvar = (mean.new_empty(0) if g is None else g for g in (d_mean, d_logvar))
    return d_mean, d_logvar


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(op: Any, dtype: torch.dtype, batch: int, dims: int, *, logvar: bool) -> Any:
    def call() -> None:
        mean = torch.empty(batch, dims, dtype=dtype, device="meta")
        given = torch.empty_like(mean) if logvar else None
        if op is dip:
            op(mean, given, 10.0, 10.0)
        else:
            moments = torch.empty(dims + 1, dims, dtype=wide(dtype), device="meta")
            op(moments.new_empty(()), mean, given, moments, 10.0, 10.0, 3)

    return call


#: Between them they reach every branch of every kernel.
CASES = {
    "dip, float32": _case(dip, torch.float32, 1024, 64, logvar=True),
    "dip, bfloat16, odd, means alone": _case(dip, torch.bfloat16, 77, 10, logvar=False),
    "dip, float64, odd": _case(dip, torch.float64, 77, 70, logvar=True),
    "dip_backward, float32": _case(dip_backward, torch.float32, 1024, 64, logvar=True),
    "dip_backward, bfloat16, odd, means alone": _case(dip_backward, torch.bfloat16, 77, 10, logvar=False),
    "dip_backward, float64, odd": _case(dip_backward, torch.float64, 77, 70, logvar=True),
}
