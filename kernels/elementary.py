"""Elementary functions, the same polynomials as csrc/cpu/vecmath.h, so that every backend gives the same numbers.

Why not the hardware's: its logarithm is wrong by far more than rounding where Box-Muller needs it (near 1), its sine
and cosine are good to 2^-21 only, and there is no expm1. Accurate to 1-2 ulp, except where exp_parts says otherwise.
"""

import triton
import triton.language as tl


@triton.jit
def exp_parts(x):
    """e^x, e^x - 1 and e^x - 1 - x from one evaluation; each keeps its relative accuracy where the others cancel.

    Good to 2, 4 and 16 ulp; the last two are worst at |x| = ln(2) / 2, where they begin to be subtracted. A NaN passes.
    """
    if x.dtype == tl.float64:
        return _exp_parts_double(x)
    else:
        return _exp_parts_single(x)


@triton.jit
def _exp_parts_single(x):
    # Beyond these bounds e^x is infinite or zero anyway. A NaN compares false and passes through.
    c = tl.where(x > 89.0, 89.0, x)
    c = tl.where(c < -104.0, -104.0, c)
    t = c * 1.44269504088896341 + 12582912.0  # 1.5 * 2^23: rounds to an integer held in the low mantissa bits
    k = t - 12582912.0
    r = c - k * 0.693359375
    r = r - k * -2.12194440e-4
    p = 1.9875691500e-4
    p = p * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    q = r * r * p  # e^r - 1 - r
    # 2^k in two factors: one alone would overflow or flush before the product does.
    power = t.to(tl.int32, bitcast=True) - 0x4B400000  # the bits of 1.5 * 2^23
    half = power >> 1
    low = ((half + 127) << 23).to(tl.float32, bitcast=True)
    high = ((power - half + 127) << 23).to(tl.float32, bitcast=True)
    e = (1.0 + (r + q)) * low * high
    near = k == 0.0
    return e, tl.where(near, r + q, e - 1.0), tl.where(near, q, (e - 1.0) - x)


@triton.jit
def _exp_parts_double(x):
    c = tl.where(x > 710.0, 710.0, x)
    c = tl.where(c < -746.0, -746.0, c)
    t = c * 1.4426950408889634074 + 6755399441055744.0  # 1.5 * 2^52
    k = t - 6755399441055744.0
    r = c - k * 6.93145751953125e-1
    r = r - k * 1.42860682030941723212e-6
    # Taylor's series: its first term left out, r^14 / 14!, is below 2^-57 for |r| <= ln(2) / 2.
    p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    q = r * r * p
    power = t.to(tl.int64, bitcast=True) - 0x4338000000000000
    half = power >> 1
    low = ((half + 1023) << 52).to(tl.float64, bitcast=True)
    high = ((power - half + 1023) << 52).to(tl.float64, bitcast=True)
    e = (1.0 + (r + q)) * low * high
    near = k == 0.0
    return e, tl.where(near, r + q, e - 1.0), tl.where(near, q, (e - 1.0) - x)


@triton.jit
def log_positive(x):
    """ln x for positive normal x (Cephes' logf in single precision)."""
    if x.dtype == tl.float64:
        return tl.log(x)
    else:
        bits = x.to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23  # mantissa into [sqrt(1/2), sqrt(2))
        m = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
        z = m * m
        p = 7.0376836292e-2
        p = p * m - 1.1514610310e-1
        p = p * m + 1.1676998740e-1
        p = p * m - 1.2420140846e-1
        p = p * m + 1.4249322787e-1
        p = p * m - 1.6668057665e-1
        p = p * m + 2.0000714765e-1
        p = p * m - 2.4999993993e-1
        p = p * m + 3.3333331174e-1
        k = exponent.to(tl.float32)
        return (m + (m * z * p + k * -2.12194440e-4 - 0.5 * z)) + k * 0.693359375


@triton.jit
def log1p_unit(x):
    """ln(1 + x) for x in [0, 1], also where x is so small that 1 + x rounds to 1."""
    if x.dtype == tl.float64:
        # Of 1 + x only a rounded value is known; what it lost is put back to first order.
        y = 1.0 + x
        return tl.log(y) + (x - (y - 1.0)) / y
    else:
        p = x * -3.244023537e-3 + 1.985145360e-2
        p = p * x - 5.695951730e-2
        p = p * x + 1.060365364e-1
        p = p * x - 1.530559212e-1
        p = p * x + 1.967593879e-1
        p = p * x - 2.495413423e-1
        p = p * x + 3.332996368e-1
        p = p * x - 4.999990165e-1
        return (p * x + 1.0) * x


@triton.jit
def sincos_turn(bits):
    """sin and cos of the fraction bits / 2^32 of a turn: the quadrant is exact integer arithmetic, the rest short."""
    # Both operations wrap around on purpose.
    quadrant = tl.add(bits, 0x20000000, sanitize_overflow=False) >> 30
    rest = tl.sub(bits, quadrant << 30, sanitize_overflow=False).to(tl.int32, bitcast=True)
    f = rest.to(tl.float32) * 1.4629180792671596e-09  # (pi/2) / 2^30
    f2 = f * f
    s = -1.9515295891e-4
    s = s * f2 + 8.3321608736e-3
    s = s * f2 - 1.6666654611e-1
    s = s * f2 * f + f
    c = 2.443315711809948e-5
    c = c * f2 - 1.388731625493765e-3
    c = c * f2 + 4.166664568298827e-2
    c = c * f2 * f2 + (1.0 - 0.5 * f2)
    swap = (quadrant & 1) != 0
    sin = tl.where(swap, c, s).to(tl.uint32, bitcast=True) ^ ((quadrant & 2) << 30)
    cos = tl.where(swap, s, c).to(tl.uint32, bitcast=True) ^ (((quadrant + 1) & 2) << 30)
    return sin.to(tl.float32, bitcast=True), cos.to(tl.float32, bitcast=True)
