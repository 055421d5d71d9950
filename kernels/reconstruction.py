"""Reconstruction losses on a GPU: likelihoods of a target under a decoder's output, and their gradients.

The functions have the names, arguments and results of the dispatcher's ops. For the maths see
genmod/reference/reconstruction.py; for how a kernel finds its elements, kernels/rows.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.elementary import exp_parts, log1p_unit, log_positive
from genmod.kernels.launch import launch
from genmod.kernels.rows import SIZES, elements, load, place, plan, store

_TENSORS = (
    "values", "grad_each", "output", "target", "log_scale", "weight", "d_output", "d_log_scale", "by_output",
    "by_log_scale", "d_grad_each",
)  # fmt: skip
_SIZES = [*SIZES, "per_sample", "grad_sum_stride", *(f"{name}_gap" for name in _TENSORS)]


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    values, values_gap, output, output_gap, target, target_gap, log_scale, log_scale_gap, weight, weight_gap,
    one_log_scale, partials,
    length, chunks, cols,
    fixed: tl.float64, low: tl.float64, half: tl.float64, log_width: tl.float64, scale: tl.float64,
    KIND: tl.constexpr, BOUNDED: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss per element (`values`), or the scaled sum of it (`partials`)."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
    x = load(output, index + row * output_gap, inside)
    t = load(target, index + row * target_gap, inside).to(x.dtype)
    if log_scale is not None:
        s = load(log_scale, index + row * log_scale_gap, inside).to(x.dtype)
    else:
        s = _one_log_scale(one_log_scale, fixed, x)
    s, _ = _raised(s, low, BOUNDED)
    value = _value(x, t, s, half, log_width, KIND)
    if weight is not None:
        value = _weighed(value, load(weight, index + row * weight_gap, inside).to(x.dtype))
    if values is not None:
        store(values, index + row * values_gap, value, inside)
    else:
        _store_sum(partials, tl.where(inside, value, 0.0), scale)


@triton.jit(do_not_specialize=_SIZES)
def _backward(
    d_output, d_output_gap, d_log_scale, d_log_scale_gap, grad_each, grad_each_gap,
    output, output_gap, target, target_gap, log_scale, log_scale_gap, weight, weight_gap,
    one_log_scale, grad_sum, grad_sum_stride, partials,
    length, chunks, per_sample, cols,
    fixed: tl.float64, low: tl.float64, half: tl.float64, log_width: tl.float64, scale: tl.float64,
    KIND: tl.constexpr, BOUNDED: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of output and log-scale from that of the loss (`grad_each` element's, or of the sum, `grad_sum`); that
    of a single log-scale is left in `partials`."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
    x = load(output, index + row * output_gap, inside)
    t = load(target, index + row * target_gap, inside).to(x.dtype)
    if log_scale is not None:
        s = load(log_scale, index + row * log_scale_gap, inside).to(x.dtype)
    else:
        s = _one_log_scale(one_log_scale, fixed, x)
    if grad_each is not None:
        g = load(grad_each, index + row * grad_each_gap, inside)
    else:
        value = tl.load(grad_sum + segment // per_sample * grad_sum_stride)
        g = value * tl.full([1], scale, value.dtype)
    s, slope = _raised(s, low, BOUNDED)
    by_output, by_log_scale = _slopes(x, t, s, half, KIND)
    by_output, by_log_scale = g * by_output, g * slope * by_log_scale
    if weight is not None:
        w = load(weight, index + row * weight_gap, inside).to(x.dtype)
        by_output, by_log_scale = _weighed(by_output, w), _weighed(by_log_scale, w)
    if d_output is not None:
        store(d_output, index + row * d_output_gap, by_output, inside)
    if d_log_scale is not None:
        store(d_log_scale, index + row * d_log_scale_gap, by_log_scale, inside)
    if partials is not None:
        _store_sum(partials, tl.where(inside, by_log_scale, 0.0), 1.0)


@triton.jit(do_not_specialize=_SIZES)
def _double_backward(
    d_output, d_output_gap, d_log_scale, d_log_scale_gap, d_grad_each, d_grad_each_gap,
    by_output, by_output_gap, by_log_scale, by_log_scale_gap, grad_each, grad_each_gap,
    output, output_gap, target, target_gap, log_scale, log_scale_gap, weight, weight_gap,
    one_log_scale, by_one_log_scale, grad_sum, grad_sum_stride, partials, grad_partials,
    length, chunks, per_sample, cols,
    fixed: tl.float64, low: tl.float64, half: tl.float64, log_width: tl.float64, scale: tl.float64,
    KIND: tl.constexpr, BOUNDED: tl.constexpr,
    PARTS: tl.constexpr, SHORT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What arrives at the gradients that `_backward` writes (`by_output`, and `by_log_scale` or `by_one_log_scale`)
    goes back to output and log-scale, and to the gradient that had come in: per element, or summed in
    `grad_partials`."""
    segment, begin, end, start = place(length, chunks, UNIT, WIDE, BLOCK)
    index, inside, row = elements(segment, begin, end, start, cols, 0, PARTS, SHORT, UNIT, BLOCK)
    x = load(output, index + row * output_gap, inside)
    t = load(target, index + row * target_gap, inside).to(x.dtype)
    if log_scale is not None:
        s = load(log_scale, index + row * log_scale_gap, inside).to(x.dtype)
    else:
        s = _one_log_scale(one_log_scale, fixed, x)
    u, v = tl.zeros_like(x), tl.zeros_like(x)
    if by_output is not None:
        u = load(by_output, index + row * by_output_gap, inside).to(x.dtype)
    if by_log_scale is not None:
        v = load(by_log_scale, index + row * by_log_scale_gap, inside).to(x.dtype)
    elif by_one_log_scale is not None:
        v += tl.load(by_one_log_scale).to(x.dtype)
    if grad_each is not None:
        g = load(grad_each, index + row * grad_each_gap, inside)
    else:
        value = tl.load(grad_sum + segment // per_sample * grad_sum_stride)
        g = value * tl.full([1], scale, value.dtype)
    s, slope = _raised(s, low, BOUNDED)
    v *= slope
    by_x, by_s = _slopes(x, t, s, half, KIND)
    twice, mixed, by_s_twice = _curvatures(x, t, s, half, KIND)
    to_output, to_log_scale = g * (u * twice + v * mixed), g * slope * (u * mixed + v * by_s_twice)
    to_grad = u * by_x + v * by_s
    if weight is not None:
        w = load(weight, index + row * weight_gap, inside).to(x.dtype)
        to_output, to_log_scale, to_grad = _weighed(to_output, w), _weighed(to_log_scale, w), _weighed(to_grad, w)
    if d_output is not None:
        store(d_output, index + row * d_output_gap, to_output, inside)
    if d_log_scale is not None:
        store(d_log_scale, index + row * d_log_scale_gap, to_log_scale, inside)
    if d_grad_each is not None:
        store(d_grad_each, index + row * d_grad_each_gap, to_grad, inside)
    if partials is not None:
        _store_sum(partials, tl.where(inside, to_log_scale, 0.0), 1.0)
    if grad_partials is not None:
        _store_sum(grad_partials, tl.where(inside, to_grad, 0.0), scale)


# --- The maths, once. Comparisons, never minimum and maximum: those would lose a NaN.


@triton.jit
def _one_log_scale(one_log_scale, fixed, like):
    if one_log_scale is not None:
        s = tl.load(one_log_scale).to(like.dtype) + tl.zeros_like(like)
    else:
        s = tl.full([1], fixed, like.dtype) + tl.zeros_like(like)
    return s


@triton.jit
def _raised(s, low, BOUNDED: tl.constexpr):
    """The log-scale, not below its bound, and the derivative of that."""
    slope = tl.full([1], 1.0, s.dtype)
    if BOUNDED:
        bound = tl.full([1], low, s.dtype)
        slope = tl.where(s < bound, 0.0, 1.0).to(s.dtype)
        s = tl.where(s < bound, bound, s)
    return s, slope


@triton.jit
def _weighed(value, weight):
    """What has no weight counts for nothing, whatever it is."""
    return tl.where(weight == 0.0, 0.0, value * weight)


@triton.jit
def _sign(x):
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))


