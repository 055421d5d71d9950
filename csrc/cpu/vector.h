// The registers of an instruction set as a type, where a plain loop is not enough: sums and maxima that stay in lanes.
#pragma once
#include <stdint.h>
#include <string.h>

#include <vector>

namespace genmod {
namespace GENMOD_ISA {
namespace {

#if defined(__AVX512F__)
#define GENMOD_VECTOR_BYTES 64
#elif defined(__AVX__)
#define GENMOD_VECTOR_BYTES 32
#else
#define GENMOD_VECTOR_BYTES 16
#endif

typedef float VectorF __attribute__((vector_size(GENMOD_VECTOR_BYTES)));
typedef double VectorD __attribute__((vector_size(GENMOD_VECTOR_BYTES)));
typedef int32_t VectorI __attribute__((vector_size(GENMOD_VECTOR_BYTES)));
typedef int64_t VectorL __attribute__((vector_size(GENMOD_VECTOR_BYTES)));

template <class A> struct Lanes;
template <> struct Lanes<float> { using type = VectorF; };
template <> struct Lanes<double> { using type = VectorD; };
template <class A> using Vector = typename Lanes<A>::type;
template <class A> constexpr int kLanes = GENMOD_VECTOR_BYTES / sizeof(A);

template <class A> static inline Vector<A> all(A x) { return x - Vector<A>{}; }
template <class A> static inline Vector<A> load_lanes(const A* p) {
  Vector<A> v;
  memcpy(&v, p, sizeof(v));
  return v;
}
template <class A> static inline void store_lanes(A* p, Vector<A> v) { memcpy(p, &v, sizeof(v)); }

// Pairwise, always in this order; unrolled, which a loop over widths is not.
template <int WIDTH, class A> static inline void fold_sum(A* a) {
  for (int l = 0; l < WIDTH; l++) a[l] += a[l + WIDTH];
  if constexpr (WIDTH > 1) fold_sum<WIDTH / 2>(a);
}
template <class A> static inline A sum_lanes(Vector<A> v) {
  A a[kLanes<A>];
  store_lanes<A>(a, v);
  fold_sum<kLanes<A> / 2>(a);
  return a[0];
}
template <class A> static inline A max_lanes(Vector<A> v) {
  A a[kLanes<A>], most;
  store_lanes<A>(a, v);
  most = a[0];
  for (int l = 1; l < kLanes<A>; l++) most = a[l] > most ? a[l] : most;
  return most;
}

// a * b + c rounded once where the processor does that as fast, and else twice. Written out where two places must get
// the same bits: whether the compiler fuses them by itself depends on what else a place does with the product.
template <class V> static inline V multiply_add(V a, V b, V c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA)
  V fused;  // one instruction: the loop is vectorised
  for (size_t l = 0; l < sizeof(V) / sizeof(a[0]); l++) {
    if constexpr (sizeof(a[0]) == 4) fused[l] = __builtin_fmaf(a[l], b[l], c[l]);
    else fused[l] = __builtin_fma(a[l], b[l], c[l]);
  }
  return fused;
#else
  return a * b + c;
#endif
}

// Scratch memory, aligned to whole vectors.
template <class A> class Scratch {
 public:
  explicit Scratch(int64_t n) : vectors_((size_t)((n + kLanes<A> - 1) / kLanes<A>)) {}
  A* data() { return (A*)vectors_.data(); }

 private:
  struct alignas(GENMOD_VECTOR_BYTES) Cell { A lanes[kLanes<A>]; };
  std::vector<Cell> vectors_;
};

// 2^x for x between -126 (-1022) and 127 (1023), or a NaN, which stays one. 2 ulp.
static inline VectorF exp2_inside(VectorF x) {
  const float magic = 12582912.f + 127.f;  // see kRounding in vecmath.h
  const VectorF t = x + magic, r = x - (t - magic);
  VectorF p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.f;
  return p * (VectorF)((VectorI)t << 23);
}
static inline VectorD exp2_inside(VectorD x) {
  const double magic = 6755399441055744. + 1023.;
  const VectorD t = x + magic, r = (x - (t - magic)) * 0.69314718055994530942;
  VectorD p = r * (1. / 6227020800.) + 1. / 479001600.;  // Taylor: the first term left out is below 2^-57
  p = p * r + 1. / 39916800.;
  p = p * r + 1. / 3628800.;
  p = p * r + 1. / 362880.;
  p = p * r + 1. / 40320.;
  p = p * r + 1. / 5040.;
  p = p * r + 1. / 720.;
  p = p * r + 1. / 120.;
  p = p * r + 1. / 24.;
  p = p * r + 1. / 6.;
  p = p * r + 0.5;
  p = p * r + 1.;
  p = p * r + 1.;
  return p * (VectorD)((VectorL)t << 52);
}

// 2^x for x below the overflow; what is below 2^-80 counts as that. For terms of a sum that has one of 1 in it.
template <class V> static inline V exp2_term(V x) {
  const V least = V{} - 80;
  return exp2_inside(x < least ? least : x);
}
// 2^x for x below the overflow, and 0 below 2^-80: multiplied further, what is left of it would become subnormal, which
// takes a processor a hundred cycles.
template <class V> static inline V exp2_or_zero(V x) {
  return x < V{} - 80 ? V{} : exp2_inside(x);  // where it is outside, whatever comes out is not taken
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod

// name_any: the kernel `name` in float, or in double where its parameters are `wide`. For tables of kernels.
#define GENMOD_BY_WIDTH(name, Params)                                    \
  static void name##_any(const Params& p, int64_t first, int64_t last) { \
    p.wide ? name<double>(p, first, last) : name<float>(p, first, last); \
  }
