"""What a norm and its gradient do to each element, and what they sum over a chunk of a channel."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.activation import activate, slope
from genmod.kernels.norm_shared import SIZES, in_a_row
from genmod.kernels.norm_statistics import bias_of, rstd_of, total_at
from genmod.kernels.planes import offsets, place, sizes
from genmod.kernels.rows import load, store


@triton.jit
def affine(
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
        rho = rstd_of(rho, eps)
    factor = or_one(weight, channel, known, dtype)
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
def or_one(weight, channel, known, dtype: tl.constexpr):
    value = tl.full(channel.shape, 1.0, dtype)
    if weight is not None:
        value = load(weight, channel, known).to(dtype)
    return value


@triton.jit(do_not_specialize=SIZES)
def normalise(
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
    value = total_at(x, residual, total, at, inside, bias_of(x_bias, channel, channel < channels)[:, None])
    if total is not None:
        store(total, at, value, inside)
    _, m, r, rho, factor, offset = affine(
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


@triton.jit(do_not_specialize=SIZES)
def gradient_sums(
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
    _, m, r, rho, factor, offset = affine(
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


@triton.jit(do_not_specialize=SIZES)
def gradient_input(
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
    unit, m, r, rho, factor, offset = affine(
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


def normalisation_arguments(
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
    scale, shift = in_a_row(scale), in_a_row(shift)
    return {
        "mean": in_a_row(mean),
        "rest": rest,
        "spread": in_a_row(spread),
        "weight": in_a_row(weight),
        "bias": in_a_row(bias),
        "scale": scale,
        "shift": shift,
        "scale_stride": 0 if scale is None else scale.stride(0),
        "shift_stride": 0 if shift is None else shift.stride(0),
        "eps": eps,
        "group": group or 1,
        "PER_SAMPLE": group > 0,
        "VARIANCE": group == 0,
    }
