"""Diagonal Gaussians on a GPU: draw, KL divergence, and both in one pass; forward and backward.

The functions have the names, arguments and results of the dispatcher's ops. For the maths see
genmod/reference/gaussian.py; for how a kernel finds its elements, kernels/rows.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.elementary import exp_parts, log_positive
from genmod.kernels.launch import launch
from genmod.kernels.philox import normal_parts
from genmod.kernels.rows import SIZES, Plan, elements, load, place, plan, store

_READ = ("mean", "logvar", "noise", "other_mean", "other_logvar", "grad_z", "grad_kl", "to_mean", "to_logvar")
_WRITTEN = ("z", "kl", "d_mean", "d_logvar", "d_other_mean", "d_other_logvar", "d_grad_z", "d_grad_kl")
_SIZES = [*SIZES, "per_sample", "grad_sum_stride", *(f"{name}_gap" for name in (*_READ, *_WRITTEN))]


@triton.jit(do_not_specialize=_SIZES)
def _sample_forward(
    z, z_gap, kl, kl_gap, mean, mean_gap, logvar, logvar_gap, noise, noise_gap, partials, seed,
    length, chunks, cols, free_bits: tl.float64, scale: tl.float64,
    CLAMP: tl.constexpr, FREE_BITS: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """z = mean + sigma * noise; and, where asked for, its KL per element (`kl`) or the scaled sum (`partials`)."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    if PARTS == 4:
        index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
        normals = normal_parts(seed, start, load(logvar, index + row * logvar_gap, inside), BLOCK)
    if partials is not None:
        total = tl.zeros([BLOCK // PARTS], partials.dtype.element_ty)
    for part in tl.static_range(PARTS):
        index, inside, row = elements(segment, begin, end, start, cols, part, PARTS, SHORT, UNIT, BLOCK)
        m = load(mean, index + row * mean_gap, inside)
        lv, _, _ = _clamp(load(logvar, index + row * logvar_gap, inside), CLAMP)
        sigma, expm1, expm1_minus = exp_parts(0.5 * lv)
        if PARTS == 4:
            eps = normals[part]
        else:
            eps = load(noise, index + row * noise_gap, inside)
        store(z, index + row * z_gap, m + sigma * eps, inside)
        value = _lift(expm1_minus + 0.5 * (expm1 * expm1 + m * m), free_bits, FREE_BITS)
        if kl is not None:
            store(kl, index + row * kl_gap, value, inside)
        if partials is not None:
            total += tl.where(inside, value, 0.0)
    if partials is not None:
        _store_sum(partials, total, scale)


@triton.jit(do_not_specialize=_SIZES)
def _sample_backward(
    d_mean, d_mean_gap, d_logvar, d_logvar_gap, grad_z, grad_z_gap, grad_kl, grad_kl_gap,
    mean, mean_gap, logvar, logvar_gap, noise, noise_gap, grad_sum, grad_sum_stride, seed,
    length, chunks, per_sample, cols, free_bits: tl.float64, scale: tl.float64,
    CLAMP: tl.constexpr, FREE_BITS: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of mean and logvar from those of z (`grad_z`) and of the KL (`grad_kl` each, `grad_sum` summed)."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    if PARTS == 4:
        index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
        normals = normal_parts(seed, start, load(logvar, index + row * logvar_gap, inside), BLOCK)
    if grad_sum is not None:
        one_for_all = _load_sum(grad_sum, segment // per_sample * grad_sum_stride, scale)
    for part in tl.static_range(PARTS):
        index, inside, row = elements(segment, begin, end, start, cols, part, PARTS, SHORT, UNIT, BLOCK)
        lv, slope, _ = _clamp(load(logvar, index + row * logvar_gap, inside), CLAMP)
        sigma, expm1, expm1_minus = exp_parts(0.5 * lv)
        to_mean = tl.zeros([BLOCK // PARTS], lv.dtype)
        to_logvar = tl.zeros([BLOCK // PARTS], lv.dtype)
        if grad_z is not None:
            to_mean = load(grad_z, index + row * grad_z_gap, inside)
            if d_logvar is not None:
                if PARTS == 4:
                    eps = normals[part]
                else:
                    eps = load(noise, index + row * noise_gap, inside)
                to_logvar = to_mean * sigma * eps
        if grad_kl is not None or grad_sum is not None:
            m = load(mean, index + row * mean_gap, inside)
            if grad_kl is not None:
                g = load(grad_kl, index + row * grad_kl_gap, inside)
            else:
                g = one_for_all
            if FREE_BITS:
                g = _unlifted(g, expm1_minus + 0.5 * (expm1 * expm1 + m * m), free_bits)
            to_mean += g * m
            to_logvar += g * (expm1 * (expm1 + 2.0))  # e^l - 1
        if d_mean is not None:
            store(d_mean, index + row * d_mean_gap, to_mean, inside)
        if d_logvar is not None:
            store(d_logvar, index + row * d_logvar_gap, 0.5 * slope * to_logvar, inside)


@triton.jit(do_not_specialize=_SIZES)
def _sample_double_backward(
    d_mean, d_mean_gap, d_logvar, d_logvar_gap, d_grad_z, d_grad_z_gap, d_grad_kl, d_grad_kl_gap,
    to_mean, to_mean_gap, to_logvar, to_logvar_gap, grad_z, grad_z_gap, grad_kl, grad_kl_gap,
    mean, mean_gap, logvar, logvar_gap, noise, noise_gap, grad_sum, grad_sum_stride, partials, seed,
    length, chunks, per_sample, cols, free_bits: tl.float64, scale: tl.float64,
    CLAMP: tl.constexpr, FREE_BITS: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What arrives at the gradients that `_sample_backward` writes (`to_mean`, `to_logvar`) goes back to mean and
    logvar, and to the gradients that had come in: of z, and of the KL per element or summed in `partials`."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    if PARTS == 4:
        index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
        normals = normal_parts(seed, start, load(logvar, index + row * logvar_gap, inside), BLOCK)
    if grad_sum is not None:
        one_for_all = _load_sum(grad_sum, segment // per_sample * grad_sum_stride, scale)
    if partials is not None:
        total = tl.zeros([BLOCK // PARTS], partials.dtype.element_ty)
    for part in tl.static_range(PARTS):
        index, inside, row = elements(segment, begin, end, start, cols, part, PARTS, SHORT, UNIT, BLOCK)
        lv, slope, curvature = _clamp(load(logvar, index + row * logvar_gap, inside), CLAMP)
        sigma, expm1, expm1_minus = exp_parts(0.5 * lv)
        u = load(to_mean, index + row * to_mean_gap, inside)
        w = 0.5 * load(to_logvar, index + row * to_logvar_gap, inside)
        # What logvar's gradient is by the clamped logvar, and the derivative of that.
        once, twice = tl.zeros_like(lv), tl.zeros_like(lv)
        back_to_mean = tl.zeros_like(lv)
        if grad_z is not None:
            if PARTS == 4:
                eps = normals[part]
            else:
                eps = load(noise, index + row * noise_gap, inside)
            spread = sigma * eps
            moved = load(grad_z, index + row * grad_z_gap, inside) * spread
            once += moved
            twice += 0.5 * moved
            if d_grad_z is not None:
                store(d_grad_z, index + row * d_grad_z_gap, u + w * slope * spread, inside)
        if grad_kl is not None or grad_sum is not None:
            m = load(mean, index + row * mean_gap, inside)
            if grad_kl is not None:
                g = load(grad_kl, index + row * grad_kl_gap, inside)
            else:
                g = one_for_all
            growth = expm1 * (expm1 + 2.0)  # e^l - 1
            back = u * m + w * slope * growth
            if FREE_BITS:
                kl = expm1_minus + 0.5 * (expm1 * expm1 + m * m)
                g = _unlifted(g, kl, free_bits)
                back = _unlifted(back, kl, free_bits)
            back_to_mean += u * g
            once += g * growth
            twice += g * (growth + 1.0)
            if d_grad_kl is not None:
                store(d_grad_kl, index + row * d_grad_kl_gap, back, inside)
            if partials is not None:
                total += tl.where(inside, back, 0.0)
        if d_mean is not None:
            store(d_mean, index + row * d_mean_gap, back_to_mean, inside)
        if d_logvar is not None:
            store(d_logvar, index + row * d_logvar_gap, w * (curvature * once + slope * slope * twice), inside)
    if partials is not None:
        _store_sum(partials, total, scale)


@triton.jit(do_not_specialize=_SIZES)
def _kl_forward(
    kl, kl_gap, mean, mean_gap, logvar, logvar_gap, other_mean, other_mean_gap, other_logvar, other_logvar_gap,
    partials,
    length, chunks, cols, free_bits: tl.float64, scale: tl.float64,
    CLAMP: tl.constexpr, FREE_BITS: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """KL to the standard normal, or to a second Gaussian, per element (`kl`) or the scaled sum of it (`partials`)."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
    m = load(mean, index + row * mean_gap, inside)
    lv, _, _ = _clamp(load(logvar, index + row * logvar_gap, inside), CLAMP)
    if other_mean is None:
        _, expm1, expm1_minus = exp_parts(0.5 * lv)
        value = expm1_minus + 0.5 * (expm1 * expm1 + m * m)
    else:
        other_lv, _, _ = _clamp(load(other_logvar, index + row * other_logvar_gap, inside), CLAMP)
        _, _, value, _ = _kl_to_other(m - load(other_mean, index + row * other_mean_gap, inside), lv, other_lv)
    value = _lift(value, free_bits, FREE_BITS)
    if kl is not None:
        store(kl, index + row * kl_gap, value, inside)
    else:
        _store_sum(partials, tl.where(inside, value, 0.0), scale)


@triton.jit(do_not_specialize=_SIZES)
def _kl_backward(
    d_mean, d_mean_gap, d_logvar, d_logvar_gap, d_other_mean, d_other_mean_gap, d_other_logvar, d_other_logvar_gap,
    grad_kl, grad_kl_gap,
    mean, mean_gap, logvar, logvar_gap, other_mean, other_mean_gap, other_logvar, other_logvar_gap,
    grad_sum, grad_sum_stride,
    length, chunks, per_sample, cols, free_bits: tl.float64, scale: tl.float64,
    CLAMP: tl.constexpr, FREE_BITS: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of both Gaussians from that of the KL (`grad_kl` each, `grad_sum` summed)."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
    m = load(mean, index + row * mean_gap, inside)
    lv, slope, _ = _clamp(load(logvar, index + row * logvar_gap, inside), CLAMP)
    if grad_kl is not None:
        g = load(grad_kl, index + row * grad_kl_gap, inside)
    else:
        g = _load_sum(grad_sum, segment // per_sample * grad_sum_stride, scale)
    if other_mean is None:
        _, expm1, expm1_minus = exp_parts(0.5 * lv)
        value = expm1_minus + 0.5 * (expm1 * expm1 + m * m)
        to_mean, to_logvar = m, expm1 * (expm1 + 2.0)
    else:
        other_lv, other_slope, _ = _clamp(load(other_logvar, index + row * other_logvar_gap, inside), CLAMP)
        difference = m - load(other_mean, index + row * other_mean_gap, inside)
        to_mean, to_logvar, value, to_other = _kl_to_other(difference, lv, other_lv)
    if FREE_BITS:
        g = _unlifted(g, value, free_bits)
    if d_mean is not None:
        store(d_mean, index + row * d_mean_gap, g * to_mean, inside)
    if d_logvar is not None:
        store(d_logvar, index + row * d_logvar_gap, 0.5 * slope * (g * to_logvar), inside)
    if d_other_mean is not None:
        store(d_other_mean, index + row * d_other_mean_gap, -(g * to_mean), inside)
    if d_other_logvar is not None:
        store(d_other_logvar, index + row * d_other_logvar_gap, -0.5 * other_slope * (g * to_other), inside)


# --- The maths, once.


@triton.jit
def _clamp(logvar, KIND: tl.constexpr):
    """The clamped log-variance and its first and second derivative. Comparisons, never minimum and maximum: those would
    lose a NaN."""
    curvature = 0.0
    if KIND == "hard":
        lv = tl.where(logvar < -30.0, -30.0, logvar)
        lv = tl.where(lv > 20.0, 20.0, lv)
        slope = tl.where(lv == logvar, 1.0, 0.0)
    elif KIND == "soft":
        # 20 - softplus(20 - x) = min(x, 20) - ln(1 + e^-|20 - x|), which does not cancel near the prior; so below.
        top, _, _ = exp_parts(-tl.abs(20.0 - logvar))
        upper = tl.where(logvar > 20.0, 20.0, logvar) - log_positive(1.0 + top)
        bottom, _, _ = exp_parts(-tl.abs(upper + 30.0))
        lv = tl.where(upper < -30.0, -30.0, upper) + log_positive(1.0 + bottom)
        # slope = a b, of sigmoids whose complements do not cancel
        a, b = tl.where(logvar > 20.0, top, 1.0), tl.where(upper < -30.0, bottom, 1.0)
        denominator = (1.0 + top) * (1.0 + bottom)
        slope = a * b / denominator
        not_a = tl.where(logvar > 20.0, 1.0, top) / (1.0 + top)
        a_not_b = a * tl.where(upper < -30.0, 1.0, bottom) / denominator
        curvature = slope * (a_not_b - not_a)
    else:
        lv = logvar
        slope = 1.0
    return lv, slope, curvature


@triton.jit
def _kl_to_other(difference, lv, other_lv):
    """Derivative by the mean, twice that by logvar, the KL, and minus twice the derivative by other_logvar."""
    delta = lv - other_lv
    back = lv - delta
    # What the subtraction dropped, exactly: an ulp of an exponent is many ulps of the result (see the reference).
    dropped = (lv - (delta + back)) + (back - other_lv)
    _, expm1, expm1_minus = exp_parts(delta)
    expm1_minus += dropped * expm1
    expm1 += dropped * (expm1 + 1.0)
    precision, _, _ = exp_parts(-other_lv)
    square = difference * difference * precision
    return difference * precision, expm1, 0.5 * (expm1_minus + square), expm1 + square


@triton.jit
def _lift(kl, free_bits, FREE_BITS: tl.constexpr):
    if FREE_BITS:
        floor = tl.full([1], free_bits, kl.dtype)
        kl = tl.where(kl <= floor, floor, kl)
    return kl


@triton.jit
def _unlifted(grad, kl, free_bits):
    """The gradient where free bits do not bite, and zero where they do."""
    return tl.where(kl <= tl.full([1], free_bits, kl.dtype), 0.0, grad)


@triton.jit
def _load_sum(pointer, offset, scale):
    value = tl.load(pointer + offset)
    return value * tl.full([1], scale, value.dtype)


@triton.jit
def _store_sum(pointer, total, scale):
    tl.store(pointer + tl.program_id(0), tl.sum(total, axis=0) * scale)


# --- Launchers.


def _run(kernel: Any, cut: Plan, like: Tensor, reduction: str, free_bits: float, **arguments: Any) -> None:
    divisor = {"batchmean": like.shape[0], "mean": like.numel()}.get(reduction, 1)
    arguments.update(cut.arguments, free_bits=float(free_bits), scale=1.0 / max(divisor, 1), FREE_BITS=free_bits > 0)
    launch(kernel, cut.programs, cut.num_warps, like, arguments)


def _forward(
    kernel: Any,
    like: Tensor,
    reduction: str,
    free_bits: float,
    tensors: dict[str, Tensor | None],
    parts: int,
    accesses: int,
    **arguments: Any,
) -> Tensor:
    """Run a forward kernel and return the KL, reduced. Reduction "" is for none at all: an empty tensor."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    kl = layout.empty_output(like, dtype) if reduction == "none" else None
    cut = plan(like, reduction == "batch", parts, accesses, kl=kl, **tensors)
    partials = None
    if reduction not in ("", "none"):
        samples = like.shape[0] if reduction == "batch" else 1
        partials = like.new_empty(samples, cut.programs // max(samples, 1), dtype=dtype)
    _run(kernel, cut, like, reduction, free_bits, partials=partials, **arguments)
    if partials is None:
        return like.new_empty(0) if kl is None else kl
    # torch sums a dense row in a fixed order.
    total = partials[:, 0] if partials.shape[1] == 1 else partials.sum(1)
    return total if reduction == "batch" else total.view(())


def _backward(
    kernel: Any,
    like: Tensor,
    grad: Tensor | None,
    reduction: str,
    free_bits: float,
    tensors: dict[str, Tensor | None],
    parts: int,
    accesses: int,
    **arguments: Any,
) -> None:
    """Run a backward kernel; `grad` is that of the reduced KL."""
    each, summed = (grad, None) if reduction == "none" else (None, grad)
    cut = plan(like, reduction == "batch", parts, accesses, **tensors, grad_kl=each)
    stride = summed.stride(0) if summed is not None and reduction == "batch" else 0
    arguments.update(grad_sum=summed, grad_sum_stride=stride, per_sample=cut.per_sample)
    _run(kernel, cut, like, reduction, free_bits, **arguments)


def reparameterize(
    mean: Tensor, logvar: Tensor | None, noise: Tensor | None, seed: Tensor | None, clamp: str
) -> Tensor:
    return sample_kl(mean, logvar, noise, seed, 0.0, "", clamp)[0]


def reparameterize_backward(
    grad: Tensor,
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    return sample_kl_backward(grad, None, mean, logvar, noise, seed, 0.0, "", clamp, wanted)


def sample_kl(
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
) -> tuple[Tensor, Tensor]:
    view, logvar = layout.split(mean, logvar)
    z = layout.empty_output(view)
    tensors = {"z": z, "mean": view, "logvar": logvar, "noise": noise}
    parts, accesses = (1, 2) if seed is None else (4, 4)
    kl = _forward(_sample_forward, view, reduction, free_bits, tensors, parts, accesses, seed=seed, CLAMP=clamp)
    return z, kl


def sample_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    gradients, (d_mean, d_logvar) = layout.empty_gradients(mean, logvar, wanted)
    if not wanted:
        return gradients
    view, logvar = layout.split(mean, logvar)
    if grad_z is None or d_logvar is None:
        noise = seed = None  # noise enters in their product only
    tensors = {"d_mean": d_mean, "d_logvar": d_logvar, "mean": view, "logvar": logvar, "noise": noise, "grad_z": grad_z}
    parts, accesses = (1, 2) if seed is None else (4, 4)
    _backward(_sample_backward, view, grad_kl, reduction, free_bits, tensors, parts, accesses, seed=seed, CLAMP=clamp)
    return gradients


def sample_kl_double_backward(
    to_mean: Tensor,
    to_logvar: Tensor | None,
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    logvar: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients, (d_mean, d_logvar) = layout.empty_gradients(mean, logvar, wanted >> 2)
    view, logvar = layout.split(mean, logvar)
    to_mean, to_logvar = layout.split(to_mean, to_logvar)
    if grad_z is None:
        noise = seed = None
    d_grad_z = layout.empty_output(view) if wanted & 1 and grad_z is not None else None
    dtype = torch.float64 if view.dtype == torch.float64 else torch.float32
    each, summed = (grad_kl, None) if reduction == "none" else (None, grad_kl)
    d_each = layout.empty_output(view, dtype) if wanted & 2 and each is not None else None
    tensors = {"d_mean": d_mean, "d_logvar": d_logvar, "d_grad_z": d_grad_z, "d_grad_kl": d_each}
    tensors |= {"mean": view, "logvar": logvar, "noise": noise, "to_mean": to_mean, "to_logvar": to_logvar}
    tensors |= {"grad_z": grad_z, "grad_kl": each}
    parts, accesses = (1, 1) if seed is None else (4, 4)
    cut = plan(view, reduction == "batch", parts, accesses, **tensors)
    samples = view.shape[0] if reduction == "batch" else 1
    sizes = (samples, cut.programs // max(samples, 1))
    partials = view.new_empty(sizes, dtype=dtype) if wanted & 2 and summed is not None else None
    stride = summed.stride(0) if summed is not None and reduction == "batch" else 0
    _run(
        _sample_double_backward, cut, view, reduction, free_bits,
        grad_sum=summed, grad_sum_stride=stride, per_sample=cut.per_sample, partials=partials, seed=seed, CLAMP=clamp,
    )  # fmt: skip
    d_grad_kl = d_each if partials is None or summed is None else partials.sum(1).view(summed.shape)
    nothing = mean.new_empty(0)
    return nothing if d_grad_z is None else d_grad_z, nothing if d_grad_kl is None else d_grad_kl, *gradients


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor | None,
    other_mean: Tensor | None,
    other_logvar: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
) -> Tensor:
    view, logvar = layout.split(mean, logvar)
    if other_mean is not None:
        other_mean, other_logvar = layout.split(other_mean, other_logvar)
    tensors = {"mean": view, "logvar": logvar, "other_mean": other_mean, "other_logvar": other_logvar}
    accesses = 2 if other_mean is None else 1
    return _forward(_kl_forward, view, reduction, free_bits, tensors, 1, accesses, CLAMP=clamp)


def gaussian_kl_backward(
    grad: Tensor,
    mean: Tensor,
    logvar: Tensor | None,
    other_mean: Tensor | None,
    other_logvar: Tensor | None,
    free_bits: float,
    reduction: str,
    clamp: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients, (d_mean, d_logvar) = layout.empty_gradients(mean, logvar, wanted)
    view, logvar = layout.split(mean, logvar)
    if other_mean is None:
        gradients += (mean.new_empty(0), mean.new_empty(0))
        d_other_mean = d_other_logvar = None
    else:
        form = layout.memory_format_of(view)
        others, (d_other_mean, d_other_logvar) = layout.empty_gradients(other_mean, other_logvar, wanted >> 2, form)
        gradients += others
        other_mean, other_logvar = layout.split(other_mean, other_logvar)
    if wanted:
        tensors = {
            "d_mean": d_mean,
            "d_logvar": d_logvar,
            "d_other_mean": d_other_mean,
            "d_other_logvar": d_other_logvar,
            "mean": view,
            "logvar": logvar,
            "other_mean": other_mean,
            "other_logvar": other_logvar,
        }
        accesses = 2 if other_mean is None else 1
        _backward(_kl_backward, view, grad, reduction, free_bits, tensors, 1, accesses, CLAMP=clamp)
    return gradients


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(
    op: Any,
    dtype: torch.dtype,
    *,
    shape: tuple[int, ...] = (4096, 512),
    packed: bool = False,
    seeded: bool = False,
    other: bool = False,
    free_bits: float = 0.0,
    reduction: str = "batchmean",
    clamp: str = "hard",
) -> Any:
    """A call of `op` on meta tensors; of rank 4 in channels_last."""

    def make(*sizes: int, of: torch.dtype = dtype) -> Tensor:
        form = torch.channels_last if len(sizes) == 4 else torch.contiguous_format
        return torch.empty(sizes, dtype=of, device="meta", memory_format=form)

    def call() -> None:
        pair = (make(shape[0], 2 * shape[1], *shape[2:]), None) if packed else (make(*shape), make(*shape))
        noise = (None, make(of=torch.int64)) if seeded else (make(*shape), None)
        losses = {"none": shape, "batch": shape[:1]}.get(reduction, ())
        grad_kl = make(*losses, of=torch.float64 if dtype == torch.float64 else torch.float32)
        if op is sample_kl_double_backward:
            op(*pair, make(*shape), grad_kl, *pair, *noise, free_bits, reduction, clamp, 15)
            return
        backward = op in (reparameterize_backward, sample_kl_backward, gaussian_kl_backward)
        if op in (reparameterize, reparameterize_backward):
            grads: tuple[Tensor, ...] = (make(*shape),)
            rest: tuple[Any, ...] = (*noise, clamp)
        elif op in (sample_kl, sample_kl_backward):
            grads, rest = (make(*shape), grad_kl), (*noise, free_bits, reduction, clamp)
        else:
            grads, rest = (grad_kl,), (*(pair if other else (None, None)), free_bits, reduction, clamp)
        op(*grads, *pair, *rest, 15) if backward else op(*pair, *rest)

    return call


#: Between them they reach every branch of every kernel.
COMPILE_CASES = {
    "reparameterize, float16": _case(reparameterize, torch.float16),
    "reparameterize_backward, bfloat16": _case(reparameterize_backward, torch.bfloat16),
    "sample_kl, float32": _case(sample_kl, torch.float32),
    "sample_kl, float32, seeded": _case(sample_kl, torch.float32, seeded=True),
    "sample_kl, float32, odd, per sample": _case(sample_kl, torch.float32, shape=(33, 77), reduction="batch"),
    "sample_kl, bfloat16, seeded, packed channels_last": _case(
        sample_kl, torch.bfloat16, shape=(64, 8, 64, 64), packed=True, seeded=True
    ),
    "sample_kl, float64, seeded, soft": _case(sample_kl, torch.float64, seeded=True, clamp="soft", free_bits=0.1),
    "sample_kl_backward, float32": _case(sample_kl_backward, torch.float32),
    "sample_kl_backward, float32, seeded": _case(sample_kl_backward, torch.float32, seeded=True),
    "sample_kl_backward, bfloat16, seeded, packed, soft": _case(
        sample_kl_backward, torch.bfloat16, packed=True, seeded=True, clamp="soft", free_bits=0.1
    ),
    "sample_kl_backward, float64, soft": _case(sample_kl_backward, torch.float64, clamp="soft"),
    "sample_kl_double_backward, float32": _case(sample_kl_double_backward, torch.float32),
    "sample_kl_double_backward, bfloat16, seeded, packed channels_last, soft, per sample": _case(
        sample_kl_double_backward,
        torch.bfloat16,
        shape=(64, 8, 64, 64),
        packed=True,
        seeded=True,
        clamp="soft",
        reduction="batch",
    ),
    "sample_kl_double_backward, float64, free bits, per element": _case(
        sample_kl_double_backward, torch.float64, free_bits=0.1, reduction="none"
    ),
    "gaussian_kl, float32": _case(gaussian_kl, torch.float32),
    "gaussian_kl, float32, 2^32 elements": _case(gaussian_kl, torch.float32, shape=(2**23, 512)),
    "gaussian_kl, bfloat16, other, soft, per element": _case(
        gaussian_kl, torch.bfloat16, other=True, clamp="soft", free_bits=0.1, reduction="none"
    ),
    "gaussian_kl_backward, float32": _case(gaussian_kl_backward, torch.float32),
    "gaussian_kl_backward, bfloat16, other, soft, per sample": _case(
        gaussian_kl_backward, torch.bfloat16, other=True, clamp="soft", free_bits=0.1, reduction="batch"
    ),
    "gaussian_kl_backward, float64, other, soft, per element": _case(
        gaussian_kl_backward, torch.float64, other=True, clamp="soft", free_bits=0.1, reduction="none"
    ),
}
