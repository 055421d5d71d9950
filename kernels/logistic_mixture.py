"""PixelCNN++'s likelihood on a GPU, forward and backward: a program has a block of pixels and all components at once.

The functions have the names, arguments and results of the dispatcher's ops. For the maths see
genmod/reference/logistic_mixture.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genmod import layout
from genmod.kernels.elementary import exp_parts, log_positive
from genmod.kernels.launch import launch


@triton.jit
def _forward(
    nll, partials, output, target, weight,
    blocks, pixels, components, scale: tl.float64,
    output_batch, output_channel, output_pixel, target_batch, target_channel, target_pixel,
    CHANNELS: tl.constexpr, HALF: tl.constexpr, LOG_BIN: tl.constexpr, MIN_LOG_SCALE: tl.constexpr,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, COMPONENTS: tl.constexpr,
):  # fmt: skip
    """The loss of each pixel (`nll`), or the scaled sum of the block's (`partials`)."""
    sample, pixel, inside, component, real = _place(blocks, pixels, components, WIDE, PIXELS, COMPONENTS)
    output += sample * output_batch
    target += sample * target_batch
    at = pixel[:, None] * output_pixel
    above, prior = _logits(output + at, output_channel, component, real, inside)
    joint, mass, spread = above, 1.0, 1.0
    red, green = 0.0, 0.0
    for channel in tl.static_range(CHANNELS):
        x = _load(target + (channel * target_channel + pixel * target_pixel), inside)[:, None]
        mean, log_scale, _, _ = _parameters(
            output + at, output_channel, components, component, real & inside[:, None], channel, red, green, CHANNELS
        )
        linear, more, wider, _, _ = _bin(x, mean, log_scale, HALF, LOG_BIN, MIN_LOG_SCALE)
        joint += linear
        mass *= more
        spread *= wider
        if channel == 0:
            red = x
        else:
            green = x
    joint += _log(mass / spread)
    peak = tl.max(joint, axis=1)
    # Not their difference where both are infinite: no component can make the pixel.
    total = tl.sum(tl.where(joint == peak[:, None], 1.0, tl.exp(joint - peak[:, None])), axis=1)
    value = _log(tl.sum(prior, axis=1) / total) - peak
    if weight is not None:
        w = _load(weight + (sample * pixels + pixel), inside)
        value = tl.where(w == 0.0, 0.0, value * w)
    if nll is not None:
        tl.store(nll + (sample * pixels + pixel), value, mask=inside)
    else:
        total = tl.sum(tl.where(inside, value, 0.0), axis=0)
        tl.store(partials + tl.program_id(0), total * scale)


@triton.jit
def _backward(
    d_output, grad, output, target, weight,
    blocks, pixels, components, scale: tl.float64, grad_batch, grad_pixel,
    d_output_batch, d_output_channel, d_output_pixel,
    output_batch, output_channel, output_pixel, target_batch, target_channel, target_pixel,
    CHANNELS: tl.constexpr, HALF: tl.constexpr, LOG_BIN: tl.constexpr, MIN_LOG_SCALE: tl.constexpr,
    WIDE: tl.constexpr, PIXELS: tl.constexpr, COMPONENTS: tl.constexpr,
):  # fmt: skip
    """The gradient of `output` from that of each pixel's loss, sample's loss or the whole loss."""
    sample, pixel, inside, component, real = _place(blocks, pixels, components, WIDE, PIXELS, COMPONENTS)
    output += sample * output_batch
    target += sample * target_batch
    here = real & inside[:, None]
    at = pixel[:, None] * output_pixel
    above, prior = _logits(output + at, output_channel, component, real, inside)
    red = _load(target + pixel * target_pixel, inside)[:, None]
    mean, log_scale, _, _ = _parameters(output + at, output_channel, components, component, here, 0, red, red, CHANNELS)
    joint, mass, spread, by_mean_0, by_scale_0 = _bin(red, mean, log_scale, HALF, LOG_BIN, MIN_LOG_SCALE)
    if CHANNELS == 3:
        green = _load(target + (target_channel + pixel * target_pixel), inside)[:, None]
        mean, log_scale, slope_0, _ = _parameters(
            output + at, output_channel, components, component, here, 1, red, green, CHANNELS
        )
        linear, more, wider, by_mean_1, by_scale_1 = _bin(green, mean, log_scale, HALF, LOG_BIN, MIN_LOG_SCALE)
        joint, mass, spread = joint + linear, mass * more, spread * wider
        blue = _load(target + (2 * target_channel + pixel * target_pixel), inside)[:, None]
        mean, log_scale, slope_1, slope_2 = _parameters(
            output + at, output_channel, components, component, here, 2, red, green, CHANNELS
        )
        linear, more, wider, by_mean_2, by_scale_2 = _bin(blue, mean, log_scale, HALF, LOG_BIN, MIN_LOG_SCALE)
        joint, mass, spread = joint + linear, mass * more, spread * wider
    joint += above + _log(mass / spread)
    posterior = tl.exp(joint - tl.max(joint, axis=1)[:, None])
    posterior = posterior / tl.sum(posterior, axis=1)[:, None]
    g = _load(grad + (sample * grad_batch + pixel * grad_pixel), inside)
    g *= tl.full([1], scale, g.dtype)
    if weight is not None:
        g *= _load(weight + (sample * pixels + pixel), inside)
    g = g[:, None]
    nothing = g == 0.0  # whatever the slopes are there
    factor = -g * posterior
    rows = d_output + sample * d_output_batch + pixel[:, None] * d_output_pixel
    step = d_output_channel
    value = g * (prior / tl.sum(prior, axis=1)[:, None] - posterior)
    _store(rows + component * step, value, nothing, here)
    if CHANNELS == 3:
        first, second, third = components, 4 * components, 7 * components
        _store(rows + (first + 2 * components + component) * step, factor * (by_mean_1 * slope_0), nothing, here)
        _store(rows + (second + component) * step, factor * by_mean_1, nothing, here)
        _store(rows + (second + components + component) * step, factor * by_scale_1, nothing, here)
        _store(rows + (second + 2 * components + component) * step, factor * (by_mean_2 * slope_1), nothing, here)
        _store(rows + (third + component) * step, factor * by_mean_2, nothing, here)
        _store(rows + (third + components + component) * step, factor * by_scale_2, nothing, here)
        _store(rows + (third + 2 * components + component) * step, factor * (by_mean_2 * slope_2), nothing, here)
    _store(rows + (components + component) * step, factor * by_mean_0, nothing, here)
    _store(rows + (2 * components + component) * step, factor * by_scale_0, nothing, here)


