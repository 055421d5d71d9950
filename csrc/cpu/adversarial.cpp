// Adversarial losses and their derivatives. The formulas are those of genmod/reference/adversarial.py.
#include "adversarial.h"

#include "tile.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

template <class A> struct Point { A value, slope; };

// ln(1 + e^t) and its derivative. With u = 1 + e^-|t| rounded, ln u + (e^-|t| - (u - 1)) / u is log1p to the last bits.
GENMOD_INLINE Point<float> softplus(float t) {
  const float e = decay(-magnitude(t)).exp, u = 1 + e, inverse = 1 / u;
  const float value = (t > 0 ? t : 0) + (log_positive(u) + (e - (u - 1)) * inverse);
  return {t != t ? t : value, (t > 0 ? 1.f : e) * inverse};
}
GENMOD_INLINE Point<double> softplus(double t) {
  const double e = exp(t > 0 ? -t : t);
  return {(t > 0 ? t : 0) + log1p(e), (t > 0 ? 1. : e) / (1 + e)};
}

template <Curve C, class A> GENMOD_INLINE Point<A> at(A t) {
  if constexpr (C == Curve::softplus) return softplus(t);
  if constexpr (C == Curve::relu) return {t <= 0 ? A(0) : t, t <= 0 ? A(0) : A(1)};  // a NaN is not <= 0
  if constexpr (C == Curve::square) return {t * t, 2 * t};
  return {t, A(1)};
}

template <Curve C, class A>
static void tile(const A* __restrict x, A* __restrict value, A* __restrict slope, A sign, A shift, A weight, A by_x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const Point<A> p = at<C>(sign * x[i] + shift);
    value[i] = weight * p.value;
    slope[i] = by_x * p.slope;
  }
}

template <class A> static void difference(const A* __restrict a, const A* __restrict b, A* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = a[i] - b[i];
}
template <class A> static void add(const A* __restrict a, A* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; i++) sum[i] += a[i];
}
template <class A> static void scale(A* __restrict x, A by, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] *= by;
}
template <class A> static void multiply(A* __restrict x, const A* __restrict by, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] *= by[i];
}

// Derivatives in `d`, times `factor`, to where they belong.
template <class A, class S>
static void write(const A* __restrict d, void* out, bool narrowed, A factor, int64_t begin, int64_t n) {
  if (!narrowed) {
    A* __restrict to = (A*)out + begin;
    for (int64_t i = 0; i < n; i++) to[i] = factor * d[i];
    return;
  }
  S* __restrict to = (S*)out + begin;
  for (int64_t i = 0; i < n; i++) narrow(factor * d[i], to[i]);
}

static int64_t length(int64_t numel, int64_t begin) {
  const int64_t left = numel - begin;
  return left < 0 ? 0 : left < kChunk ? left : kChunk;
}

template <class S> static void chunks(const Adversarial& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  alignas(64) A buffer[kChunk], other[kChunk], value[kChunk], slope[kChunk], total[kChunk];
  const auto evaluate = [&](const A* x, const AdversarialSide& s, int64_t n) {
    const A sign = (A)s.sign, shift = (A)s.shift, weight = (A)s.weight, by_x = (A)(s.sign * s.weight * s.scale);
    switch (p.curve) {
      case Curve::softplus: return tile<Curve::softplus>(x, value, slope, sign, shift, weight, by_x, n);
      case Curve::relu: return tile<Curve::relu>(x, value, slope, sign, shift, weight, by_x, n);
      case Curve::square: return tile<Curve::square>(x, value, slope, sign, shift, weight, by_x, n);
      case Curve::linear: return tile<Curve::linear>(x, value, slope, sign, shift, weight, by_x, n);
    }
  };
  const auto times_grad = [&](int64_t begin, int64_t n) {
    if (!p.grad) return;
    if (p.grad_per_element) multiply(slope, (const A*)p.grad + begin, n);
    else scale(slope, *(const A*)p.grad, n);
  };
  const AdversarialSide* const sides[] = {&p.real, &p.fake};
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk;
    if (p.paired) {
      const int64_t n = length(p.numel, begin);
      difference(load<A, S>({p.real.x, 0}, p.numel, begin, n, buffer), load<A, S>({p.fake.x, 0}, p.numel, begin, n, other), total, n);
      evaluate(total, p.real, n);
      times_grad(begin, n);
      if (p.real.d) write<A, S>(slope, p.real.d, p.narrow, A(1), begin, n);
      if (p.fake.d) write<A, S>(slope, p.fake.d, p.narrow, A(-1), begin, n);
      if (p.sums) p.sums[2 * chunk] = sum(value, n);
      if (p.loss) memcpy((A*)p.loss + begin, value, (size_t)n * sizeof(A));
      continue;
    }
    for (const AdversarialSide* side : sides) {
      const int64_t n = length(side->numel, begin);
      if (!n) continue;
      evaluate(load<A, S>({side->x, 0}, side->numel, begin, n, buffer), *side, n);
      times_grad(begin, n);
      if (side->d) write<A, S>(slope, side->d, p.narrow, A(1), begin, n);
      if (p.sums) p.sums[2 * chunk + (side == &p.fake)] = sum(value, n);
      if (!p.loss) continue;
      A* loss = (A*)p.loss + begin;
      if (side == &p.fake && p.real.x) add(value, loss, n);
      else memcpy(loss, value, (size_t)n * sizeof(A));
    }
  }
}

static void run_any(const Adversarial& p, int64_t first, int64_t last) {
  switch (p.dtype) {
    case Dtype::f32: return chunks<float>(p, first, last);
    case Dtype::f64: return chunks<double>(p, first, last);
    case Dtype::bf16: return chunks<bf16>(p, first, last);
    case Dtype::f16: return chunks<f16>(p, first, last);
  }
}

}  // namespace

extern const AdversarialKernels adversarial_kernels{run_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
