// Elementary functions with the polynomials of cpu/vecmath.h, so that all backends agree to a few ulp.
// Not the hardware's fast ones: near 1 the approximate logarithm is wrong by far more than rounding, and from
// exp alone expm1 and expm1(x) - x would cancel. In double precision CUDA's own functions do.
#pragma once
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

namespace genmod {
namespace cuda {

// e^x, e^x - 1 and e^x - 1 - x from one evaluation; each keeps its relative accuracy where the others cancel.
template <class A> struct Exp { A exp, expm1, expm1_minus_x; };

__device__ __forceinline__ Exp<float> exp_parts(float x) {
  // Beyond these bounds e^x is infinite or zero anyway. A NaN compares false and passes through.
  float c = x > 89.f ? 89.f : x;
  c = c < -104.f ? -104.f : c;
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer that sits in the low mantissa bits
  const float t = c * 1.44269504088896341f + magic;
  const float k = t - magic;
  float r = c - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float q = r * r * p;  // e^r - 1 - r
  // 2^k in two factors: one alone would overflow or flush before the product does.
  const int ki = __float_as_int(t) - __float_as_int(magic), half = ki >> 1;
  const float e = (1.f + (r + q)) * __int_as_float((half + 127) << 23) * __int_as_float((ki - half + 127) << 23);
  const bool small = k == 0.f;
  return {e, small ? r + q : e - 1.f, small ? q : (e - 1.f) - x};
}

__device__ __forceinline__ Exp<double> exp_parts(double x) {
  const double m = expm1(x);
  // Below 1e-3 the difference cancels; four terms of the series are exact to 1e-16 there.
  const double series = x * x * (0.5 + x * (1. / 6 + x * (1. / 24 + x * (1. / 120 + x * (1. / 720)))));
  return {exp(x), m, fabs(x) < 1e-3 ? series : m - x};
}

// ln x for positive normal x (Cephes' logf).
__device__ __forceinline__ float log_positive(float x) {
  const int b = __float_as_int(x), e = (b - 0x3f3504f3) >> 23;  // mantissa into [sqrt(1/2), sqrt(2))
  const float m = __int_as_float(b - (int)((unsigned)e << 23)) - 1.f, z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const float k = (float)e;
  return (m + (m * z * p + k * -2.12194440e-4f - 0.5f * z)) + k * 0.693359375f;
}
__device__ __forceinline__ double log_positive(double x) { return log(x); }

// sin and cos of one turn's fraction b / 2^32: the quadrant is exact integer arithmetic, the rest a short polynomial.
__device__ __forceinline__ void sincos_turn(uint32_t b, float& s, float& c) {
  const uint32_t quadrant = (b + 0x20000000u) >> 30;
  const float f = (float)(int32_t)(b - (quadrant << 30)) * 1.4629180792671596e-09f;  // (pi/2) / 2^30
  const float f2 = f * f;
  float ps = -1.9515295891e-4f;
  ps = ps * f2 + 8.3321608736e-3f;
  ps = ps * f2 - 1.6666654611e-1f;
  ps = ps * f2 * f + f;
  float pc = 2.443315711809948e-5f;
  pc = pc * f2 - 1.388731625493765e-3f;
  pc = pc * f2 + 4.166664568298827e-2f;
  pc = pc * f2 * f2 + (1.f - 0.5f * f2);
  const bool swap = quadrant & 1;
  const float as = swap ? pc : ps, ac = swap ? ps : pc;
  s = __int_as_float(__float_as_int(as) ^ (int)((quadrant & 2u) << 30));
  c = __int_as_float(__float_as_int(ac) ^ (int)(((quadrant + 1u) & 2u) << 30));
}

}  // namespace cuda
}  // namespace genmod
