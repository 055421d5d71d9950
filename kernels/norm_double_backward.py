"""The second derivative of the norms on a GPU: three passes over the elements, and short sums between them.

For the maths and its names see `norm_act_double_backward` in genmod/reference/norm_act.py. As in kernels/norm_act.py
everything that is summed over space is summed per sample and channel, in chunks; what follows from these sums is a few
numbers per channel, for which PyTorch's own operators do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.activation import curvature, slope
from genmod.kernels.norm_elements import affine, normalisation_arguments
from genmod.kernels.norm_shared import SIZES, activation_options, launch_tiled, wide_dtype
from genmod.kernels.planes import cut, dense, offsets, place, sizes, view
from genmod.kernels.rows import load, store

_FIRST, _SPREAD = 5, 2  # sums of the first and of the second pass


@triton.jit
def _bends(
    grad, x, to_x, at, inside, m, r, rho, factor, offset, negative_slope, ACTIVATION: tl.constexpr, FAST: tl.constexpr
):
    """h, act'(z), dz = g act'(z), g act''(z), and what arrives at the gradient of x."""
    h = (load(x, at, inside) - m - r) * rho
    z = h * factor + offset
    g = load(grad, at, inside)
    once = slope(z, negative_slope, ACTIVATION, FAST)
    u = tl.zeros_like(h)
    if to_x is not None:
        u = load(to_x, at, inside)
    return h, once, g * once, g * curvature(z, ACTIVATION, FAST), u


@triton.jit(do_not_specialize=SIZES)
def double_sums(
    sums, sums_stride, grad, x, to_x, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
    fast, slow, blocks, chunks, steps, group, eps: tl.float64, negative_slope: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, PER_SAMPLE: tl.constexpr, VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums of dz, dz h, u, u h and u dz per sample, channel and chunk."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    first = chunk * (steps * BLOCK_P)
    last = tl.minimum(first + steps * BLOCK_P, space)
    known = channel < channels
    dtype = sums.dtype.element_ty
    _unit, m, r, rho, factor, offset = affine(
        sample, channel, channels, group, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
        eps, dtype, PER_SAMPLE, VARIANCE,
    )  # fmt: skip
    of_dz = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    of_dz_h = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    of_u = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    of_u_h = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    of_u_dz = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    for start in range(first, last, BLOCK_P):
        position = start + tl.arange(0, BLOCK_P)
        inside = known[:, None] & (position < space)[None, :]
        at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
        h, _once, dz, _twice, u = _bends(
            grad, x, to_x, at, inside, m, r, rho, factor, offset, negative_slope, ACTIVATION, FAST
        )  # fmt: skip
        of_dz += tl.where(inside, dz, 0.0)
        of_dz_h += tl.where(inside, dz * h, 0.0)
        if to_x is not None:
            of_u += tl.where(inside, u, 0.0)
            of_u_h += tl.where(inside, u * h, 0.0)
            of_u_dz += tl.where(inside, u * dz, 0.0)
    at = (sample * channels + channel) * chunks + chunk
    tl.store(sums + at, tl.sum(of_dz, axis=1), mask=known)
    tl.store(sums + sums_stride + at, tl.sum(of_dz_h, axis=1), mask=known)
    tl.store(sums + 2 * sums_stride + at, tl.sum(of_u, axis=1), mask=known)
    tl.store(sums + 3 * sums_stride + at, tl.sum(of_u_h, axis=1), mask=known)
    tl.store(sums + 4 * sums_stride + at, tl.sum(of_u_dz, axis=1), mask=known)


@triton.jit
def _arriving(sample, channel, channels, known, rho, factor, u, h, turn, level, PER_SAMPLE: tl.constexpr):
    """What arrives at dz, and `turn` of each channel."""
    at = channel
    if PER_SAMPLE:
        at += sample * channels
    turned = load(turn, at, known)[:, None]
    return u * (rho * factor) + h * turned + load(level, at, known)[:, None], turned, at


@triton.jit(do_not_specialize=SIZES)
def double_spread(
    d_grad, sums, sums_stride, turn, level,
    grad, x, to_x, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
    fast, slow, blocks, chunks, steps, group, eps: tl.float64, negative_slope: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, PER_SAMPLE: tl.constexpr, VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The gradient of grad, and sums of Z and Z h per sample, channel and chunk."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    first = chunk * (steps * BLOCK_P)
    last = tl.minimum(first + steps * BLOCK_P, space)
    known = channel < channels
    dtype = sums.dtype.element_ty
    _unit, m, r, rho, factor, offset = affine(
        sample, channel, channels, group, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
        eps, dtype, PER_SAMPLE, VARIANCE,
    )  # fmt: skip
    of_bent = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    of_bent_h = tl.zeros([BLOCK_C, BLOCK_P], dtype)
    for start in range(first, last, BLOCK_P):
        position = start + tl.arange(0, BLOCK_P)
        inside = known[:, None] & (position < space)[None, :]
        at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
        h, once, _dz, twice, u = _bends(
            grad, x, to_x, at, inside, m, r, rho, factor, offset, negative_slope, ACTIVATION, FAST
        )  # fmt: skip
        k, _turned, _row = _arriving(sample, channel, channels, known, rho, factor, u, h, turn, level, PER_SAMPLE)
        if d_grad is not None:
            store(d_grad, at, k * once, inside)
        bent = k * twice
        of_bent += tl.where(inside, bent, 0.0)
        of_bent_h += tl.where(inside, bent * h, 0.0)
    at = (sample * channels + channel) * chunks + chunk
    tl.store(sums + at, tl.sum(of_bent, axis=1), mask=known)
    tl.store(sums + sums_stride + at, tl.sum(of_bent_h, axis=1), mask=known)


@triton.jit(do_not_specialize=SIZES)
def double_input(
    dx, turn, level, pull, tilt, base,
    grad, x, to_x, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
    fast, slow, blocks, chunks, group, eps: tl.float64, negative_slope: tl.float64,
    ACTIVATION: tl.constexpr, FAST: tl.constexpr, PER_SAMPLE: tl.constexpr, VARIANCE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dx = rho (Z factor + dz turn) + u pull + h tilt + base."""
    sample, channel, chunk = place(blocks, chunks, CHANNELS_LAST, WIDE, BLOCK_C)
    channels, space = sizes(fast, slow, CHANNELS_LAST, UNIT)
    position = chunk * BLOCK_P + tl.arange(0, BLOCK_P)
    known = channel < channels
    inside = known[:, None] & (position < space)[None, :]
    at = offsets(sample, channel[:, None], position[None, :], channels, space, CHANNELS_LAST)
    dtype = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    _unit, m, r, rho, factor, offset = affine(
        sample, channel, channels, group, mean, rest, spread, weight, bias, scale, shift, scale_stride, shift_stride,
        eps, dtype, PER_SAMPLE, VARIANCE,
    )  # fmt: skip
    h, _once, dz, twice, u = _bends(
        grad, x, to_x, at, inside, m, r, rho, factor, offset, negative_slope, ACTIVATION, FAST
    )  # fmt: skip
    k, turned, row = _arriving(sample, channel, channels, known, rho, factor, u, h, turn, level, PER_SAMPLE)
    result = rho * (k * twice * factor + dz * turned)
    if pull is not None:
        result += u * load(pull, row, known)[:, None] + h * load(tilt, row, known)[:, None]
        result += load(base, row, known)[:, None]
    store(dx, at, result, inside)


