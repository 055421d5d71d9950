// The activations of genmod/reference/activation.py, of a pack of numbers at once.
//
// Results that are rounded to 16 bits take the hardware's exponential and division, good to 1e-6: of these numbers
// memory delivers so many that a polynomial each would take longer than the memory.
#pragma once
#include <math.h>

#include "../activation_types.h"
#include "math.cuh"
#include "memory.cuh"

namespace genmod {
namespace cuda {

// S is what the result will be stored as.
template <class S> __device__ __forceinline__ float sigmoid_of(float z) {
  if (sizeof(S) == 2) return __fdividef(1.f, 1.f + __expf(-z));
  return 1.f / (1.f + exp_parts(-z).exp);
}
template <class S> __device__ __forceinline__ double sigmoid_of(double z) { return 1. / (1. + exp(-z)); }

__device__ __forceinline__ float tanh_of(float z) {
  const float m = exp_parts(z > 0 ? -2 * z : 2 * z).expm1, t = m / (m + 2);  // of -2|z|, which does not overflow
  return z > 0 ? -t : t;
}
__device__ __forceinline__ double tanh_of(double z) { return tanh(z); }

__device__ __forceinline__ float normal_cdf(float z) { return 0.5f + 0.5f * erff(z * 0.7071067811865476f); }
__device__ __forceinline__ double normal_cdf(double z) { return 0.5 * erfc(z * -0.7071067811865476); }

// Comparisons, never a maximum: that would lose a NaN. All threads take the same case.
template <class S, class A, int N> __device__ __forceinline__ void activate(Pack<A, N>& z, Activation name, A slope) {
  switch (name) {
    case Activation::identity: break;
    case Activation::relu:
#pragma unroll
      for (int e = 0; e < N; e++) z.v[e] = z.v[e] <= 0 ? A(0) : z.v[e];
      break;
    case Activation::leaky_relu:
#pragma unroll
      for (int e = 0; e < N; e++) z.v[e] = z.v[e] <= 0 ? z.v[e] * slope : z.v[e];
      break;
    case Activation::silu:
#pragma unroll
      for (int e = 0; e < N; e++) z.v[e] *= sigmoid_of<S>(z.v[e]);
      break;
    case Activation::gelu:
#pragma unroll
      for (int e = 0; e < N; e++) z.v[e] *= normal_cdf(z.v[e]);
      break;
    case Activation::tanh:
#pragma unroll
      for (int e = 0; e < N; e++) z.v[e] = tanh_of(z.v[e]);
      break;
    case Activation::sigmoid:
#pragma unroll
      for (int e = 0; e < N; e++) z.v[e] = sigmoid_of<S>(z.v[e]);
      break;
  }
}

}  // namespace cuda
}  // namespace genmod