# --- Where things are.


@triton.jit
def _place(blocks, pixels, components, WIDE: tl.constexpr, PIXELS: tl.constexpr, COMPONENTS: tl.constexpr):
    """This program's sample, its pixels and which of them exist, its components (a row) and which of them exist."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    pixel = program % blocks * PIXELS + tl.arange(0, PIXELS)
    component = tl.arange(0, COMPONENTS)[None, :]
    inside, real = pixel < pixels, component < components
    if WIDE:
        pixel, component = pixel.to(tl.int64), component.to(tl.int64)
    return sample, pixel, inside, component, real


@triton.jit
def _load(pointer, mask):
    """Values in float32, or float64 if that is what the memory holds."""
    value = tl.load(pointer, mask=mask, other=0.0)
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    return value


@triton.jit
def _store(pointer, value, nothing, mask):
    tl.store(pointer, tl.where(nothing, 0.0, value).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _logits(pixels, step, component, real, inside):
    """Distances of the mixture logits from the largest of their pixel, and their exponentials."""
    logit = _load(pixels + component * step, real & inside[:, None])
    logit = tl.where(real, logit, float("-inf"))
    above = logit - tl.max(logit, axis=1)[:, None]
    return above, tl.exp(above)


@triton.jit
def _parameters(pixels, step, components, component, mask, channel: tl.constexpr, red, green, CHANNELS: tl.constexpr):
    """Mean, shifted by the channels before, and log-scale of a channel; and the slopes of the shift by the two
    coefficients that it is made of."""
    first = components * (1 + (3 if CHANNELS == 3 else 2) * channel) + component
    mean = _load(pixels + first * step, mask)
    log_scale = _load(pixels + (first + components) * step, mask)
    slope, other_slope = 0.0, 0.0
    if channel == 1:
        c, slope = _tanh(_load(pixels + (3 * components + component) * step, mask))
        mean, slope = mean + c * red, slope * red
    elif channel == 2:
        c, slope = _tanh(_load(pixels + (6 * components + component) * step, mask))
        d, other_slope = _tanh(_load(pixels + (9 * components + component) * step, mask))
        mean, slope, other_slope = mean + c * red + d * green, slope * red, other_slope * green
    return mean, log_scale, slope, other_slope


# --- The maths, once.


@triton.jit
def _log(x):
    """ln x; log_positive reads a NaN's bits as a number."""
    return tl.where(x != x, x, log_positive(x))


@triton.jit
def _tanh(x):
    """tanh x and its derivative, which do not cancel (Cephes' tanhf in single precision): a mean that is off by an ulp
    shows in the gradient, times the square of the inverse scale."""
    e, expm1, _ = exp_parts(-2.0 * tl.abs(x))
    r = 1.0 / (1.0 + e)
    if x.dtype == tl.float64:
        t = -expm1 * r
    else:
        z = x * x
        p = -5.70498872745e-3 * z + 2.06390887954e-2
        p = p * z - 5.37397155531e-2
        p = p * z + 1.33314422036e-1
        p = p * z - 3.33332819422e-1
        y = tl.abs(x)
        t = tl.where(y < 0.625, p * z * y + y, 1.0 - 2.0 * e * r)
    return tl.where(x < 0.0, -t, t), 4.0 * e * r * r