@triton.jit
def _softplus(x):
    """softplus and its derivative."""
    e, _, _ = exp_parts(-tl.abs(x))
    return tl.where(x < 0.0, 0.0, x) + log1p_unit(e), tl.where(x > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _bin(difference, s, half):
    """Where the bin's ends lie, its width, all in units of the scale, and the inverse of that."""
    inverse, _, _ = exp_parts(-s)
    h = tl.full([1], half, s.dtype)
    delta = 2.0 * h * inverse
    # Both ways so far that the results no longer depend on it.
    delta = tl.where(delta < 1e-30, 1e-30, delta)
    delta = tl.where(delta > 1e30, 1e30, delta)
    return (difference + h) * inverse, (difference - h) * inverse, delta, inverse


@triton.jit
def _value(x, t, s, half, log_width, KIND: tl.constexpr):
    d = t - x
    if KIND == "bernoulli":
        # softplus(x) - x t as |x| times the target of the less likely outcome, so that nothing cancels.
        e, _, _ = exp_parts(-tl.abs(x))
        value = tl.abs(x) * tl.where(x > 0.0, 1.0 - t, t) + log1p_unit(e)
    elif KIND == "mse":
        value = d * d
    elif KIND == "l1":
        value = tl.abs(d)
    elif KIND == "gaussian":
        precision, _, _ = exp_parts(-s)
        value = 0.5 * (d * d * precision + (tl.full([1], 1.8378770664093453, s.dtype) + s))
    elif KIND == "laplace":
        precision, _, _ = exp_parts(-s)
        value = tl.abs(d) * precision + (tl.full([1], 0.6931471805599453, s.dtype) + s)
    else:
        h = tl.full([1], half, s.dtype)
        p, m, delta, _ = _bin(d, s, half)
        below, _ = _softplus(-p)
        above, _ = _softplus(m)
        _, expm1, _ = exp_parts(-delta)
        # ln(1 - e^-delta): a small delta's logarithm is known, and never underflows.
        small = delta < 1.0
        width = log_positive(tl.where(small, -expm1 / delta, -expm1))
        width += tl.where(small, tl.full([1], log_width, s.dtype) - s, 0.0)
        first, last = t < h - 1.0, t > 1.0 - h
        value = tl.where(last, 0.0, below) + tl.where(first, 0.0, above) - tl.where(first | last, 0.0, width)
    return value


@triton.jit
def _slopes(x, t, s, half, KIND: tl.constexpr):
    """Derivatives by output and log-scale."""
    d = t - x
    by_log_scale = tl.zeros_like(x)
    if KIND == "bernoulli":
        e, _, _ = exp_parts(-tl.abs(x))
        tail = e / (1.0 + e)  # sigmoid(-|x|)
        by_output = tl.where(x > 0.0, (1.0 - t) - tail, tail - t)
    elif KIND == "mse":
        by_output = -2.0 * d
    elif KIND == "l1":
        by_output = -_sign(d)
    elif KIND == "gaussian":
        precision, _, _ = exp_parts(-s)
        by_output = -d * precision
        by_log_scale = 0.5 + 0.5 * d * by_output
    elif KIND == "laplace":
        precision, _, _ = exp_parts(-s)
        by_output = -_sign(d) * precision
        by_log_scale = 1.0 + d * by_output
    else:
        h = tl.full([1], half, s.dtype)
        p, m, delta, inverse = _bin(d, s, half)
        _, below = _softplus(-p)
        _, above = _softplus(m)
        decay, expm1, _ = exp_parts(-delta)
        first, last = t < h - 1.0, t > 1.0 - h
        below, above = tl.where(last, 0.0, below), tl.where(first, 0.0, above)
        by_output = (below - above) * inverse
        by_log_scale = p * below - m * above + tl.where(first | last, 0.0, delta * decay / -expm1)
    return by_output, by_log_scale


@triton.jit
def _curvatures(x, t, s, half, KIND: tl.constexpr):
    """The derivatives of those: by output twice, by output and log-scale, and by log-scale twice."""
    d = t - x
    twice, mixed, by_log_scale_twice = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    if KIND == "bernoulli":
        twice = _sigmoid_slope(x)
    elif KIND == "mse":
        twice += 2.0
    elif KIND == "gaussian":
        twice, _, _ = exp_parts(-s)
        mixed = d * twice
        by_log_scale_twice = 0.5 * d * mixed
    elif KIND == "laplace":
        precision, _, _ = exp_parts(-s)
        mixed = _sign(d) * precision
        by_log_scale_twice = d * mixed
    elif KIND == "discretized_logistic":
        h = tl.full([1], half, s.dtype)
        p, m, delta, inverse = _bin(d, s, half)
        _, below = _softplus(-p)
        _, above = _softplus(m)
        decay, expm1, _ = exp_parts(-delta)
        first, last = t < h - 1.0, t > 1.0 - h
        below, above = tl.where(last, 0.0, below), tl.where(first, 0.0, above)
        at_p, at_m = tl.where(last, 0.0, _sigmoid_slope(p)), tl.where(first, 0.0, _sigmoid_slope(m))
        growth = tl.where(first | last, 0.0, delta * decay / -expm1)
        # Far out a curvature is zero before its factor is infinite, so that comes last.
        twice = (at_p + at_m) * inverse * inverse
        mixed = (p * at_p + m * at_m - (below - above)) * inverse
        by_log_scale_twice = p * (p * at_p - below) + m * (m * at_m + above) + growth * (growth + (delta - 1.0))
    return twice, mixed, by_log_scale_twice


@triton.jit
def _sigmoid_slope(x):
    """sigmoid(x) sigmoid(-x)."""
    e, _, _ = exp_parts(-tl.abs(x))
    return e / (1.0 + e) / (1.0 + e)


@triton.jit
def _store_sum(pointer, total, scale):
    tl.store(pointer + tl.program_id(0), tl.sum(total, axis=0) * scale)


# --- Launchers.

_ACCESSES = 2  # 16-byte accesses in a row that a lane makes to a tensor


def _inputs(
    output: Tensor, target: Tensor, log_scale: Tensor | None, weight: Tensor | None, packed: bool
) -> tuple[Tensor, dict[str, Tensor | None], Tensor | None]:
    """The mean's view, the tensors read element by element, and the log-scale that is one number, if it is."""
    view, spread = layout.split(output, None) if packed else (output, log_scale)
    one = None
    if spread is not None and spread.dim() == 0:
        one, spread = spread, None
    if weight is not None and weight.dtype == torch.bool:
        weight = weight.view(torch.uint8)
    return view, {"output": view, "target": target, "log_scale": spread, "weight": weight}, one


def _options(
    kind: str, like: Tensor, fixed: float, min_log_scale: float | None, bins: int, reduction: str
) -> dict[str, Any]:
    divisor = {"batchmean": like.shape[0], "mean": like.numel()}.get(reduction, 1)
    half = 1.0 / (bins - 1) if bins > 1 else 1.0
    return {
        "KIND": kind,
        "BOUNDED": min_log_scale is not None,
        "fixed": float(fixed),
        "low": float(min_log_scale or 0.0),
        "half": half,
        "log_width": math.log(2 * half),
        "scale": 1.0 / max(divisor, 1),
    }


def _accumulate(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def reconstruction(
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
) -> Tensor:
    like, tensors, one = _inputs(output, target, log_scale, weight, packed)
    values = layout.empty_output(like, _accumulate(like)) if reduction == "none" else None
    cut = plan(like, reduction == "batch", 1, _ACCESSES, values=values, **tensors)
    partials = None
    if values is None:
        samples = like.shape[0] if reduction == "batch" else 1
        partials = like.new_empty(samples, cut.programs // max(samples, 1), dtype=_accumulate(like))
    arguments = cut.arguments | _options(kind, like, fixed, min_log_scale, bins, reduction)
    launch(_forward, cut.programs, cut.num_warps, like, {**arguments, "one_log_scale": one, "partials": partials})
    if partials is None:
        return values
    # torch sums a dense row in a fixed order.
    total = partials[:, 0] if partials.shape[1] == 1 else partials.sum(1)
    return total if reduction == "batch" else total.view(())


def reconstruction_backward(
    grad: Tensor,
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    (first, second), (d_output, d_log_scale) = layout.empty_loss_gradients(output, log_scale, packed, wanted)
    if not wanted:
        return first, second
    like, tensors, one = _inputs(output, target, log_scale, weight, packed)
    each, summed = (grad, None) if reduction == "none" else (None, grad)
    written = {"d_output": d_output, "d_log_scale": d_log_scale}
    cut = plan(like, reduction == "batch", 1, _ACCESSES, **written, **tensors, grad_each=each)
    of_one = one is not None and wanted & 2
    partials = like.new_empty(cut.programs, dtype=_accumulate(like)) if of_one else None
    arguments = cut.arguments | _options(kind, like, fixed, min_log_scale, bins, reduction)
    arguments |= {"one_log_scale": one, "partials": partials, "per_sample": cut.per_sample, "grad_sum": summed}
    arguments["grad_sum_stride"] = summed.stride(0) if summed is not None and reduction == "batch" else 0
    launch(_backward, cut.programs, cut.num_warps, like, arguments)
    if partials is not None:
        second = partials.sum().to(log_scale.dtype)
    return first, second


def reconstruction_double_backward(
    grad_output: Tensor | None,
    grad_log_scale: Tensor | None,
    grad: Tensor,
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    made, written = layout.empty_loss_gradients(output, log_scale, packed, wanted >> 1)
    like, tensors, one = _inputs(output, target, log_scale, weight, packed)
    arriving = layout.split(grad_output, None) if packed and grad_output is not None else (grad_output, grad_log_scale)
    by_output, by_log_scale = arriving if one is None else (grad_output, None)
    each, summed = (grad, None) if reduction == "none" else (None, grad)
    d_grad_each = layout.empty_output(like, _accumulate(like)) if wanted & 1 and summed is None else None
    cut = plan(
        like, reduction == "batch", 1, 1, d_output=written[0], d_log_scale=written[1], d_grad_each=d_grad_each,
        **tensors, by_output=by_output, by_log_scale=by_log_scale, grad_each=each,
    )  # fmt: skip
    samples = like.shape[0] if reduction == "batch" else 1

    def partial_sums(needed: bool) -> Tensor | None:
        sizes = (samples, cut.programs // max(samples, 1))
        return like.new_empty(sizes, dtype=_accumulate(like)) if needed else None

    of_scale = partial_sums(one is not None and bool(wanted & 4))
    of_grad = partial_sums(summed is not None and bool(wanted & 1))
    arguments = cut.arguments | _options(kind, like, fixed, min_log_scale, bins, reduction)
    arguments |= {
        "one_log_scale": one,
        "by_one_log_scale": None if one is None else grad_log_scale,
        "partials": of_scale,
        "grad_partials": of_grad,
        "per_sample": cut.per_sample,
        "grad_sum": summed,
        "grad_sum_stride": summed.stride(0) if summed is not None and reduction == "batch" else 0,
    }
    launch(_double_backward, cut.programs, cut.num_warps, like, arguments)
    d_log_scale = made[1] if of_scale is None else of_scale.sum().to(log_scale.dtype)
    if d_grad_each is None and of_grad is None:
        return grad.new_empty(0), made[0], d_log_scale
    d_grad = d_grad_each if of_grad is None else of_grad.sum(1).view(grad.shape)
    return d_grad, made[0], d_log_scale


def reconstruction_with_gradient(
    output: Tensor,
    target: Tensor,
    log_scale: Tensor | None,
    weight: Tensor | None,
    kind: str,
    packed: bool,
    fixed: float,
    min_log_scale: float | None,
    bins: int,
    reduction: str,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two launches: nothing on a GPU asks for both at once, since what is kept has to be read again to be scaled."""
    inputs = (output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins, reduction)
    loss = reconstruction(*inputs)
    return loss, *reconstruction_backward(torch.ones_like(loss), *inputs, wanted)


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(
    op: Any,
    kind: str,
    dtype: torch.dtype = torch.float32,
    *,
    shape: tuple[int, ...] = (256, 3, 64, 64),
    scale: str = "",
    low: float | None = None,
    weight: torch.dtype | None = None,
    reduction: str = "batchmean",
    wanted: int = 3,
) -> Any:
    """A call of `op` on meta tensors; `scale` is "packed" (in channels_last), "each", "one" or "" for a fixed one."""

    def make(*sizes: int, of: torch.dtype = dtype, form: torch.memory_format = torch.contiguous_format) -> Tensor:
        return torch.empty(sizes, dtype=of, device="meta", memory_format=form)

    def call() -> None:
        form = torch.channels_last if scale == "packed" else torch.contiguous_format
        output = make(shape[0], shape[1] * (2 if scale == "packed" else 1), *shape[2:], form=form)
        log_scale = {"each": make(*shape), "one": make()}.get(scale)
        factor = None if weight is None else make(*shape, of=weight, form=form)
        inputs = (output, make(*shape, form=form), log_scale, factor, kind, scale == "packed", 0.0, low, 256, reduction)
        if op is reconstruction:
            op(*inputs)
        elif op is reconstruction_with_gradient:
            op(*inputs, wanted)
        else:
            losses = {"none": shape, "batch": shape[:1]}.get(reduction, ())
            lies = form if reduction == "none" else torch.contiguous_format
            grad = make(*losses, of=_accumulate(output), form=lies)
            arriving = (output, log_scale) if op is reconstruction_double_backward else ()
            op(*arriving, grad, *inputs, wanted)

    return call


_BF16, _F64 = torch.bfloat16, torch.float64

#: Between them they reach every branch of every kernel.
COMPILE_CASES = {
    "reconstruction, bernoulli": _case(reconstruction, "bernoulli"),
    "reconstruction, bernoulli, bfloat16, masked, per sample": _case(
        reconstruction, "bernoulli", _BF16, weight=torch.bool, reduction="batch"
    ),
    "reconstruction, bernoulli, 2^32 elements": _case(reconstruction, "bernoulli", shape=(2**21, 2048)),
    "reconstruction, gaussian, packed": _case(reconstruction, "gaussian", scale="packed", low=-30.0),
    "reconstruction, gaussian, one log-scale, weighed": _case(
        reconstruction, "gaussian", scale="one", low=-30.0, weight=torch.float32
    ),
    "reconstruction, laplace, fixed, per element": _case(reconstruction, "laplace", reduction="none"),
    "reconstruction, discretized logistic, packed": _case(
        reconstruction, "discretized_logistic", scale="packed", low=-7.0
    ),
    "reconstruction, discretized logistic, float64": _case(reconstruction, "discretized_logistic", _F64, scale="each"),
    "reconstruction, mse, odd": _case(reconstruction, "mse", shape=(33, 77)),
    "reconstruction, l1, bfloat16": _case(reconstruction, "l1", _BF16),
    "reconstruction_backward, bernoulli": _case(reconstruction_backward, "bernoulli"),
    "reconstruction_backward, bernoulli, bfloat16, masked, per sample": _case(
        reconstruction_backward, "bernoulli", _BF16, weight=torch.bool, reduction="batch"
    ),
    "reconstruction_backward, gaussian, packed": _case(reconstruction_backward, "gaussian", scale="packed", low=-30.0),
    "reconstruction_backward, gaussian, one log-scale": _case(
        reconstruction_backward, "gaussian", scale="one", low=-30.0
    ),
    "reconstruction_backward, laplace, per element": _case(
        reconstruction_backward, "laplace", scale="each", reduction="none"
    ),
    "reconstruction_backward, discretized logistic, packed": _case(
        reconstruction_backward, "discretized_logistic", scale="packed", low=-7.0
    ),
    "reconstruction_backward, discretized logistic, float64": _case(
        reconstruction_backward, "discretized_logistic", _F64, scale="each"
    ),
    "reconstruction_backward, mse, odd": _case(reconstruction_backward, "mse", shape=(33, 77)),
    "reconstruction_backward, l1, bfloat16": _case(reconstruction_backward, "l1", _BF16),
    "reconstruction_double_backward, bernoulli, bfloat16, masked, per sample": _case(
        reconstruction_double_backward, "bernoulli", _BF16, weight=torch.bool, reduction="batch", wanted=7
    ),
    "reconstruction_double_backward, gaussian, packed": _case(
        reconstruction_double_backward, "gaussian", scale="packed", low=-30.0, wanted=2
    ),
    "reconstruction_double_backward, gaussian, one log-scale": _case(
        reconstruction_double_backward, "gaussian", scale="one", low=-30.0, wanted=7
    ),
    "reconstruction_double_backward, laplace, per element": _case(
        reconstruction_double_backward, "laplace", scale="each", reduction="none", wanted=7
    ),
    "reconstruction_double_backward, discretized logistic, packed": _case(
        reconstruction_double_backward, "discretized_logistic", scale="packed", low=-7.0, wanted=2
    ),
    "reconstruction_double_backward, discretized logistic, float64": _case(
        reconstruction_double_backward, "discretized_logistic", _F64, scale="each", wanted=7
    ),
    "reconstruction_double_backward, mse, odd": _case(reconstruction_double_backward, "mse", shape=(33, 77), wanted=2),
    "reconstruction_double_backward, l1, bfloat16": _case(reconstruction_double_backward, "l1", _BF16, wanted=3),
    "reconstruction_with_gradient, bernoulli": _case(reconstruction_with_gradient, "bernoulli"),
}