def norm_act_double_backward(
    to_x: Tensor | None,
    to_weight: Tensor | None,
    to_bias: Tensor | None,
    to_scale: Tensor | None,
    to_shift: Tensor | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    over: str,
    num_groups: int,
    eps: float,
    activation: str,
    negative_slope: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_grad = layout.empty_output(x) if wanted & 1 else None
    dx = layout.empty_output(x) if wanted & 2 else None
    nothing = x.new_empty(0)
    source, grad, to_x = dense(x, x, grad, to_x)
    by_group, wide = over == "group", wide_dtype(x)
    seen, group = view(source, by_group), x.shape[1] // num_groups
    kind = normalisation_arguments(
        mean, None, rstd, weight, bias, eps, scale=scale, shift=shift, group=group if by_group else 0
    )
    kind |= {"VARIANCE": False, "grad": grad, "x": source, "to_x": to_x}
    kind |= activation_options(x, activation, negative_slope)
    how = cut(seen, x.element_size(), 1, reduces=True)

    def summed(kernel: Any, number: int, **arguments: Any) -> list[Tensor]:
        """Per sample and channel, or per channel."""
        sums = x.new_empty((number, seen.samples, seen.channels, how.chunks), dtype=wide)
        launch_tiled(kernel, how, x, kind | arguments | {"sums": sums, "sums_stride": sums.stride(0)})
        return list(sums.sum(3) if by_group else sums.sum((1, 3)))

    shape = (x.shape[0], num_groups, group)
    count = max(1, group * seen.space if by_group else seen.samples * seen.space)

    def average(t: Tensor) -> Tensor:
        """Of sums per channel, over what the statistics are over."""
        if by_group:
            return (t.view(shape).sum(2, keepdim=True) / count).expand(shape).reshape(t.shape)
        return t / count

    def known(p: Tensor | None, otherwise: float) -> Tensor | float:
        return otherwise if p is None else p.to(wide)

    gamma, beta, growth = known(weight, 1.0), known(bias, 0.0), 1.0 + known(scale, 0.0)
    u_gamma, u_beta, u_scale = known(to_weight, 0.0), known(to_bias, 0.0), known(to_scale, 0.0)
    by_h, by_one = growth * u_gamma + u_scale * gamma, growth * u_beta + u_scale * beta + known(to_shift, 0.0)
    rho = rstd.to(wide)
    if by_group:
        rho = rho.unsqueeze(2).expand(shape).reshape(x.shape[:2])
    gain = rho * gamma * growth

    of_dz, of_dz_h, of_u, of_u_h, of_u_dz = summed(double_sums, _FIRST)
    if over == "nothing":
        p = q = torch.zeros_like(of_u)
    else:
        p, q = average(of_u), average(of_u_h)
    turn, level = (by_h - gain * q).contiguous(), (by_one - gain * p).contiguous()
    of_bent, of_bent_h = summed(double_spread, _SPREAD, d_grad=d_grad, turn=turn, level=level)
    if dx is not None:
        rest: dict[str, Tensor | None] = {"pull": None, "tilt": None, "base": None}
        if over != "nothing":
            factor = gamma * growth
            m = average(factor * of_dz_h)
            pull = -rho.square() * m
            mean_w = pull * p + rho * average(turn * of_dz + factor * of_bent)
            mean_w_h = pull * q + rho * average(turn * of_dz_h + factor * of_bent_h)
            curve = average(factor * of_u_dz) - p * average(factor * of_dz) - q * m
            rest = {"pull": pull, "tilt": -mean_w_h - rho.square() * curve, "base": -mean_w}
            rest = {name: t.contiguous() for name, t in rest.items() if t is not None}
        last = cut(seen, x.element_size(), 1, reduces=False)
        launch_tiled(double_input, last, x, kind | rest | {"dx": dx, "turn": turn, "level": level})

    turned = rho * (of_u_dz - p * of_dz - q * of_dz_h)

    def over_samples(t: Tensor) -> Tensor:
        return t.sum(0) if by_group else t

    def gradient(value: Callable[[], Tensor], like: Tensor | None, bit: int) -> Tensor:
        return value().to(like.dtype) if like is not None and wanted & bit else nothing

    return (
        nothing if d_grad is None else d_grad,
        nothing if dx is None else dx,
        gradient(lambda: over_samples(growth * (turned + of_bent_h) + u_scale * of_dz_h), weight, 4),
        gradient(lambda: over_samples(growth * of_bent + u_scale * of_dz), bias, 8),
        gradient(lambda: gamma * (turned + of_bent_h) + u_gamma * of_dz_h + u_beta * of_dz + beta * of_bent, scale, 16),
        gradient(lambda: of_bent, shift, 32),
    )


def _case(
    dtype: torch.dtype, over: str, shape: tuple[int, ...] = (8, 256, 64, 64), *, channels_last: bool = False,
    modulated: bool = False, activation: str = "silu",
) -> Any:  # fmt: skip
    """A call on meta tensors, with all gradients wanted."""

    def make(*sizes: int, of: torch.dtype = dtype) -> Tensor:
        form = torch.channels_last if channels_last and sizes == shape else torch.contiguous_format
        return torch.empty(sizes, dtype=of, device="meta", memory_format=form)

    def call() -> None:
        x, each = make(*shape), make(shape[1])
        scales = (make(*shape[:2]), make(*shape[:2])) if modulated else (None, None)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        statistics = make(*((shape[0], 32) if over == "group" else (shape[1],)), of=wide)
        options = (over, 32 if over == "group" else 1, 1e-5, activation, 0.2, 63)
        parameters = (each, each, *scales)
        norm_act_double_backward(x, *parameters, x, x, *parameters, statistics, statistics, *options)

    return call


CASES = {
    "norm_act_double_backward, float32": _case(torch.float32, "group"),
    "norm_act_double_backward, bfloat16, channels_last, scale and shift": _case(
        torch.bfloat16, "group", channels_last=True, modulated=True
    ),
    "norm_act_double_backward, float64, batch": _case(torch.float64, "batch", activation="gelu"),
    "norm_act_double_backward, float32, batch, channels_last": _case(
        torch.float32, "batch", (64, 128, 16, 16), channels_last=True, activation="leaky_relu"
    ),
    "norm_act_double_backward, float16, evaluation": _case(torch.float16, "nothing", activation="tanh"),
    "norm_act_double_backward, bfloat16, 2^32 elements": _case(
        torch.bfloat16, "group", (32, 128, 1024, 1024), activation="sigmoid"
    ),
}