@triton.jit
def _bin(x, mean, raw_log_scale, HALF: tl.constexpr, LOG_BIN: tl.constexpr, MIN_LOG_SCALE: tl.constexpr):
    """ln p = linear + ln(mass / spread) of the bin around x, and the slopes of ln p by mean and log-scale."""
    bounded = raw_log_scale < MIN_LOG_SCALE
    log_scale = tl.where(bounded, MIN_LOG_SCALE, raw_log_scale)
    inverse, _, _ = exp_parts(-log_scale)
    a, b = inverse * (x - mean + HALF), inverse * (x - mean - HALF)
    lowest, highest = x < HALF - 1.0, x > 1.0 - HALF
    outer = lowest | highest
    ea, eb = tl.where(highest, 0.0, tl.exp(-tl.abs(a))), tl.where(lowest, 0.0, tl.exp(-tl.abs(b)))
    width = 2.0 * HALF * inverse
    # So narrow that (1 - e^-w) / w is 1 to rounding; the width itself may have underflowed.
    if x.dtype == tl.float64:
        narrow = width < 1e-30
        lost = LOG_BIN - log_scale + 69.07755278982137
        width = tl.where(narrow, 1e-30, width)
    else:
        narrow = width < 1e-9
        lost = LOG_BIN - log_scale + 20.72326583694641
        width = tl.where(narrow, 1e-9, width)
    decay, expm1, _ = exp_parts(-width)
    mass = tl.where(outer, 1.0, -expm1)
    one_a, one_b = 1.0 + ea, 1.0 + eb
    linear = tl.where(highest | (a > 0.0), 0.0, a) - tl.where(lowest | (b < 0.0), 0.0, b)
    linear += tl.where(narrow, tl.where(outer, 0.0, lost), 0.0)
    sa = tl.where(highest, 0.0, tl.where(a < 0.0, 1.0, ea) / one_a)  # sigmoid(-a)
    sb = tl.where(lowest, 0.0, tl.where(b < 0.0, eb, 1.0) / one_b)  # sigmoid(b)
    ratio = tl.where(outer, 0.0, width * decay / mass)  # w / (e^w - 1)
    by_scale = tl.where(bounded, 0.0, b * sb - a * sa - ratio)
    return linear, mass, one_a * one_b, inverse * (sb - sa), by_scale


# --- Launchers.


class _Cut(NamedTuple):
    """How a launch is cut, and the arguments that say so."""

    programs: int
    num_warps: int
    arguments: dict[str, Any]


# Pixels times components of a program, and of a lane: more would not leave registers for all that a bin needs. In
# float64, which takes two registers for a number and many for its exponentials, one.
_ELEMENTS, _ELEMENTS_FLOAT64 = (512, 4), (256, 1)


