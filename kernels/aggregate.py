"""Total correlation and maximum mean discrepancy on a GPU, forward and backward.

The functions have the names, arguments and results of the dispatcher's ops. For the maths see
genmod/reference/aggregate.py. Nothing of batch x batch x latent is kept: what belongs to a latent dimension (a
marginal, a gradient) stays in a program's registers while it walks over the other members of all pairs, and what
belongs to a pair (the joint density, the slope of a kernel) goes through a strip of columns about as wide as the
latent, so O(BD) in all. Sums have a fixed order, and no gradient is added to by two programs.

Logarithms are to base 2 inside: the log-density of a pair is t = scale (z - centre)^2 + offset. A sum of powers
2^t is kept as its largest t and what the sum is relative to that one: the rounding of a large log is itself large.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.launch import launch

_LN2 = math.log(2.0)
_LOG2E = 1 / _LN2


@triton.jit
def _number(value, like):
    """A scalar argument in the type of the arithmetic."""
    return tl.full([1], value, like.dtype)


@triton.jit
def _block(index, SIZE: tl.constexpr):
    """The members of a block, in 64 bits."""
    return index.to(tl.int64) * SIZE + tl.arange(0, SIZE)


@triton.jit
def _weight(row, column, batch, own, successor, like):
    """The weight of a pair, relative to that of most pairs. `row` and `column` are indices in the batch."""
    by_successor = tl.where((row + 1) % batch == column, _number(successor, like), 1.0)
    return tl.where(row == column, _number(own, like), by_successor)


@triton.jit
def _power(t, top):
    """2^(t - top), where no t is above `top`, but for the rounding of a compiler that computes it another way here."""
    return tl.exp2(tl.minimum(t - top, 0.0))


# --- Total correlation.


@triton.jit
def _marginals(
    tops, inverses, z, centre, scale, offset,
    rows, batch, dims, first_row, blocks, own: tl.float64, successor: tl.float64,
    FLOOR: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The normalizers of q(z_id) of a block of rows and dimensions: one walk over the columns with a running maximum
    and sum."""
    i, d = _block(tl.program_id(0) // blocks, ROWS), _block(tl.program_id(0) % blocks, DIMS)
    inside, known = (i[:, None] < rows) & (d < dims)[None, :], d < dims
    at = tl.load(z + i[:, None] * dims + d[None, :], mask=inside, other=0.0)
    top = tl.full([ROWS, DIMS], FLOOR, at.dtype)
    total = tl.zeros([ROWS, DIMS], at.dtype)
    for column in range(batch):
        delta = at - tl.load(centre + d, mask=known, other=0.0)[None, :]
        t = delta * delta * tl.load(scale + d, mask=known, other=0.0)[None, :]
        t += tl.load(offset + d, mask=known, other=0.0)[None, :]
        weight = _weight(i + first_row, column, batch, own, successor, at)[:, None]
        # One exponential: of the two that are added, the larger counts as 1.
        smaller = tl.exp2(-tl.abs(t - top))
        higher = t > top
        total = tl.where(higher, total * smaller + weight, total + smaller * weight)
        top = tl.where(higher, t, top)
        centre += dims
        scale += dims
        offset += dims
    tl.store(tops + i[:, None] * dims + d[None, :], top, mask=inside)
    tl.store(inverses + i[:, None] * dims + d[None, :], 1.0 / total, mask=inside)


@triton.jit
def _joint(
    out, z, centre, scale, offset, top, factor,
    rows, batch, dims, first_row, first_column, columns, blocks,
    own: tl.float64, successor: tl.float64,
    BACKWARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of the joint log2-densities, or of their gradients: of their powers of two, weighted, times the row's
    `factor`. z, centre, scale and offset are [dims, ...]."""
    i, k = _block(tl.program_id(0) // blocks, ROWS), _block(tl.program_id(0) % blocks, COLUMNS)
    j = first_column + k
    known, here = i < rows, k < columns
    # Zeros in the type of the arithmetic.
    total = tl.load(z + i, mask=known & (dims < 0), other=0.0)[:, None] + tl.zeros([1, COLUMNS], z.dtype.element_ty)
    for _ in range(dims):
        delta = tl.load(z + i, mask=known, other=0.0)[:, None] - tl.load(centre + j, mask=here, other=0.0)[None, :]
        total += delta * delta * tl.load(scale + j, mask=here, other=0.0)[None, :]
        total += tl.load(offset + j, mask=here, other=0.0)[None, :]
        z += rows
        centre += batch
        scale += batch
        offset += batch
    if BACKWARD:
        total = _power(total, tl.load(top + i, mask=known, other=0.0)[:, None])
        total *= _weight(i[:, None] + first_row, j[None, :], batch, own, successor, total)
        total *= tl.load(factor + i, mask=known, other=0.0)[:, None]
    tl.store(out + i[:, None] * columns + k[None, :], total, mask=known[:, None] & here[None, :])


@triton.jit
def _share(at, centre, scale, offset, top, factor, joint, weight):
    """The gradient of one column's terms, and its product with scale (z - centre); and z - centre."""
    delta = at - centre
    bent = delta * scale
    share = _power(delta * delta * scale + offset, top) * weight * factor + joint
    return share, share * bent, delta


@triton.jit
def _to_rows(
    pulls, z, centre, scale, offset, tops, factors, joint,
    rows, batch, dims, first_row, first_column, columns, blocks,
    own: tl.float64, successor: tl.float64,
    ROWS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Adds what a strip of columns does to the gradient of z. `joint` is the strip's, from `_joint`."""
    i, d = _block(tl.program_id(0) // blocks, ROWS), _block(tl.program_id(0) % blocks, DIMS)
    known, inside = d < dims, (i[:, None] < rows) & (d < dims)[None, :]
    place = i[:, None] * dims + d[None, :]
    at = tl.load(z + place, mask=inside, other=0.0)
    top = tl.load(tops + place, mask=inside, other=0.0)
    factor = tl.load(factors + place, mask=inside, other=0.0)
    total = tl.load(pulls + place, mask=inside, other=0.0)
    for k in range(columns):
        weight = _weight(i + first_row, first_column + k, batch, own, successor, at)
        _, pull, _ = _share(
            at,
            tl.load(centre + d, mask=known, other=0.0)[None, :],
            tl.load(scale + d, mask=known, other=0.0)[None, :],
            tl.load(offset + d, mask=known, other=0.0)[None, :],
            top,
            factor,
            tl.load(joint + i * columns + k, mask=i < rows, other=0.0)[:, None],
            weight[:, None],
        )
        total += pull
        centre += dims
        scale += dims
        offset += dims
    tl.store(pulls + place, total, mask=inside)


@triton.jit
def _to_columns(
    pulls, spreads, z, centre, scale, offset, tops, factors, joint,
    rows, batch, dims, first_row, first_column, columns, blocks,
    own: tl.float64, successor: tl.float64,
    COLUMNS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The gradients of a strip of columns: one walk over the rows."""
    k, d = _block(tl.program_id(0) // blocks, COLUMNS), _block(tl.program_id(0) % blocks, DIMS)
    known, inside = d < dims, (k[:, None] < columns) & (d < dims)[None, :]
    place = k[:, None] * dims + d[None, :]
    c = tl.load(centre + place, mask=inside, other=0.0)
    s = tl.load(scale + place, mask=inside, other=0.0)
    o = tl.load(offset + place, mask=inside, other=0.0)
    to_mean = tl.zeros([COLUMNS, DIMS], c.dtype)
    to_logvar = tl.zeros([COLUMNS, DIMS], c.dtype)
    for i in range(rows):
        weight = _weight(first_row + i, first_column + k, batch, own, successor, c)
        share, pull, delta = _share(
            tl.load(z + d, mask=known, other=0.0)[None, :],
            c,
            s,
            o,
            tl.load(tops + d, mask=known, other=0.0)[None, :],
            tl.load(factors + d, mask=known, other=0.0)[None, :],
            tl.load(joint + k, mask=k < columns, other=0.0)[:, None],
            weight[:, None],
        )
        to_mean += pull
        to_logvar += pull * delta * 0.69314718055994530942 + 0.5 * share
        z += dims
        tops += dims
        factors += dims
        joint += columns
    tl.store(pulls + place, to_mean, mask=inside)
    tl.store(spreads + place, to_logvar, mask=inside)


# --- Maximum mean discrepancy.


@triton.jit
def _pairs(
    out, x, y, n, m, dims, first_column, columns, first_row, blocks,
    KERNEL: tl.constexpr, WIDTHS: tl.constexpr, COUNT: tl.constexpr, SLOPE: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of the kernel's slopes, or the sum of its values. Points are transposed, [dims, ...]."""
    i, k = _block(tl.program_id(0) // blocks, ROWS), _block(tl.program_id(0) % blocks, COLUMNS)
    j = first_column + k
    known, here = i < n, k < columns
    squares = tl.zeros([ROWS, COLUMNS], x.dtype.element_ty)
    for _ in range(dims):
        delta = tl.load(x + i, mask=known, other=0.0)[:, None] - tl.load(y + j, mask=here, other=0.0)[None, :]
        squares += delta * delta
        x += n
        y += m
    result = tl.zeros([ROWS, COLUMNS], x.dtype.element_ty)
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
    inside = known[:, None] & here[None, :]
    if SLOPE:
        tl.store(out + i[:, None] * columns + k[None, :], result, mask=inside)
    else:
        if SKIP:  # times 0, which leaves the NaN of a point that is not finite
            result *= tl.where(i[:, None] + first_row == j[None, :], 0.0, 1.0)
        tl.store(out + tl.program_id(0), tl.sum(tl.sum(tl.where(inside, result, 0.0), axis=1), axis=0))


@triton.jit
def _pull(
    pulls, x, y, slopes, factor, n, dims, columns, row_step, column_step, blocks, scale: tl.float64,
    ROWS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Adds scale * factor * sum over a strip's columns of slope (x_i - y_j) to the gradients of a block of points."""
    i, d = _block(tl.program_id(0) // blocks, ROWS), _block(tl.program_id(0) % blocks, DIMS)
    known, inside = d < dims, (i[:, None] < n) & (d < dims)[None, :]
    place = i[:, None] * dims + d[None, :]
    at = tl.load(x + place, mask=inside, other=0.0)
    total = tl.zeros([ROWS, DIMS], at.dtype)
    slopes += i * row_step
    for _ in range(columns):
        slope = tl.load(slopes, mask=i < n, other=0.0)
        total += slope[:, None] * (at - tl.load(y + d, mask=known, other=0.0)[None, :])
        slopes += column_step
        y += dims
    total *= tl.load(factor) * _number(scale, at)
    tl.store(pulls + place, tl.load(pulls + place, mask=inside, other=0.0) + total, mask=inside)


# --- Launchers.

_SIDE = 32  # of a tile of pairs
_WARPS = 4


def _cut(outer: int, inner: int, outer_block: int, inner_block: int) -> tuple[int, int]:
    """Programs, and blocks along the inner axis."""
    blocks = triton.cdiv(inner, inner_block)
    return triton.cdiv(outer, outer_block) * blocks, blocks


def _dims_block(dims: int) -> int:
    return min(64, max(16, triton.next_power_of_2(max(dims, 1))))


def _widen(t: Tensor) -> Tensor:
    return (t if t.dtype == torch.float64 else t.float()).contiguous()


def _strip(dims: int) -> int:
    """Columns of a strip: as much memory as the latent itself, and enough programs to fill a GPU."""
    return max(128, triton.next_power_of_2(max(dims, 1)))


def _weights(batch: int, dataset_size: int, estimator: str) -> tuple[float, float, float]:
    """The weights of a row's own column and of the next one, relative to that of the rest, and log2 of that."""
    if estimator == "mws":
        return 1.0, 1.0, -math.log2(dataset_size * batch)
    others = batch - 1
    return others / dataset_size, (dataset_size - others) / dataset_size, -math.log2(others)


class _Batch:
    """Inputs of the total-correlation kernels, and the arguments that all of them take."""

    def __init__(self, z: Tensor, mean: Tensor, logvar: Tensor, dataset_size: int, estimator: str, first_row: int):
        self.z, self.centre, logvar = _widen(z), _widen(mean), _widen(logvar)
        self.scale = (-0.5 * _LOG2E) * (-logvar).exp()
        self.offset = (-0.5 * _LOG2E) * logvar - 0.5 * math.log2(2 * math.pi)
        self.columns = tuple(t.t().contiguous() for t in (self.centre, self.scale, self.offset))
        (self.rows, self.dims), self.batch, self.first_row = z.shape, mean.shape[0], first_row
        self.own, self.successor, self.rest = _weights(self.batch, dataset_size, estimator)
        self.shared: dict[str, Any] = {"rows": self.rows, "batch": self.batch, "dims": self.dims}
        self.shared |= {"first_row": first_row, "own": self.own, "successor": self.successor}

    def strips(self) -> list[tuple[int, int]]:
        """First column and width of each strip."""
        width = _strip(self.dims)
        return [(first, min(width, self.batch - first)) for first in range(0, self.batch, width)]

    def joint(self, first: int, width: int, top: Tensor | None, factor: Tensor | None) -> Tensor:
        """A strip of the joint: log2-densities or, with `top` and `factor`, their gradients."""
        out = self.z.new_empty(self.rows, width)
        programs, blocks = _cut(self.rows, width, _SIDE, _SIDE)
        centre, scale, offset = self.columns
        tensors = {"out": out, "z": self.z.t().contiguous(), "centre": centre, "scale": scale, "offset": offset}
        sizes = {"first_column": first, "columns": width, "blocks": blocks, "ROWS": _SIDE, "COLUMNS": _SIDE}
        backward = {"top": top, "factor": factor, "BACKWARD": top is not None}
        launch(_joint, programs, _WARPS, self.z, {**tensors, **self.shared, **sizes, **backward})
        return out


def total_correlation(
    z: Tensor, mean: Tensor, logvar: Tensor, dataset_size: int, estimator: str, first_row: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b = _Batch(z, mean, logvar, dataset_size, estimator, first_row)
    tops, inverses = torch.empty_like(b.z), torch.empty_like(b.z)
    dims_block = _dims_block(b.dims)
    programs, blocks = _cut(b.rows, b.dims, 16, dims_block)
    floor, sizes = torch.finfo(b.z.dtype).min, {"ROWS": 16, "DIMS": dims_block}
    tensors = {"tops": tops, "inverses": inverses, "z": b.z, "centre": b.centre, "scale": b.scale, "offset": b.offset}
    launch(_marginals, programs, _WARPS, z, {**tensors, **b.shared, "blocks": blocks, "FLOOR": floor, **sizes})
    top, total, own = b.z.new_full((b.rows,), floor), b.z.new_zeros(b.rows), []
    for first, width in b.strips():
        terms = b.joint(first, width, None, None)
        own.append(terms.diagonal(first_row - first))
        higher = torch.maximum(top, terms.amax(1))
        powers = torch.exp2(terms - higher[:, None])
        for weight, distance in ((b.own, 0), (b.successor, 1), (b.successor, 1 - b.batch)):
            powers.diagonal(first_row + distance - first).mul_(weight)
        total, top = total * torch.exp2(top - higher) + powers.sum(1), higher
    joint = top + total.log2()
    marginals = (tops - inverses.log2()).sum(1) + b.dims * b.rest
    prior = (-0.5 * _LOG2E * b.z.square() - 0.5 * math.log2(2 * math.pi)).sum(1)
    # The largest density first: what the others have in common with it then cancels exactly.
    information = (torch.cat(own) - top) - total.log2() - b.rest
    parts = (information, joint + b.rest - marginals, marginals - prior)
    normalizers = torch.stack((torch.cat((tops, top[:, None]), 1), torch.cat((inverses, 1 / total[:, None]), 1)))
    return *(p.sum() * (_LN2 / b.batch) for p in parts), normalizers


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
    b = _Batch(z, mean, logvar, dataset_size, estimator, first_row)
    grads = (grad_mutual_information, grad_total_correlation, grad_dimension_kl)
    information, correlation, kl = (b.z.new_zeros(()) if g is None else g / b.batch for g in grads)
    top, inverse = normalizers.unbind()
    tops, factors = top[:, : b.dims].contiguous(), (inverse[:, : b.dims] * (kl - correlation)).contiguous()
    joint_top = top[:, b.dims].contiguous()
    joint_factor = (inverse[:, b.dims] * (correlation - information)).contiguous()
    d_z, pulls, spreads = torch.zeros_like(b.z), torch.empty_like(b.centre), torch.empty_like(b.centre)
    dims_block = _dims_block(b.dims)
    for first, width in b.strips():
        strip = slice(first, first + width)
        joint = b.joint(first, width, joint_top, joint_factor)
        tensors = {"centre": b.centre[strip], "scale": b.scale[strip], "offset": b.offset[strip]}
        tensors |= {"z": b.z, "tops": tops, "factors": factors, "joint": joint}
        sizes = {"first_column": first, "columns": width, "DIMS": dims_block}
        if wanted & 1:
            programs, blocks = _cut(b.rows, b.dims, 16, dims_block)
            out = {"pulls": d_z, "blocks": blocks, "ROWS": 16}
            launch(_to_rows, programs, _WARPS, z, {**tensors, **b.shared, **sizes, **out})
        if wanted & 6:
            programs, blocks = _cut(width, b.dims, 16, dims_block)
            out = {"pulls": pulls[strip], "spreads": spreads[strip], "blocks": blocks, "COLUMNS": 16}
            launch(_to_columns, programs, _WARPS, z, {**tensors, **b.shared, **sizes, **out})
    own = slice(first_row, first_row + b.rows)
    delta = b.z - b.centre[own]
    pull = (-2 * _LN2) * information * b.scale[own] * delta
    d_mean, d_logvar = pulls.mul_(-2 * _LN2), spreads.neg_()
    d_mean[own] += pull
    d_logvar[own] += 0.5 * (pull * delta - information)
    d_z = (2 * _LN2) * d_z - pull + kl * b.z
    found = (d_z, d_mean, d_logvar)
    return tuple(g.to(z.dtype) if wanted >> i & 1 else z.new_empty(0) for i, g in enumerate(found))


def _pair_arguments(kernel: str, widths: list[float]) -> dict[str, Any]:
    return {"KERNEL": kernel, "WIDTHS": tuple(widths), "COUNT": len(widths), "ROWS": _SIDE, "COLUMNS": _SIDE}


def _pair_sum(x: Tensor, y: Tensor, first_row: int | None, options: dict[str, Any]) -> Tensor:
    programs, blocks = _cut(x.shape[0], y.shape[0], _SIDE, _SIDE)
    partials = x.new_empty(programs)
    arguments = {"out": partials, "x": x.t().contiguous(), "y": y.t().contiguous(), "n": x.shape[0], "m": y.shape[0]}
    arguments |= {"dims": x.shape[1], "first_column": 0, "columns": y.shape[0], "first_row": first_row or 0}
    arguments |= {"blocks": blocks, "SLOPE": False, "SKIP": first_row is not None}
    launch(_pairs, programs, _WARPS, x, arguments | options)
    return partials.sum()


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
    x, y = _widen(x), _widen(y)
    all_x, all_y = x if all_x is None else _widen(all_x), y if all_y is None else _widen(all_y)
    options = _pair_arguments(kernel, widths)
    total_x = _pair_sum(x, all_x, first_x if unbiased else None, options) * _within(all_x, unbiased)
    total_y = _pair_sum(y, all_y, first_y if unbiased else None, options) * _within(all_y, unbiased)
    return total_x + total_y + _pair_sum(x, all_y, None, options) * _between(all_x, all_y)


def _within(points: Tensor, unbiased: bool) -> float:
    n = points.shape[0]
    return 1 / (n * (n - 1 if unbiased else n))


def _between(x: Tensor, y: Tensor) -> float:
    return -2 / (x.shape[0] * y.shape[0])


def _add_pulls(
    d_x: Tensor | None, d_y: Tensor | None, x: Tensor, y: Tensor, grad: Tensor, factor: float, options: dict[str, Any]
) -> None:
    """Add to the gradients of rows and columns what all of their pairs do, a strip of columns at a time."""
    (n, dims), m = x.shape, y.shape[0]
    width, dims_block = _strip(dims), _dims_block(dims)
    transposed = {"x": x.t().contiguous(), "y": y.t().contiguous()}
    for first in range(0, m, width):
        columns = min(width, m - first)
        slopes = x.new_empty(n, columns)
        programs, blocks = _cut(n, columns, _SIDE, _SIDE)
        arguments = {"out": slopes, **transposed, "n": n, "m": m, "dims": dims, "first_row": 0, "blocks": blocks}
        arguments |= {"first_column": first, "columns": columns, "SLOPE": True, "SKIP": False}
        launch(_pairs, programs, _WARPS, x, arguments | options)
        strip = y[first : first + columns]
        ends = (
            (d_x, x, strip, columns, 1),
            (None if d_y is None else d_y[first : first + columns], strip, x, 1, columns),
        )
        for out, points, others, row_step, column_step in ends:
            if out is None:
                continue
            programs, blocks = _cut(points.shape[0], dims, 16, dims_block)
            arguments = {"pulls": out, "x": points, "y": others, "slopes": slopes, "factor": grad, "scale": 2 * factor}
            arguments |= {"n": points.shape[0], "dims": dims, "columns": others.shape[0], "blocks": blocks}
            arguments |= {"row_step": row_step, "column_step": column_step, "ROWS": 16, "DIMS": dims_block}
            launch(_pull, programs, _WARPS, x, arguments)


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
    points = [None if t is None else _widen(t) for t in (x, y, all_x, all_y)]
    grads = [None if t is None or not wanted >> i & 1 else torch.zeros_like(t) for i, t in enumerate(points)]
    # Where the rows and the columns of each of the three sums are.
    column_x, column_y = 0 if all_x is None else 2, 1 if all_y is None else 3
    options = _pair_arguments(kernel, widths)
    for row, column, factor in (
        (0, column_x, _within(points[column_x], unbiased)),
        (1, column_y, _within(points[column_y], unbiased)),
        (0, column_y, _between(points[column_x], points[column_y])),
    ):
        if grads[row] is not None or grads[column] is not None:
            _add_pulls(grads[row], grads[column], points[row], points[column], grad, factor, options)
    return tuple(x.new_empty(0) if g is None else g.to(x.dtype) for g in grads)


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _total_correlation_case(op: Any, dtype: torch.dtype, batch: int, dims: int) -> Any:
    def call() -> None:
        def make(*sizes: int, of: torch.dtype = dtype) -> Tensor:
            return torch.empty(sizes, dtype=of, device="meta")

        inputs, wide = [make(batch, dims) for _ in range(3)], torch.float64 if dtype == torch.float64 else torch.float32
        if op is total_correlation:
            op(*inputs, 60_000, "mss", 0)
        else:
            op(*(make(of=wide) for _ in range(3)), *inputs, make(2, batch, dims + 1, of=wide), 60_000, "mss", 0, 7)

    return call


def _mmd_case(op: Any, dtype: torch.dtype, batch: int, dims: int, kernel: str) -> Any:
    def call() -> None:
        x, y = (torch.empty(batch, dims, dtype=dtype, device="meta") for _ in range(2))
        rest = (None, None, 0, 0, kernel, [2.0 * dims * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)], True)
        if op is mmd:
            op(x, y, *rest)
        else:
            grad = torch.empty((), dtype=torch.float64 if dtype == torch.float64 else torch.float32, device="meta")
            op(grad, x, y, *rest, 3)

    return call


#: Between them they reach every branch of every kernel. A GPU sees float32 or float64 here whatever the inputs are.
COMPILE_CASES = {
    "total_correlation, float32": _total_correlation_case(total_correlation, torch.float32, 128, 64),
    "total_correlation, float64, odd": _total_correlation_case(total_correlation, torch.float64, 77, 10),
    "total_correlation_backward, float32": _total_correlation_case(total_correlation_backward, torch.float32, 128, 64),
    "total_correlation_backward, float64, odd": _total_correlation_case(
        total_correlation_backward, torch.float64, 77, 10
    ),
    "mmd, float32": _mmd_case(mmd, torch.float32, 128, 64, "imq"),
    "mmd, float64, odd, rbf": _mmd_case(mmd, torch.float64, 77, 10, "rbf"),
    "mmd_backward, float32": _mmd_case(mmd_backward, torch.float32, 128, 64, "imq"),
    "mmd_backward, float64, odd, rbf": _mmd_case(mmd_backward, torch.float64, 77, 10, "rbf"),
}
