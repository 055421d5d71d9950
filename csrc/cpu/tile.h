// A chunk of a tensor as plain float or double, in level-1 cache: straight from memory where it lies so already,
// converted or gathered into a buffer where it does not. Kernels then see one case only.
#pragma once
#include "../types.h"
#include "vecmath.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

GENMOD_INLINE float widen(float x) { return x; }
GENMOD_INLINE double widen(double x) { return x; }
GENMOD_INLINE float widen(uint8_t x) { return (float)x; }
GENMOD_INLINE float widen(bf16 x) { return bits_float((int32_t)((uint32_t)x.bits << 16)); }
GENMOD_INLINE float widen(f16 x) {
  // Scaling by 2^112 moves half's exponent to float's place, subnormals included; inf and NaN get all exponent bits.
  const uint32_t magnitude = (uint32_t)(x.bits & 0x7fff) << 13;
  const float scaled = bits_float((int32_t)magnitude) * 5.192296858534828e+33f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return bits_float((int32_t)((uint32_t)float_bits(scaled) | special | ((uint32_t)(x.bits & 0x8000) << 16)));
}

GENMOD_INLINE void narrow(float x, float& out) { out = x; }
GENMOD_INLINE void narrow(double x, double& out) { out = x; }
GENMOD_INLINE void narrow(float x, bf16& out) {  // round to nearest, ties to even; a NaN stays one
  const uint32_t b = (uint32_t)float_bits(x);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  out.bits = (uint16_t)(x != x ? 0x7fc0u : rounded);
}
GENMOD_INLINE void narrow(float x, f16& out) {
  const uint32_t b = (uint32_t)float_bits(x), sign = b & 0x80000000u, a = b ^ sign;
  const uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;
  // Adding 1/2 drops a subnormal's fraction into the low mantissa bits, rounded by the addition itself.
  const uint32_t subnormal = (uint32_t)float_bits(bits_float((int32_t)a) + 0.5f) - 0x3f000000u;
  uint32_t h = a < 0x38800000u ? subnormal : normal;
  h = a >= 0x477ff000u ? 0x7c00u : h;  // 65520 and above round to infinity
  h = a > 0x7f800000u ? 0x7e00u : h;
  out.bits = (uint16_t)(h | (sign >> 16));
}

template <class S> struct Accumulate { using type = float; };
template <> struct Accumulate<double> { using type = double; };

template <class A, class S> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

// Elements [begin, begin + n) of `rows`, as A.
template <class A, class S>
static const A* load(const Rows& rows, int64_t cols, int64_t begin, int64_t n, A* __restrict buffer) {
  const S* data = (const S*)rows.data;
  int64_t row = begin / cols, col = begin - row * cols;
  if (col + n <= cols) {
    const S* p = data + row * rows.stride + col;
    if constexpr (same<A, S>) return p;
    for (int64_t i = 0; i < n; i++) buffer[i] = widen(p[i]);
    return buffer;
  }
  for (int64_t done = 0; done < n; row++, col = 0) {
    const int64_t left = n - done, length = cols - col < left ? cols - col : left;
    const S* p = data + row * rows.stride + col;
    for (int64_t i = 0; i < length; i++) buffer[done + i] = widen(p[i]);
    done += length;
  }
  return buffer;
}

// Where to compute elements [begin, begin + n) of an output: in place if it is A in one row, else in `buffer`.
template <class A, class S>
static A* place(void* data, int64_t stride, int64_t cols, int64_t begin, int64_t n, A* buffer) {
  const int64_t row = begin / cols, col = begin - row * cols;
  if (col + n > cols) return buffer;
  if constexpr (same<A, S>) return (A*)data + row * stride + col;
  return buffer;
}

// Writes what was computed in `buffer` to its place in memory; nothing to do when it was computed there.
template <class A, class S>
static void store(const A* __restrict buffer, const A* computed, void* out, int64_t stride, int64_t cols, int64_t begin, int64_t n) {
  if (computed != buffer) return;
  S* data = (S*)out;
  int64_t row = begin / cols, col = begin - row * cols;
  for (int64_t done = 0; done < n; row++, col = 0) {
    const int64_t left = n - done, length = cols - col < left ? cols - col : left;
    S* p = data + row * stride + col;
    for (int64_t i = 0; i < length; i++) narrow(buffer[done + i], p[i]);
    done += length;
  }
}

// body(i) for each i from 0 to n, with what lies ahead in the streams asked for in time: a long formula fills the
// processor's view with the work of a line or two, so that it does not come to the next loads by itself. Sampling and
// KL of 2 million elements from cold memory, two threads of an EPYC: 0.5 KiB ahead 420 us, 2 KiB 360, 3 to 8 KiB 290,
// 12 KiB 320. Less of many streams, which must stay in level-1 cache.
template <class A, class Body, class... Streams>
GENMOD_INLINE void for_each(int64_t n, Body&& body, const Streams*... streams) {
  constexpr int kLine = 64 / sizeof(A), kLines = 256 / (int)sizeof...(Streams), kAhead = (kLines < 64 ? kLines : 64) * kLine;
  int64_t i = 0;
  for (; i + kLine <= n; i += kLine) {
    // As numbers, since it may be past the end; whatever is there, asking does no harm.
    (__builtin_prefetch((const void*)((uintptr_t)streams + (uintptr_t)(i + kAhead) * sizeof(A))), ...);
    for (int l = 0; l < kLine; l++) body(i + l);
  }
  for (; i < n; i++) body(i);
}

// How many running sums: four vectors of them, since one alone waits for its last addition; half of that where there are
// not so many registers. It vectorises without letting the compiler reorder anything, and rounds less than one sum would.
#if defined(__AVX512F__)
constexpr int kSums = 64;
#else
constexpr int kSums = 32;
#endif

// Pairwise, from sixteen on in double.
template <int WIDTH> GENMOD_INLINE double fold(double* a) {
  if constexpr (WIDTH == 1) return a[0];
  for (int l = 0; l < WIDTH / 2; l++) a[l] += a[l + WIDTH / 2];
  return fold<WIDTH / 2>(a);
}
template <int WIDTH, class A> GENMOD_INLINE double fold_lanes(A* a) {
  if constexpr (WIDTH > 16) {
    for (int l = 0; l < WIDTH / 2; l++) a[l] += a[l + WIDTH / 2];
    return fold_lanes<WIDTH / 2>(a);
  }
  double halves[8];
  for (int l = 0; l < 8; l++) halves[l] = (double)a[l] + (double)a[l + 8];
  return fold<8>(halves);
}

// The sum of term(i) for i from 0 to n.
template <class A, class Term> GENMOD_INLINE double sum_of(int64_t n, Term&& term) {
  A lanes[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int l = 0; l < kSums; l++) lanes[l] += term(i + l);
  for (; i + 16 <= n; i += 16)
    for (int l = 0; l < 16; l++) lanes[l] += term(i + l);
  double rest = 0;
  for (; i < n; i++) rest += (double)term(i);
  return fold_lanes<kSums>(lanes) + rest;
}
template <class A> static double sum(const A* __restrict x, int64_t n) {
  return sum_of<A>(n, [=](int64_t i) __attribute__((always_inline)) { return x[i]; });
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