def _even(t: Tensor, form: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The tensor itself when its pixels lie at equal distances, else a copy."""
    height, width = t.shape[2:]
    even = height == 1 or width == 1 or t.stride(2) == t.stride(3) * width
    return t if even else t.contiguous(memory_format=form)


def _strides(name: str, t: Tensor) -> dict[str, int]:
    step = t.stride(2) if t.shape[3] == 1 else t.stride(3)
    return {f"{name}_batch": t.stride(0), f"{name}_channel": t.stride(1), f"{name}_pixel": step}


def _cut(
    output: Tensor, target: Tensor, weight: Tensor | None, reduction: str, bins: int, min_log_scale: float
) -> _Cut:
    batch, parameters, height, width = output.shape
    channels, pixels = target.shape[1], height * width
    components = parameters // (10 if channels == 3 else 3)
    padded = triton.next_power_of_2(components)
    elements, per_lane = _ELEMENTS_FLOAT64 if output.dtype == torch.float64 else _ELEMENTS
    block = min(max(16, elements // padded), triton.next_power_of_2(max(pixels, 1)))
    output, target = _even(output, layout.memory_format_of(output)), _even(target)
    divisor = {"batchmean": batch, "mean": batch * pixels}.get(reduction, 1)
    strides = _strides("output", output) | _strides("target", target)
    reach = max(
        n * strides[f"{name}_channel"] + pixels * strides[f"{name}_pixel"]
        for name, n in (("output", parameters), ("target", channels))
    )
    blocks = triton.cdiv(pixels, block)
    arguments = {
        "output": output,
        "target": target,
        "weight": None if weight is None else weight.contiguous(),
        "blocks": blocks,
        "pixels": pixels,
        "components": components,
        "scale": 1.0 / max(divisor, 1),
        **strides,
        "CHANNELS": channels,
        "HALF": 1.0 / (bins - 1),
        "LOG_BIN": math.log(2.0 / (bins - 1)),
        "MIN_LOG_SCALE": min_log_scale,
        "WIDE": max(reach, parameters * pixels) >= 2**31,
        "PIXELS": block,
        "COMPONENTS": padded,
    }
    return _Cut(batch * blocks, min(max(block * padded // (32 * per_lane), 1), 8), arguments)


def logistic_mixture_nll(
    output: Tensor, target: Tensor, weight: Tensor | None, reduction: str, bins: int, min_log_scale: float
) -> Tensor:
    cut = _cut(output, target, weight, reduction, bins, min_log_scale)
    dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
    batch, _, height, width = output.shape
    nll = partials = None
    if reduction == "none":
        nll = output.new_empty((batch, height, width), dtype=dtype)
    else:
        samples = batch if reduction == "batch" else 1
        partials = output.new_empty((samples, cut.programs // max(samples, 1)), dtype=dtype)
    launch(_forward, cut.programs, cut.num_warps, output, {"nll": nll, "partials": partials, **cut.arguments})
    if partials is None:
        return nll
    # torch sums a dense row in a fixed order.
    total = partials[:, 0] if partials.shape[1] == 1 else partials.sum(1)
    return total if reduction == "batch" else total.view(())


def logistic_mixture_nll_backward(
    grad: Tensor,
    output: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    bins: int,
    min_log_scale: float,
) -> Tensor:
    cut = _cut(output, target, weight, reduction, bins, min_log_scale)
    d_output = layout.empty_output(output)
    pixels = output.shape[2] * output.shape[3]
    grad = grad.contiguous()
    steps = {"none": (pixels, 1), "batch": (1, 0)}.get(reduction, (0, 0))
    arguments = {"d_output": d_output, "grad": grad, "grad_batch": steps[0], "grad_pixel": steps[1]}
    arguments |= _strides("d_output", d_output) | cut.arguments
    launch(_backward, cut.programs, cut.num_warps, output, arguments)
    return d_output


def logistic_mixture_nll_with_gradient(
    output: Tensor, target: Tensor, weight: Tensor | None, reduction: str, bins: int, min_log_scale: float
) -> tuple[Tensor, Tensor]:
    """Two launches: nothing on a GPU asks for both at once, since what is kept has to be read again to be scaled."""
    inputs = (output, target, weight, reduction, bins, min_log_scale)
    loss = logistic_mixture_nll(*inputs)
    return loss, logistic_mixture_nll_backward(torch.ones_like(loss), *inputs)


# --- What to compile ahead of time (see genmod/testing/compile_only.py).


def _case(
    op: Any,
    dtype: torch.dtype,
    *,
    shape: tuple[int, int, int, int] = (32, 10, 32, 32),
    channels: int = 3,
    weighted: bool = False,
    reduction: str = "batchmean",
    form: torch.memory_format = torch.contiguous_format,
) -> Any:
    """A call of `op` on meta tensors; `shape` is batch, components, height and width."""

    def call() -> None:
        batch, components, height, width = shape
        each = 10 if channels == 3 else 3
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        output = torch.empty(batch, each * components, height, width, dtype=dtype, device="meta", memory_format=form)
        target = torch.empty(batch, channels, height, width, dtype=dtype, device="meta", memory_format=form)
        weight = torch.empty(batch, height, width, dtype=wide, device="meta") if weighted else None
        losses = {"none": (batch, height, width), "batch": (batch,)}.get(reduction, ())
        grad = torch.empty(losses, dtype=wide, device="meta")
        options = (output, target, weight, reduction, 256, -7.0)
        op(grad, *options) if op is logistic_mixture_nll_backward else op(*options)

    return call


#: Between them they reach every branch of every kernel.
COMPILE_CASES = {
    f"{op.__name__}, {name}": _case(op, **options)
    for op in (logistic_mixture_nll, logistic_mixture_nll_backward)
    for name, options in {
        "float32": {"dtype": torch.float32},
        "float32, channels_last": {"dtype": torch.float32, "form": torch.channels_last},
        "bfloat16, weighted, per sample": {"dtype": torch.bfloat16, "weighted": True, "reduction": "batch"},
        "float16, grey, odd, per pixel": {
            "dtype": torch.float16,
            "shape": (16, 5, 27, 27),
            "channels": 1,
            "reduction": "none",
        },
        "float64": {"dtype": torch.float64, "shape": (8, 5, 32, 32)},
        "float32, 2^31 elements in a sample": {"dtype": torch.float32, "shape": (1, 10, 4096, 8192)},
    }.items()
} | {"logistic_mixture_nll_with_gradient, float32": _case(logistic_mixture_nll_with_gradient, torch.float32)}
