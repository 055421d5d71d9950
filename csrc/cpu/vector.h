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

// Pairwise, always in this order.
template <class A> static inline A sum_lanes(Vector<A> v) {
  A a[kLanes<A>];
  store_lanes<A>(a, v);
  for (int width = kLanes<A> / 2; width > 0; width /= 2)
    for (int l = 0; l < width; l++) a[l] += a[l + width];
  return a[0];
}
template <class A> static inline A max_lanes(Vector<A> v) {
  A a[kLanes<A>];
  store_lanes<A>(a, v);
  for (int width = kLanes<A> / 2; width > 0; width /= 2)
    for (int l = 0; l < width; l++) a[l] = a[l + width] > a[l] ? a[l + width] : a[l];
  return a[0];
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

// 2^x for x below the overflow, to 2 ulp; a NaN stays one. Below 2^-80 (2^-500) it is zero: beside a sum of at least one
// that is nothing, and what is multiplied further must not become subnormal, which takes the processor a hundred cycles.
static inline VectorF exp2_lanes(VectorF x) {
  const VectorI none = x < -80.f;
  const VectorF c = none ? all(0.f) : x;
  const float magic = 12582912.f + 127.f;  // see exp_parts in vecmath.h
  const VectorF t = c + magic, r = c - (t - magic);
  VectorF p = r * 1.535336188319500e-4f + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.f;
  return none ? VectorF{} : p * (VectorF)((VectorI)t << 23);
}
static inline VectorD exp2_lanes(VectorD x) {
  const VectorL none = x < -500.;
  const VectorD c = none ? all(0.) : x;
  const double magic = 6755399441055744. + 1023.;
  const VectorD t = c + magic, r = (c - (t - magic)) * 0.69314718055994530942;
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
  return none ? VectorD{} : p * (VectorD)((VectorL)t << 52);
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
