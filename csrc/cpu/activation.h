// Activations and their slopes as branch-free scalar code that vectorises; formulas as in genmod/reference/activation.py.
#pragma once
#include "../activation_types.h"
#include "vecmath.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// The standard normal's distribution function, and its density, from one exponential.
template <class A> struct Normal { A below, density; };

GENMOD_INLINE Normal<double> normal_at(double z) {
  return {0.5 * erfc(-z * 0.70710678118654752440), 0.39894228040143267794 * exp(-0.5 * z * z)};
}
GENMOD_INLINE Normal<float> normal_at(float z) {
  // erfc(u / sqrt(2)) / 2 = e^(-u^2/2) t P(t) with t = 1 / (1 + 0.3 u) and u >= 0; relative error 2e-7, in the tail too.
  const float e = exp_parts(-0.5f * z * z).exp, t = 1.f / (1.f + 0.3f * fabsf(z));
  float p = -0.0206135381f;
  p = p * t + 0.112379506f;
  p = p * t - 0.228075922f;
  p = p * t + 0.191592306f;
  p = p * t - 0.0792555586f;
  p = p * t + 0.0960618556f;
  p = p * t + 0.0784243420f;
  p = p * t + 0.110227548f;
  p = p * t + 0.119572818f;
  p = p * t + 0.119686633f;
  const float tail = e * (p * t);
  return {z > 0 ? 1.f - tail : tail, 0.398942280f * e};
}

template <class A> GENMOD_INLINE A sigmoid_of(A z) { return 1 / (1 + exp_parts(-z).exp); }

template <class A> GENMOD_INLINE A tanh_of(A z) {
  const A m = exp_parts(z > 0 ? -2 * z : 2 * z).expm1, t = m / (m + 2);  // in (-1, 0]
  return z > 0 ? -t : t;
}

template <Activation F, class A> GENMOD_INLINE A activate(A z, A negative_slope) {
  if constexpr (F == Activation::relu) return z <= 0 ? A(0) : z;
  if constexpr (F == Activation::leaky_relu) return z > 0 ? z : z * negative_slope;
  if constexpr (F == Activation::silu) return z / (1 + exp_parts(-z).exp);
  if constexpr (F == Activation::gelu) return z * normal_at(z).below;
  if constexpr (F == Activation::tanh) return tanh_of(z);
  if constexpr (F == Activation::sigmoid) return sigmoid_of(z);
  return z;
}

template <Activation F, class A> GENMOD_INLINE A activation_slope(A z, A negative_slope) {
  if constexpr (F == Activation::relu) return z <= 0 ? A(0) : A(1);
  if constexpr (F == Activation::leaky_relu) return z <= 0 ? negative_slope : A(1);
  if constexpr (F == Activation::silu) {
    const A s = sigmoid_of(z);
    return s * (1 + z * (1 - s));
  }
  if constexpr (F == Activation::gelu) {
    const Normal<A> n = normal_at(z);
    return n.below + z * n.density;
  }
  if constexpr (F == Activation::tanh) {
    const A e = exp_parts(z > 0 ? -2 * z : 2 * z).exp;  // 1 - tanh^2 without the cancellation
    return 4 * e / ((1 + e) * (1 + e));
  }
  if constexpr (F == Activation::sigmoid) {
    const A s = sigmoid_of(z);
    return s * (1 - s);
  }
  return 1;
}

// The second derivative. A kink has none.
template <Activation F, class A> GENMOD_INLINE A activation_curvature(A z) {
  if constexpr (F == Activation::silu) {
    const A s = sigmoid_of(z), rest = sigmoid_of(-z);
    return s * rest * (2 + z * (rest - s));
  }
  if constexpr (F == Activation::gelu) return normal_at(z).density * (2 - z * z);
  if constexpr (F == Activation::tanh) {
    const A e = exp_parts(z > 0 ? -2 * z : 2 * z).exp;
    return -2 * tanh_of(z) * (4 * e / ((1 + e) * (1 + e)));
  }
  if constexpr (F == Activation::sigmoid) {
    const A s = sigmoid_of(z), rest = sigmoid_of(-z);
    return s * rest * (rest - s);
  }
  return 0;
}

// Make<F>::function for the activation named at run time.
template <template <Activation> class Make> static auto function_for(Activation a) {
  switch (a) {
    case Activation::relu: return Make<Activation::relu>::function;
    case Activation::leaky_relu: return Make<Activation::leaky_relu>::function;
    case Activation::silu: return Make<Activation::silu>::function;
    case Activation::gelu: return Make<Activation::gelu>::function;
    case Activation::tanh: return Make<Activation::tanh>::function;
    case Activation::sigmoid: return Make<Activation::sigmoid>::function;
    case Activation::identity: break;
  }
  return Make<Activation::identity>::function;
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
