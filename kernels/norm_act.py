"""Group norm, batch norm and a bias, each with an activation, on a GPU: forward and backward.

The functions have the names, arguments and results of the dispatcher's ops. For the maths see
genmod/reference/norm_act.py; for how a kernel finds its elements, kernels/planes.py.

Everything that is summed over space is summed per sample and channel, in chunks, by as many programs as fill the GPU
even for one sample; a second kernel adds the chunks, and channels or samples, in a fixed order. From the mean and the
squares per channel follow the statistics of a group as well as those of a batch; from the sums of dz and dz h per
channel follow all gradients but the input's, and the two averages that this one needs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.activation import activate, slope
from genmod.kernels.launch import launch
from genmod.kernels.planes import SIZES, Cut, View, cut, dense, offsets, place, power_of_two, sizes, view
from genmod.kernels.rows import load, store

_SIZES = [*SIZES, "group", "members", "chunk", "channels", "samples", "scale_stride", "shift_stride"]


# --- Statistics. A *unit* is what has a mean and a variance: a group of a sample (PER_SAMPLE), or a channel.


@triton.jit(do_not_specialize=_SIZES)
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
    pivot = _total(x, residual, total, pivot_at, known & (channel * 0 < space), _of_x(x_bias, first_channel, known))
    pivot = pivot[:, None]
    shift = _of_x(x_bias, channel, known)[:, None]
    mean = tl.zeros([BLOCK_C, BLOCK_P], means.dtype.element_ty)
    square = tl.zeros([BLOCK_C, BLOCK_P], means.dtype.element_ty)
    count = tl.zeros([1, 1], means.dtype.element_ty)
    lane = tl.arange(0, BLOCK_P)
    for start in range(first, last, BLOCK_P):
        position = start + lane
        inside = known[:, None] & (position < space)[None, :]
        at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
        value = _total(x, residual, total, at, inside, shift)
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
def _of_x(x_bias, channel, known):
    """The bias of x, or zeros."""
    if x_bias is None:
        value = tl.zeros(channel.shape, tl.float32)
    else:
        value = load(x_bias, channel, known)
    return value


@triton.jit
def _total(x, residual, total, at, inside, shift):
    """What is normalised: x and its bias, and a residual; rounded if it is stored."""
    value = load(x, at, inside)
    value += shift.to(value.dtype)
    if residual is not None:
        value += load(residual, at, inside)
    if total is not None:
        value = value.to(x.dtype.element_ty).to(value.dtype)
    return value


@triton.jit(do_not_specialize=_SIZES)
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
    tl.store(spread + one, _rstd(variance, eps) if RSTD else variance)


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
def _rstd(variance, eps):
    inside = variance + tl.full([1], eps, variance.dtype)
    if variance.dtype == tl.float64:
        return 1.0 / tl.sqrt(inside)
    else:
        return tl.div_rn(tl.full([1], 1.0, tl.float32), tl.sqrt_rn(inside))


# --- What is done to each element.


@triton.jit
def _affine(
    sample, channel, channels, group, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
    eps, dtype: tl.constexpr, PER_SAMPLE: tl.constexpr, VARIANCE: tl.constexpr,
):  # fmt: skip
    """Per channel: its unit, mean, the mean's rest and 1/sigma; and factor and offset in z = h * factor + offset."""
    known = channel < channels
    unit = channel // group
    if PER_SAMPLE:
        unit += sample * (channels // group)
    m = load(mean, unit, known)
    r = tl.zeros(m.shape, m.dtype)
    if rest is not None:
        r = load(rest, unit, known)
    rho = load(spread, unit, known)
    if VARIANCE:
        rho = _rstd(rho, eps)
    factor = _or_one(weight, channel, known, dtype)
    offset = tl.zeros(channel.shape, dtype)
    if bias is not None:
        offset = load(bias, channel, known).to(dtype)
    if scale is not None:
        growth = 1.0 + load(scale, sample * scale_stride + channel, known)
        factor *= growth
        offset *= growth
    if shift is not None:
        offset += load(shift, sample * shift_stride + channel, known)
    return unit, m.to(dtype)[:, None], r.to(dtype)[:, None], rho.to(dtype)[:, None], factor[:, None], offset[:, None]


@triton.jit
def _or_one(weight, channel, known, dtype: tl.constexpr):
    value = tl.full(channel.shape, 1.0, dtype)
    if weight is not None:
        value = load(weight, channel, known).to(dtype)
    return value


@triton.jit(do_not_specialize=_SIZES)
def _normalise(
    y, total, x, x_bias, residual, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
    fast, slow, blocks, chunks, group, eps: tl.float64, negative_slope: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, PER_SAMPLE: tl.constexpr, VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y = act(z), z = h * factor + offset; and, if asked for, the sum that is normalised."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    position = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (channel < channels)[:, None] & (position < space)[None, :]
    at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
    value = _total(x, residual, total, at, inside, _of_x(x_bias, channel, channel < channels)[:, None])
    if total is not None:
        store(total, at, value, inside)
    _, m, r, rho, factor, offset = _affine(
        sample, channel, channels, group, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
        eps, value.dtype, PER_SAMPLE, VARIANCE,
    )  # fmt: skip
    z = (value - m - r) * rho * factor + offset
    store(y, at, activate(z, negative_slope, ACTIVATION, FAST), inside)


@triton.jit
def _slopes(
    grad, x, at, inside, m, r, rho, factor, offset, negative_slope, ACTIVATION: tl.constexpr, FAST: tl.constexpr
):
    """h, and dz = g act'(z)."""
    h = (load(x, at, inside) - m - r) * rho
    return h, load(grad, at, inside) * slope(h * factor + offset, negative_slope, ACTIVATION, FAST)


@triton.jit(do_not_specialize=_SIZES)
def _gradient_sums(
    sums, products, grad, x, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
    fast, slow, blocks, chunks, steps, group, eps: tl.float64, negative_slope: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, PER_SAMPLE: tl.constexpr, VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums of dz and of dz h per sample, channel and chunk."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    first = chunk * (steps * BLOCK_P)
    last = tl.minimum(first + steps * BLOCK_P, space)
    known = channel < channels
    _, m, r, rho, factor, offset = _affine(
        sample, channel, channels, group, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
        eps, sums.dtype.element_ty, PER_SAMPLE, VARIANCE,
    )  # fmt: skip
    total = tl.zeros([BLOCK_C, BLOCK_P], sums.dtype.element_ty)
    product = tl.zeros([BLOCK_C, BLOCK_P], sums.dtype.element_ty)
    for start in range(first, last, BLOCK_P):
        position = start + tl.arange(0, BLOCK_P)
        inside = known[:, None] & (position < space)[None, :]
        at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
        h, dz = _slopes(grad, x, at, inside, m, r, rho, factor, offset, negative_slope, ACTIVATION, FAST)
        total += tl.where(inside, dz, 0.0)
        product += tl.where(inside, dz * h, 0.0)
    at = (sample * channels + channel) * chunks + chunk
    tl.store(sums + at, tl.sum(total, axis=1), mask=known)
    tl.store(products + at, tl.sum(product, axis=1), mask=known)


@triton.jit(do_not_specialize=_SIZES)
def _gradient_input(
    dx, grad, grad_sum, x, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride, average, slant,
    fast, slow, blocks, chunks, group, eps: tl.float64, negative_slope: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, PER_SAMPLE: tl.constexpr, VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = rho (dh - average - h slant) + grad_sum, dh = dz factor; without averages where statistics are constants."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    position = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    known = channel < channels
    inside = known[:, None] & (position < space)[None, :]
    at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
    dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    unit, m, r, rho, factor, offset = _affine(
        sample, channel, channels, group, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
        eps, dtype, PER_SAMPLE, VARIANCE,
    )  # fmt: skip
    h, dz = _slopes(grad, x, at, inside, m, r, rho, factor, offset, negative_slope, ACTIVATION, FAST)
    dh = dz * factor
    if average is not None:
        dh -= load(average, unit, known)[:, None]
        dh -= h * load(slant, unit, known)[:, None]
    result = dh * rho
    if grad_sum is not None:
        result += load(grad_sum, at, inside)
    store(dx, at, result, inside)


# --- Sums of sums.


@triton.jit(do_not_specialize=_SIZES)
def _sum_groups(
    d_scale, d_shift, sample_sums, sample_products, average, slant, sums, products, weight, bias, scale, scale_stride,
    channels, chunks, group, count: tl.float64,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For one group of one sample: gradients of scale and shift, the sample's share in those of weight and bias, and
    the averages of dh and dh h."""
    unit = tl.program_id(0)
    if WIDE:
        unit = unit.to(tl.int64)
    dtype = sums.dtype.element_ty
    groups = channels // group
    sample = unit // groups
    of_h = tl.zeros([BLOCK_C], dtype)
    of_square = tl.zeros([BLOCK_C], dtype)
    for start in range(0, group, BLOCK_C):
        within = start + tl.arange(0, BLOCK_C)
        known = within < group
        channel = unit % groups * group + within
        row = sample * channels + channel
        total = tl.zeros([BLOCK_C, BLOCK], dtype)
        product = tl.zeros([BLOCK_C, BLOCK], dtype)
        for begin in range(0, chunks, BLOCK):
            chunk = begin + tl.arange(0, BLOCK)
            inside = known[:, None] & (chunk < chunks)[None, :]
            total += tl.load(sums + row[:, None] * chunks + chunk[None, :], mask=inside, other=0.0)
            product += tl.load(products + row[:, None] * chunks + chunk[None, :], mask=inside, other=0.0)
        dz, dz_h = tl.sum(total, axis=1), tl.sum(product, axis=1)
        gamma = _or_one(weight, channel, known, dtype)
        if d_shift is not None:
            store(d_shift, row, dz, known)
        if d_scale is not None:
            inner = gamma * dz_h
            if bias is not None:
                inner += load(bias, channel, known).to(dtype) * dz
            store(d_scale, row, inner, known)
        if scale is not None:
            growth = 1.0 + load(scale, sample * scale_stride + channel, known)
            dz *= growth
            dz_h *= growth
        if sample_sums is not None:
            store(sample_sums, row, dz, known)
            store(sample_products, row, dz_h, known)
        of_h += tl.where(known, gamma * dz, 0.0)
        of_square += tl.where(known, gamma * dz_h, 0.0)
    number = tl.full([1], count, dtype)
    one = unit + tl.arange(0, 1)
    tl.store(average + one, tl.sum(of_h, axis=0) / number)
    tl.store(slant + one, tl.sum(of_square, axis=0) / number)


@triton.jit(do_not_specialize=_SIZES)
def _sum_channels(
    d_weight, d_bias, average, slant, sums, products, weight,
    channels, chunks, members, count: tl.float64,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Over samples and chunks: gradients of weight and bias, and the averages of dh and dh h in a batch norm."""
    block = tl.program_id(0)
    if WIDE:
        block = block.to(tl.int64)
    dtype = sums.dtype.element_ty
    channel = block * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < channels
    total = tl.zeros([BLOCK_C, BLOCK], dtype)
    product = tl.zeros([BLOCK_C, BLOCK], dtype)
    for start in range(0, members, BLOCK):
        member = start + tl.arange(0, BLOCK)
        inside = known[:, None] & (member < members)[None, :]
        at = ((member // chunks)[None, :] * channels + channel[:, None]) * chunks + (member % chunks)[None, :]
        total += tl.load(sums + at, mask=inside, other=0.0)
        if products is not None:
            product += tl.load(products + at, mask=inside, other=0.0)
    dz, dz_h = tl.sum(total, axis=1), tl.sum(product, axis=1)
    if d_bias is not None:
        store(d_bias, channel, dz, known)
    if d_weight is not None:
        store(d_weight, channel, dz_h, known)
    if average is not None:
        over = _or_one(weight, channel, known, dtype) / tl.full([1], count, dtype)
        tl.store(average + channel, over * dz, mask=known)
        tl.store(slant + channel, over * dz_h, mask=known)


# --- A bias alone.


@triton.jit(do_not_specialize=_SIZES)
def _bias_act(
    y, x, bias,
    fast, slow, blocks, chunks, negative_slope: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, CLAMP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """y = clamp(gain act(x + bias))."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    position = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    known = channel < channels
    inside = known[:, None] & (position < space)[None, :]
    at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
    z = load(x, at, inside)
    if bias is not None:
        z += load(bias, channel, known)[:, None]
    value = tl.full([1, 1], gain, z.dtype) * activate(z, negative_slope, ACTIVATION, FAST)
    if CLAMP:
        bound = tl.full([1, 1], clamp, z.dtype)
        value = tl.where(value > bound, bound, value)
        value = tl.where(value < -bound, -bound, value)
    store(y, at, value, inside)


@triton.jit(do_not_specialize=_SIZES)
def _bias_act_backward(
    dx, sums, grad, x, bias,
    fast, slow, blocks, chunks, steps, negative_slope: tl.float64, gain: tl.float64, clamp: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, CLAMP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = gain g act'(x + bias), zero where the clamp cut; and its sums per sample, channel and chunk."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    first = chunk * (steps * BLOCK_P)
    last = tl.minimum(first + steps * BLOCK_P, space)
    known = channel < channels
    dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    factor = tl.full([1, 1], gain, dtype)
    offset = tl.zeros([BLOCK_C], dtype)
    if bias is not None:
        offset = load(bias, channel, known).to(dtype)
    for start in range(first, last, BLOCK_P):
        position = start + tl.arange(0, BLOCK_P)
        inside = known[:, None] & (position < space)[None, :]
        at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
        z = load(x, at, inside) + offset[:, None]
        dz = load(grad, at, inside) * (factor * slope(z, negative_slope, ACTIVATION, FAST))
        if CLAMP:
            cut = tl.abs(factor * activate(z, negative_slope, ACTIVATION, FAST)) > tl.full([1, 1], clamp, dtype)
            dz = tl.where(cut, 0.0, dz)
        if dx is not None:
            store(dx, at, dz, inside)
        total += tl.where(inside, dz, 0.0)
    if sums is not None:
        tl.store(sums + (sample * channels + channel) * chunks + chunk, tl.sum(total, axis=1), mask=known)


# --- Launchers. `kind` holds what all kernels of one op are told alike.


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _row(p: Tensor | None) -> Tensor | None:
    """A parameter whose channels follow one another."""
    return p if p is None or p.stride(-1) == 1 else p.contiguous()


def _tiled(kernel: Any, how: Cut, like: Tensor, arguments: dict[str, Any]) -> None:
    launch(kernel, how.programs, how.num_warps, like, arguments | how.arguments)


def _partials(like: Tensor, seen: View, how: Cut) -> Tensor:
    """Room for two numbers per sample, channel and chunk."""
    return like.new_empty((2, seen.samples, seen.channels, how.chunks), dtype=_wide(like))


def _measure(
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
    means, squares = _partials(x, seen, how)
    kind = {"means": means, "squares": squares, "group": group, "PER_SAMPLE": per_sample}
    _tiled(_statistics, how, x, {"total": total, "x": x, "x_bias": x_bias, "residual": residual, **kind})
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


def _options(x: Tensor, activation: str, negative_slope: float) -> dict[str, Any]:
    return {"ACTIVATION": activation, "negative_slope": negative_slope, "FAST": x.element_size() == 2}


def _normalisation(
    mean: Tensor,
    rest: Tensor | None,
    spread: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    group: int = 0,
) -> dict[str, Any]:
    """What kernels are told about the statistics and parameters; group 0 stands for a batch norm."""
    scale, shift = _row(scale), _row(shift)
    return {
        "mean": _row(mean),
        "rest": rest,
        "spread": _row(spread),
        "weight": _row(weight),
        "bias": _row(bias),
        "scale": scale,
        "shift": shift,
        "scale_stride": 0 if scale is None else scale.stride(0),
        "shift_stride": 0 if shift is None else shift.stride(0),
        "eps": eps,
        "group": group or 1,
        "PER_SAMPLE": group > 0,
        "VARIANCE": group == 0,
    }


def _sum_over_channels(
    partials: tuple[Tensor, Tensor | None],
    d_weight: Tensor | None,
    d_bias: Tensor | None,
    averages: tuple[Tensor | None, Tensor | None] = (None, None),
    weight: Tensor | None = None,
    count: int = 1,
) -> None:
    """`partials` are [samples, channels, chunks]."""
    samples, channels, chunks = partials[0].shape
    members = samples * chunks
    block_c = min(8, power_of_two(channels))
    block = min(128, power_of_two(members))
    arguments = {
        "d_weight": d_weight,
        "d_bias": d_bias,
        "average": averages[0],
        "slant": averages[1],
        "sums": partials[0],
        "products": partials[1],
        "weight": weight,
        "channels": channels,
        "chunks": chunks,
        "members": members,
        "count": float(count),
        "WIDE": members * channels >= 2**31,
        "BLOCK_C": block_c,
        "BLOCK": block,
    }
    launch(_sum_channels, -(-channels // block_c), max(1, block_c * block // 256), partials[0], arguments)


def _gradients(x: Tensor, wanted: int, *parameters: Tensor | None) -> list[Tensor | None]:
    """Room for the gradients that are wanted, None for the others; bit i of `wanted` is that of gradient i."""
    rest = (
        None if p is None or not wanted >> i & 1 else torch.empty(p.shape, dtype=p.dtype, device=p.device)
        for i, p in enumerate(parameters, 1)
    )
    return [layout.empty_output(x) if wanted & 1 else None, *rest]


def _filled(x: Tensor, gradients: list[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if g is None else g for g in gradients)


def group_norm_act(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, residual = dense(x, x, residual)
    y, total = layout.empty_output(x), None if residual is None else layout.empty_output(x)
    mean, rstd = (x.new_empty((x.shape[0], num_groups), dtype=_wide(x)) for _ in range(2))
    group = x.shape[1] // num_groups
    rest = _measure(source, residual, total, mean, rstd, group, eps)
    normalisation = _normalisation(mean, rest, rstd, weight, bias, eps, scale=scale, shift=shift, group=group)
    normalised = source if total is None else total
    tensors = {"y": y, "total": None, "x": normalised, "x_bias": None, "residual": None}
    how = cut(view(source, True), x.element_size(), 4, reduces=False)
    _tiled(_normalise, how, x, tensors | normalisation | _options(x, activation, negative_slope))
    return y, x.new_empty(0) if total is None else total, mean, rstd


def group_norm_act_biased(
    x: Tensor,
    x_bias: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    keep_sum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, residual = dense(x, x, residual)
    # A sum with a residual is written down even if nobody keeps it: what follows the statistics reads one tensor then.
    y, total = layout.empty_output(x), layout.empty_output(x) if keep_sum or residual is not None else None
    mean, rstd = (x.new_empty((x.shape[0], num_groups), dtype=_wide(x)) for _ in range(2))
    group, x_bias = x.shape[1] // num_groups, x_bias.contiguous()
    rest = _measure(source, residual, total, mean, rstd, group, eps, x_bias)
    normalisation = _normalisation(mean, rest, rstd, weight, bias, eps, scale=scale, shift=shift, group=group)
    # What was written down is read again; else x is, with all that belongs to it.
    again = {"x": source, "x_bias": x_bias, "residual": residual}
    if total is not None:
        again = {"x": total, "x_bias": None, "residual": None}
    how = cut(view(source, True), x.element_size(), 4, reduces=False)
    kind = normalisation | _options(x, activation, negative_slope)
    _tiled(_normalise, how, x, {"y": y, "total": None} | again | kind)
    return y, total if keep_sum and total is not None else x.new_empty(0), mean, rstd


def group_norm_act_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _gradients(x, wanted, weight, bias, scale, shift)
    dx, d_weight, d_bias, d_scale, d_shift = gradients
    x, grad, grad_sum = dense(x, x, grad, grad_sum)
    seen, group = view(x, True), x.shape[1] // num_groups
    kind = _normalisation(mean, None, rstd, weight, bias, eps, scale=scale, shift=shift, group=group)
    kind |= _options(x, activation, negative_slope) | {"grad": grad, "x": x}
    how = cut(seen, x.element_size(), 2, reduces=True)
    sums, products = _partials(x, seen, how)
    _tiled(_gradient_sums, how, x, kind | {"sums": sums, "products": products})
    average, slant = torch.empty_like(mean), torch.empty_like(mean)
    shares: tuple[Tensor | None, Tensor | None] = (None, None)
    if d_weight is not None or d_bias is not None:
        shares = tuple(x.new_empty((2, seen.samples, seen.channels, 1), dtype=mean.dtype))
    block_c = min(power_of_two(group), 64)
    block = min(power_of_two(how.chunks), 1024 // block_c)
    arguments = {name: kind[name] for name in ("weight", "bias", "scale", "scale_stride", "group")}
    arguments |= {"d_scale": d_scale, "d_shift": d_shift, "sample_sums": shares[0], "sample_products": shares[1]}
    arguments |= {"average": average, "slant": slant, "sums": sums, "products": products}
    arguments |= {"channels": seen.channels, "chunks": how.chunks, "count": float(group * seen.space)}
    arguments |= {"WIDE": how.arguments["WIDE"], "BLOCK_C": block_c, "BLOCK": block}
    launch(_sum_groups, mean.numel(), max(1, block_c * block // 256), x, arguments)
    if shares[0] is not None:
        _sum_over_channels(shares, d_weight, d_bias)
    if dx is not None:
        how = cut(seen, x.element_size(), 2, reduces=False)
        _tiled(_gradient_input, how, x, kind | {"dx": dx, "grad_sum": grad_sum, "average": average, "slant": slant})
    return _filled(x, gradients)


def batch_norm_act(
    x: Tensor,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source, residual = dense(x, x, residual)
    y, total = layout.empty_output(x), None if residual is None else layout.empty_output(x)
    tensors = {"y": y, "total": total, "x": source, "x_bias": None, "residual": residual}
    mean, var = (x.new_empty(x.shape[1] if training else 0, dtype=_wide(x)) for _ in range(2))
    if training:
        rest = _measure(source, residual, total, mean, var, 1, eps)
        normalisation = _normalisation(mean, rest, var, weight, bias, eps)
        if total is not None:
            tensors |= {"total": None, "x": total, "residual": None}
    else:
        normalisation = _normalisation(running_mean, None, running_var, weight, bias, eps)
    how = cut(view(source, False), x.element_size(), 4, reduces=False)
    _tiled(_normalise, how, x, tensors | normalisation | _options(x, activation, negative_slope))
    return y, x.new_empty(0) if total is None else total, mean, var


def batch_norm_act_backward(
    grad: Tensor,
    grad_sum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    activation: str,
    negative_slope: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _gradients(x, wanted, weight, bias)
    dx, d_weight, d_bias = gradients
    x, grad, grad_sum = dense(x, x, grad, grad_sum)
    seen = view(x, False)
    kind = _normalisation(mean, None, var, weight, bias, eps)
    kind |= _options(x, activation, negative_slope) | {"grad": grad, "x": x}
    averages: tuple[Tensor | None, Tensor | None] = (None, None)
    if training or d_weight is not None or d_bias is not None:
        how = cut(seen, x.element_size(), 2, reduces=True)
        sums, products = _partials(x, seen, how)
        _tiled(_gradient_sums, how, x, kind | {"sums": sums, "products": products})
        if training:
            averages = tuple(x.new_empty((2, seen.channels), dtype=_wide(x)))
        count = seen.samples * seen.space
        _sum_over_channels((sums, products), d_weight, d_bias, averages, kind["weight"], count)
    if dx is not None:
        how = cut(seen, x.element_size(), 2, reduces=False)
        rest = {"dx": dx, "grad_sum": grad_sum, "average": averages[0], "slant": averages[1]}
        _tiled(_gradient_input, how, x, kind | rest)
    return _filled(x, gradients)


def bias_act(
    x: Tensor, bias: Tensor | None, activation: str, negative_slope: float, gain: float, clamp: float
) -> Tensor:
    y, (source,) = layout.empty_output(x), dense(x, x)
    how = cut(view(source, False), x.element_size(), 4, reduces=False)
    options = _options(x, activation, negative_slope) | _limits(gain, clamp)
    _tiled(_bias_act, how, x, {"y": y, "x": source, "bias": _row(bias), **options})
    return y


def bias_act_backward(
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    negative_slope: float,
    gain: float,
    clamp: float,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    gradients = _gradients(x, wanted, bias)
    dx, d_bias = gradients
    x, grad = dense(x, x, grad)
    seen = view(x, False)
    how = cut(seen, x.element_size(), 2, reduces=True)
    sums = None if d_bias is None else _partials(x, seen, how)[0]
    options = _options(x, activation, negative_slope) | _limits(gain, clamp)
    _tiled(_bias_act_backward, how, x, {"dx": dx, "sums": sums, "grad": grad, "x": x, "bias": _row(bias), **options})
    if sums is not None:
        _sum_over_channels((sums, None), None, d_bias)
    return _filled(x, gradients)


def _limits(gain: float, clamp: float) -> dict[str, Any]:
    return {"gain": gain, "clamp": clamp, "CLAMP": math.isfinite(clamp)}


# --- What to compile ahead of time (see genmod/testing/compile_only.py).

_IMAGE = (8, 256, 64, 64)


def _case(
    op: Any,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...] = _IMAGE,
    channels_last: bool = False,
    residual: bool = False,
    modulated: bool = False,
    training: bool = True,
    activation: str = "silu",
    clamp: float = math.inf,
) -> Any:
    """A call of `op` on meta tensors, with all gradients wanted."""

    def make(*sizes: int, of: torch.dtype = dtype) -> Tensor:
        last = channels_last and sizes == shape
        form = torch.channels_last if last else torch.contiguous_format
        return torch.empty(sizes, dtype=of, device="meta", memory_format=form)

    def call() -> None:
        x, channels = make(*shape), shape[1]
        other = make(*shape) if residual else None
        affine = make(channels), make(channels)
        scales = (make(shape[0], channels), make(shape[0], channels)) if modulated else (None, None)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        if op is group_norm_act:
            op(x, other, *affine, *scales, 32, 1e-5, activation, 0.2)
        elif op is group_norm_act_biased:
            op(x, make(channels), other, *affine, *scales, 32, 1e-5, activation, 0.2, residual)
        elif op is group_norm_act_backward:
            statistics = (make(shape[0], 32, of=wide) for _ in range(2))
            op(x, other, x, *affine, *scales, *statistics, 32, 1e-5, activation, 0.2, 31)
        elif op is batch_norm_act:
            statistics = (None, None) if training else (make(channels), make(channels))
            op(x, other, *statistics, *affine, training, 1e-5, activation, 0.2)
        elif op is batch_norm_act_backward:
            statistics = (make(channels, of=wide) for _ in range(2))
            op(x, other, x, *affine, *statistics, training, 1e-5, activation, 0.2, 7)
        elif op is bias_act:
            op(x, affine[1], activation, 0.2, 1.5, clamp)
        else:
            op(x, x, affine[1], activation, 0.2, 1.5, clamp, 3)

    return call


#: Between them they reach every branch of every kernel.
COMPILE_CASES = {
    "group_norm_act, bfloat16": _case(group_norm_act, torch.bfloat16),
    "group_norm_act, bfloat16, channels_last": _case(group_norm_act, torch.bfloat16, channels_last=True),
    "group_norm_act, bfloat16, one image": _case(group_norm_act, torch.bfloat16, shape=(1, 128, 1024, 1024)),
    "group_norm_act, float32, everything": _case(group_norm_act, torch.float32, residual=True, modulated=True),
    "group_norm_act, float16, odd": _case(group_norm_act, torch.float16, shape=(3, 96, 7, 7), activation="tanh"),
    "group_norm_act, bfloat16, 2^32 elements": _case(group_norm_act, torch.bfloat16, shape=(32, 128, 1024, 1024)),
    "group_norm_act, float64": _case(group_norm_act, torch.float64, activation="gelu"),
    "group_norm_act_biased, bfloat16, channels_last": _case(group_norm_act_biased, torch.bfloat16, channels_last=True),
    "group_norm_act_biased, bfloat16, channels_last, residual": _case(
        group_norm_act_biased, torch.bfloat16, channels_last=True, residual=True
    ),
    "group_norm_act_biased, float64": _case(group_norm_act_biased, torch.float64),
    "group_norm_act_backward, bfloat16": _case(group_norm_act_backward, torch.bfloat16),
    "group_norm_act_backward, bfloat16, channels_last": _case(
        group_norm_act_backward, torch.bfloat16, channels_last=True
    ),
    "group_norm_act_backward, float32, everything": _case(
        group_norm_act_backward, torch.float32, residual=True, modulated=True, activation="gelu"
    ),
    "group_norm_act_backward, float64": _case(group_norm_act_backward, torch.float64, activation="tanh"),
    "batch_norm_act, float32, channels_last": _case(
        batch_norm_act, torch.float32, shape=(64, 128, 16, 16), channels_last=True, activation="relu"
    ),
    "batch_norm_act, bfloat16, evaluation, residual": _case(
        batch_norm_act, torch.bfloat16, residual=True, training=False, activation="leaky_relu"
    ),
    "batch_norm_act_backward, float32": _case(batch_norm_act_backward, torch.float32, activation="relu"),
    "batch_norm_act_backward, bfloat16, channels_last, residual": _case(
        batch_norm_act_backward, torch.bfloat16, channels_last=True, residual=True, activation="leaky_relu"
    ),
    "batch_norm_act_backward, float16, evaluation": _case(
        batch_norm_act_backward, torch.float16, training=False, activation="sigmoid"
    ),
    "bias_act, float32": _case(bias_act, torch.float32, activation="leaky_relu"),
    "bias_act, bfloat16, channels_last, clamp": _case(
        bias_act, torch.bfloat16, channels_last=True, activation="leaky_relu", clamp=256.0
    ),
    "bias_act_backward, float32": _case(bias_act_backward, torch.float32, activation="leaky_relu"),
    "bias_act_backward, bfloat16, channels_last, clamp": _case(
        bias_act_backward, torch.bfloat16, channels_last=True, activation="gelu", clamp=256.0
    ),
}
