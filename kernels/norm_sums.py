"""Sums of sums: what chunks of channels hold, added over chunks, channels or samples in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from genmod.kernels.launch import launch
from genmod.kernels.norm_elements import or_one
from genmod.kernels.norm_shared import SIZES
from genmod.kernels.planes import power_of_two
from genmod.kernels.rows import load, store


@triton.jit(do_not_specialize=SIZES)
def sum_groups(
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
        gamma = or_one(weight, channel, known, dtype)
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


@triton.jit(do_not_specialize=SIZES)
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
        over = or_one(weight, channel, known, dtype) / tl.full([1], count, dtype)
        tl.store(average + channel, over * dz, mask=known)
        tl.store(slant + channel, over * dz_h, mask=known)


def sum_over_channels(
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
