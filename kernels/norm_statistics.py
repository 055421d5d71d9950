"""Mean and variance of groups and batches on a GPU: in chunks, then of all chunks of a unit.

A *unit* is what has a mean and a variance: a group of a sample (PER_SAMPLE), or a channel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.launch import launch
from genmod.kernels.norm_shared import SIZES, launch_tiled, room_for_partials
from genmod.kernels.planes import cut, offsets, place, power_of_two, sizes, view
from genmod.kernels.rows import load, store


@triton.jit(do_not_specialize=SIZES)
def _statistics(
    total, x, x_bias, residual, means, squares,
    fast, slow, blocks, chunks, steps, group,
    PER_SAMPLE: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared differences from it, per sample, channel and chunk; and, if asked for, the sum of what is
    given of x, its bias and a residual.

    By Welford's update in each lane, on differences from the unit's first element: near it rounding is small.
    """
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    first = chunk * (steps * BLOCK_P)
    last = tl.minimum(first + steps * BLOCK_P, space)
    known = channel < channels
    unit_sample = sample if PER_SAMPLE else sample * 0
    pivot_at = offsets(unit_sample, channel // group * group, 0, channels, space, CHANNELS_LAST)
    first_channel = channel // group * group
    pivot = total_at(x, residual, total, pivot_at, known & (channel * 0 < space), bias_of(x_bias, first_channel, known))
    pivot = pivot[:, None]
    shift = bias_of(x_bias, channel, known)[:, None]
    mean = tl.zeros([BLOCK_C, BLOCK_P], means.dtype.element_ty)
    square = tl.zeros([BLOCK_C, BLOCK_P], means.dtype.element_ty)
    count = tl.zeros([1, 1], means.dtype.element_ty)
    lane = tl.arange(0, BLOCK_P)
    for start in range(first, last, BLOCK_P):
        position = start + lane
        inside = known[:, None] & (position < space)[None, :]
        at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
        value = total_at(x, residual, total, at, inside, shift)
        if total is not None:
            store(total, at, value, inside)
        count += 1.0
        value -= pivot
        before = tl.where(inside, value - mean, 0.0)
        mean += before * (1.0 / count)
        square += before * tl.where(inside, value - mean, 0.0)
    # How many values a lane took, and then the same of lanes (Chan).
    taken = tl.maximum((last - first - lane + BLOCK_P - 1) // BLOCK_P, 0).to(means.dtype.element_ty)[None, :]
    chunk_mean = tl.sum(taken * mean, axis=1) / tl.maximum(last - first, 0).to(means.dtype.element_ty)
    apart = mean - chunk_mean[:, None]
    at = (sample * channels + channel) * chunks + chunk
    tl.store(means + at, chunk_mean, mask=known)
    tl.store(squares + at, tl.sum(square + taken * apart * apart, axis=1), mask=known)


@triton.jit
def bias_of(x_bias, channel, known):
    """The bias of x, or zeros."""
    if x_bias is None:
        value = tl.zeros(channel.shape, tl.float32)
    else:
        value = load(x_bias, channel, known)
    return value


@triton.jit
def total_at(x, residual, total, at, inside, shift):
    """What is normalised: x and its bias, and a residual; rounded if it is stored."""
    value = load(x, at, inside)
    value += shift.to(value.dtype)
    if residual is not None:
        value += load(residual, at, inside)
    if total is not None:
        value = value.to(x.dtype.element_ty).to(value.dtype)
    return value


@triton.jit(do_not_specialize=SIZES)
def _combine(
    mean, rest, spread, x, x_bias, means, squares,
    fast, slow, chunks, group, members, chunk, count: tl.float64, eps: tl.float64,
    PER_SAMPLE: tl.constexpr, RSTD: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From its chunks a unit's mean, what the mean lost in rounding (`rest`), and 1/sigma or the variance."""
    unit = tl.program_id(0)
    if WIDE:
        unit = unit.to(tl.int64)
    dtype = mean.dtype.element_ty
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    total = tl.zeros([BLOCK], dtype)
    for start in range(0, members, BLOCK):
        at, inside, size = _member(unit, start, members, channels, space, chunks, chunk, PER_SAMPLE, BLOCK)
        total += size.to(dtype) * tl.load(means + at, mask=inside, other=0.0)
    number = tl.full([1], count, dtype)
    shifted = tl.sum(total, axis=0) / number
    total = tl.zeros([BLOCK], dtype)
    for start in range(0, members, BLOCK):
        at, inside, size = _member(unit, start, members, channels, space, chunks, chunk, PER_SAMPLE, BLOCK)
        apart = tl.where(inside, tl.load(means + at, mask=inside, other=0.0) - shifted, 0.0)
        total += tl.load(squares + at, mask=inside, other=0.0) + size.to(dtype) * apart * apart
    variance = tl.sum(total, axis=0) / number
    groups = channels // group
    pivot_sample = unit // groups  # 0 if units are channels
    pivot_at = offsets(pivot_sample, unit % groups * group, 0, channels, space, CHANNELS_LAST)
    exists = (tl.arange(0, 1) < space) & (tl.arange(0, 1) < members)  # not so in an empty batch
    pivot = load(x, pivot_at + tl.arange(0, 1), exists)
    if x_bias is not None:
        pivot += load(x_bias, unit % groups * group + tl.arange(0, 1), exists).to(dtype)
    rounded = pivot + shifted
    back = rounded - pivot
    one = unit + tl.arange(0, 1)
    tl.store(mean + one, rounded)
    tl.store(rest + one, (pivot - (rounded - back)) + (shifted - back))
    tl.store(spread + one, rstd_of(variance, eps) if RSTD else variance)


@triton.jit
def _member(unit, start, members, channels, space, chunks, chunk, PER_SAMPLE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the chunks start, start + 1, ... of a unit's are, whether there are so many, and how long they are."""
    j = start + tl.arange(0, BLOCK)
    if PER_SAMPLE:
        at = unit * members + j
    else:
        at = (j // chunks * channels + unit) * chunks + j % chunks
    return at, j < members, tl.where(j < members, tl.minimum(space - j % chunks * chunk, chunk), 0)


@triton.jit
def rstd_of(variance, eps):
    inside = variance + tl.full([1], eps, variance.dtype)
    if variance.dtype == tl.float64:
        return 1.0 / tl.sqrt(inside)
    else:
        return tl.div_rn(tl.full([1], 1.0, tl.float32), tl.sqrt_rn(inside))


def measure(
    x: Tensor,
    residual: Tensor | None,
    total: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    group: int,
    eps: float,
    x_bias: Tensor | None = None,
) -> Tensor:
    """Statistics of a dense tensor, or of its sum with its bias and a residual, written to `total` if given. Groups
    have their 1/sigma in `spread`, channels of a batch (`mean` is `[C]`) the variance. Returns the rest of the mean."""
    per_sample = mean.dim() == 2
    seen = view(x, per_sample)
    how = cut(seen, x.element_size(), 2, reduces=True)
    means, squares = room_for_partials(x, seen, how)
    kind = {"means": means, "squares": squares, "group": group, "PER_SAMPLE": per_sample}
    launch_tiled(_statistics, how, x, {"total": total, "x": x, "x_bias": x_bias, "residual": residual, **kind})
    rest = torch.empty_like(mean)
    merged = group if per_sample else seen.samples
    block = min(1024, max(16, power_of_two(merged * how.chunks)))
    arguments = {
        "mean": mean,
        "rest": rest,
        "spread": spread,
        "x": x if total is None else total,
        "x_bias": x_bias if total is None else None,
        "members": merged * how.chunks,
        "chunk": how.chunk,
        "count": float(merged * seen.space),
        "eps": eps,
        "RSTD": per_sample,
        "BLOCK": block,
        **{name: how.arguments[name] for name in ("fast", "slow", "chunks", "CHANNELS_LAST", "UNIT", "WIDE")},
    }
    launch(_combine, mean.numel(), max(1, block // 256), x, kind | arguments)
    return rest
