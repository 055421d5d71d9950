// Elementary functions as branch-free scalar code, so that a plain loop over them vectorises on every instruction set.
// Why not ATen's vectors: their fast exp is 20 ulp off, the exact ones bind to symbols no ABI promise covers, and this
// header compiles anywhere a C++17 compiler does. Single precision is polynomials, double precision is libm.
//
// Everything is `static`: each instruction set compiles its own copy, and no copy can leak into another's object file.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define GENMOD_INLINE static inline __attribute__((always_inline))

GENMOD_INLINE int32_t float_bits(float x) { int32_t b; memcpy(&b, &x, 4); return b; }
GENMOD_INLINE float bits_float(int32_t b) { float x; memcpy(&x, &b, 4); return x; }

// e^x, e^x - 1 and e^x - 1 - x from one evaluation; each keeps its relative accuracy where the others cancel.
template <class T> struct Exp { T exp, expm1, expm1_minus_x; };

// `yes` where `mask` is all ones, `no` where it is zero. As integers, because a branch on floats tempts the compiler to
// work out both of its arms to the end and blend them there, a dozen instructions later.
GENMOD_INLINE float select_bits(int32_t mask, float yes, float no) {
  return bits_float((float_bits(yes) & mask) | (float_bits(no) & ~mask));
}

// Choices by masks, all ones or zero: compilers make branches of choices by conditions, and a loop with branches is not
// vectorised. The sign of a number is such a mask; where the number is NaN, so is whatever is chosen between below.
GENMOD_INLINE int64_t double_bits(double x) { int64_t b; memcpy(&b, &x, 8); return b; }
GENMOD_INLINE double bits_double(int64_t b) { double x; memcpy(&x, &b, 8); return x; }
GENMOD_INLINE int32_t mask_if(bool c, float) { return -(int32_t)c; }
GENMOD_INLINE int64_t mask_if(bool c, double) { return -(int64_t)c; }
GENMOD_INLINE int32_t negative(float x) { return float_bits(x) >> 31; }
GENMOD_INLINE int64_t negative(double x) { return double_bits(x) >> 63; }
GENMOD_INLINE float choose(int32_t mask, float yes, float no) { return select_bits(mask, yes, no); }
GENMOD_INLINE double choose(int64_t mask, double yes, double no) { return bits_double((double_bits(yes) & mask) | (double_bits(no) & ~mask)); }

GENMOD_INLINE float magnitude(float x) { return bits_float(float_bits(x) & 0x7fffffff); }
GENMOD_INLINE double magnitude(double x) { return fabs(x); }
// y, negated where x is negative.
GENMOD_INLINE float times_sign(float y, float x) { return bits_float(float_bits(y) ^ (float_bits(x) & (int32_t)0x80000000)); }
GENMOD_INLINE double times_sign(double y, double x) { return bits_double(double_bits(y) ^ (double_bits(x) & (int64_t)0x8000000000000000)); }

// 1.5 * 2^23, which added rounds to an integer that sits in the low mantissa bits, and 127.
constexpr float kRounding = 12582912.f + 127.f;

// (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2 (Cephes' expf).
GENMOD_INLINE float exp_polynomial(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p;
}

// The three from x and k = log2(e) x, rounded: `t` holds k in its low mantissa bits, and 127 more make that an exponent.
GENMOD_INLINE Exp<float> exp_from(float x, float c, int32_t t) {
  const float k = bits_float(t) - kRounding, scale = bits_float((int32_t)((uint32_t)t << 23));  // 2^k
  float r = c - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  const float q = r * r * exp_polynomial(r), m = r + q;  // e^r - 1 - r and e^r - 1
  // Where k = 0 these are m and q themselves: scale - 1 is zero, and r is x.
  const float less = scale - 1.f;
  return {scale * m + scale, scale * m + less, scale * q + (scale * r + (less - x))};
}
// For x between -87 and 88; a NaN passes through.
GENMOD_INLINE Exp<float> exp_parts_within(float x) { return exp_from(x, x, float_bits(x * 1.44269504088896341f + kRounding)); }
GENMOD_INLINE Exp<float> exp_parts(float x) {
  // Beyond these bounds the result is infinite or zero. A NaN compares false and passes through.
  float c = select_bits(-(int32_t)(x > 89.f), 89.f, x);
  c = select_bits(-(int32_t)(x < -88.f), -88.f, c);
  const int32_t rounded = float_bits(c * 1.44269504088896341f + kRounding), most = 0x4b4000fe;  // that of k = 127
  return exp_from(x, c, rounded < most ? rounded : most);  // 2^128 is infinite, which a negative r would make a NaN
}
GENMOD_INLINE Exp<double> exp_parts(double x) {
  const double m = expm1(x);
  // Below 1e-3 the difference cancels; four terms of the series are exact to 1e-16 there.
  const double series = x * x * (0.5 + x * (1. / 6 + x * (1. / 24 + x * (1. / 120 + x * (1. / 720)))));
  return {exp(x), m, fabs(x) < 1e-3 ? series : m - x};
}
GENMOD_INLINE Exp<double> exp_parts_within(double x) { return exp_parts(x); }

// e^x and e^x - 1 for x <= 0, where exp_parts has one bound too many; the same polynomial.
template <class A> struct Decay { A exp, expm1; };
GENMOD_INLINE Decay<float> decay(float x) {
  const float c = x < -88.f ? -88.f : x;  // a NaN passes through
  const float t = c * 1.44269504088896341f + kRounding, k = t - kRounding;
  const float scale = bits_float((int32_t)((uint32_t)float_bits(t) << 23));  // 2^k
  float r = c - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  const float m = r + r * r * exp_polynomial(r);
  return {scale * m + scale, scale * m + (scale - 1.f)};
}
GENMOD_INLINE Decay<double> decay(double x) { return {exp(x), expm1(x)}; }

// ln x for positive normal x (Cephes' logf).
GENMOD_INLINE float log_positive(float x) {
  const int32_t b = float_bits(x), e = (b - 0x3f3504f3) >> 23;  // mantissa into [sqrt(1/2), sqrt(2))
  const float m = bits_float(b - (int32_t)((uint32_t)e << 23)) - 1.f, z = m * m;
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
GENMOD_INLINE double log_positive(double x) { return log(x); }

// sin and cos of one turn's fraction b / 2^32: the quadrant is exact integer arithmetic, the rest a short polynomial.
GENMOD_INLINE void sincos_turn(uint32_t b, float& s, float& c) {
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
  s = bits_float(float_bits(as) ^ (int32_t)((quadrant & 2u) << 30));
  c = bits_float(float_bits(ac) ^ (int32_t)(((quadrant + 1u) & 2u) << 30));
}

// ln(1 + x) for x in [0, 1], to 2 ulp, also where x is so small that 1 + x rounds to 1.
GENMOD_INLINE float log1p_unit(float x) {
  float p = 5.364792421e-3f;
  p = p * x - 3.006566502e-2f;
  p = p * x + 7.920432836e-2f;
  p = p * x - 1.375378519e-1f;
  p = p * x + 1.915364712e-1f;
  p = p * x - 2.485716194e-1f;
  p = p * x + 3.332132101e-1f;
  p = p * x - 4.999964833e-1f;
  p = p * x + 1.f;
  return p * x;
}
GENMOD_INLINE double log1p_unit(double x) { return log1p(x); }
