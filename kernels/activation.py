"""The activations of genmod/reference/activation.py and their slopes, for use inside kernels.

`FAST` takes the hardware's exponential, good to 1e-6: for results that are rounded to 16 bits anyway, of which a GPU's
memory delivers so many that a polynomial each would take longer than the memory.
"""

import triton
import triton.language as tl

from genmod.kernels.elementary import exp_parts


@triton.jit
def activate(z, negative_slope, NAME: tl.constexpr, FAST: tl.constexpr):
    """The activation of a block `z`. Comparisons, never a maximum: that would lose a NaN."""
    if NAME == "relu":
        y = tl.where(z <= 0.0, 0.0, z)
    elif NAME == "leaky_relu":
        y = tl.where(z <= 0.0, z * tl.full([1, 1], negative_slope, z.dtype), z)
    elif NAME == "silu":
        y = z * _sigmoid(z, FAST)
    elif NAME == "gelu":
        y = z * _normal_cdf(z)
    elif NAME == "tanh":
        y, _ = _tanh_and_slope(z, FAST)
    elif NAME == "sigmoid":
        y = _sigmoid(z, FAST)
    else:
        y = z
    return y


@triton.jit
def slope(z, negative_slope, NAME: tl.constexpr, FAST: tl.constexpr):
    """The derivative of `activate` at `z`. At the kink of a ReLU it is the slope on the left, as torch has it."""
    if NAME == "relu":
        d = tl.where(z <= 0.0, 0.0, 1.0).to(z.dtype)
    elif NAME == "leaky_relu":
        d = tl.where(z <= 0.0, tl.full([1, 1], negative_slope, z.dtype), 1.0)
    elif NAME == "silu":
        s = _sigmoid(z, FAST)
        d = s + z * s * (1.0 - s)
    elif NAME == "gelu":
        d = _normal_cdf(z) + z * (0.3989422804014327 * _exp(-0.5 * z * z, FAST))
    elif NAME == "tanh":
        _, d = _tanh_and_slope(z, FAST)
    elif NAME == "sigmoid":
        s = _sigmoid(z, FAST)
        d = s * (1.0 - s)
    else:
        d = tl.full(z.shape, 1.0, z.dtype)
    return d


@triton.jit
def curvature(z, NAME: tl.constexpr, FAST: tl.constexpr):
    """The second derivative of `activate` at `z`. A kink has none."""
    if NAME == "silu":
        s, rest = _sigmoid(z, FAST), _sigmoid(-z, FAST)
        d = s * rest * (2.0 + z * (rest - s))
    elif NAME == "gelu":
        d = 0.3989422804014327 * _exp(-0.5 * z * z, FAST) * (2.0 - z * z)
    elif NAME == "tanh":
        t, once = _tanh_and_slope(z, FAST)
        d = -2.0 * t * once
    elif NAME == "sigmoid":
        s, rest = _sigmoid(z, FAST), _sigmoid(-z, FAST)
        d = s * rest * (rest - s)
    else:
        d = tl.zeros_like(z)
    return d


@triton.jit
def _exp(x, FAST: tl.constexpr):
    if FAST:
        e = tl.exp(x)
    else:
        e, _, _ = exp_parts(x)
    return e


@triton.jit
def _sigmoid(z, FAST: tl.constexpr):
    return 1.0 / (1.0 + _exp(-z, FAST))


@triton.jit
def _tanh_and_slope(z, FAST: tl.constexpr):
    # Of -2|z|, whose exponential does not overflow. Near 1 it is the distance from 1 that is accurate.
    x = -2.0 * tl.abs(z)
    if FAST:
        e = tl.exp(x)
        m = e - 1.0
    else:
        e, m, _ = exp_parts(x)
    over = 1.0 / (1.0 + e)
    t = tl.where(e < 0.5, 1.0 - 2.0 * e * over, -m * over)
    return tl.where(z < 0.0, -t, t), 4.0 * e * over * over


@triton.jit
def _normal_cdf(z):
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
