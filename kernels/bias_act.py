"""A bias and an activation on a GPU, forward and backward."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.activation import activate, slope
from genmod.kernels.norm_shared import (
    SIZES,
    activation_options,
    filled,
    in_a_row,
    launch_tiled,
    room_for_gradients,
    room_for_partials,
)
from genmod.kernels.norm_sums import sum_over_channels
from genmod.kernels.planes import cut, dense, offsets, place, sizes, view
from genmod.kernels.rows import load, store


@triton.jit(do_not_specialize=SIZES)
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


@triton.jit(do_not_specialize=SIZES)
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


def bias_act(
    x: Tensor, bias: Tensor | None, activation: str, negative_slope: float, gain: float, clamp: float
) -> Tensor:
    y, (source,) = layout.empty_output(x), dense(x, x)
    how = cut(view(source, False), x.element_size(), 4, reduces=False)
    options = activation_options(x, activation, negative_slope) | _limits(gain, clamp)
    launch_tiled(_bias_act, how, x, {"y": y, "x": source, "bias": in_a_row(bias), **options})
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
    gradients = room_for_gradients(x, wanted, bias)
    dx, d_bias = gradients
    x, grad = dense(x, x, grad)
    seen = view(x, False)
    how = cut(seen, x.element_size(), 2, reduces=True)
    sums = None if d_bias is None else room_for_partials(x, seen, how)[0]
    options = activation_options(x, activation, negative_slope) | _limits(gain, clamp)
    launch_tiled(
        _bias_act_backward, how, x, {"dx": dx, "sums": sums, "grad": grad, "x": x, "bias": in_a_row(bias), **options}
    )
    if sums is not None:
        sum_over_channels((sums, None), None, d_bias)
    return filled(x, gradients)


def _limits(gain: float, clamp: float) -> dict[str, Any]:
    return {"gain": gain, "clamp": clamp, "CLAMP": math.isfinite(clamp)}


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(
    op: Any, dtype: torch.dtype, *, activation: str = "leaky_relu", channels_last: bool = False, clamp: float = math.inf
) -> Any:
    """A call of `op` on meta tensors, with all gradients wanted."""

    def call() -> None:
        form = torch.channels_last if channels_last else torch.contiguous_format
        x = torch.empty(8, 256, 64, 64, dtype=dtype, device="meta", memory_format=form)
        tensors = (x,) if op is bias_act else (x, x)
        options = (x.new_empty(256), activation, 0.2, 1.5, clamp)
        op(*tensors, *options) if op is bias_act else op(*tensors, *options, 3)

    return call


CASES = {
    "bias_act, float32": _case(bias_act, torch.float32),
    "bias_act, bfloat16, channels_last, clamp": _case(bias_act, torch.bfloat16, channels_last=True, clamp=256.0),
    "bias_act_backward, float32": _case(bias_act_backward, torch.float32),
    "bias_act_backward, bfloat16, channels_last, clamp": _case(
        bias_act_backward, torch.bfloat16, channels_last=True, activation="gelu", clamp=256.0
    ),
}
