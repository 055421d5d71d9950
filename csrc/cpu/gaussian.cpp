// Sampling from, and the divergence of, diagonal Gaussians. The formulas are those of genmod/reference/gaussian.py.
#include "gaussian.h"

#include "philox.h"
#include "reduce.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// logvar, bounded, and the first and second derivative of the bound.
template <class A> struct Bounded { A value, slope, curvature; };

template <Clamp C, class A> GENMOD_INLINE Bounded<A> bound(A x) {
  const A low = -30, high = 20;
  if (C == Clamp::none) return {x, A(1), A(0)};
  if (C == Clamp::hard) {
    const A below = x < low ? low : x;
    return {below > high ? high : below, (x < low || x > high) ? A(0) : A(1), A(0)};
  }
  // high - softplus(high - x), then low + softplus(. - low); softplus(t) = max(t, 0) + log(1 + e^-|t|)
  const A t = high - x, et = decay(-magnitude(t)).exp;
  const A upper = (t > 0 ? x : high) - log1p_unit(et);
  const A u = upper - low, eu = decay(-magnitude(u)).exp;
  const A value = (u > 0 ? upper : low) + log1p_unit(eu);
  // slope = a b, of sigmoids whose complements do not cancel
  const A denominator = (1 + et) * (1 + eu), slope = (t > 0 ? A(1) : et) * (u > 0 ? A(1) : eu) / denominator;
  const A not_a = (t > 0 ? et : A(1)) / (1 + et), a_not_b = (t > 0 ? A(1) : et) * (u > 0 ? eu : A(1)) / denominator;
  return {value, slope, slope * (a_not_b - not_a)};
}

// Exponentials of a logvar that `bound` returned, or of the difference of two.
template <Clamp C, class A> GENMOD_INLINE Exp<A> exp_of(A bounded) {
  if constexpr (C == Clamp::none) return exp_parts(bounded);
  return exp_parts_within(bounded);
}

// What a bounded logvar l stands for: the deviation e^(l/2), if it is asked for; expm1(l); and expm1(l) - l.
template <class A> struct Variance { A deviation, growth, excess; };
template <bool DEVIATION, Clamp C, class A> GENMOD_INLINE Variance<A> variance_of(A bounded) {
  if constexpr (!DEVIATION) {
    const Exp<A> whole = exp_of<C>(bounded);
    return {A(0), whole.expm1, whole.expm1_minus_x};
  }
  // One exponential for all. Both terms of the last are positive near the prior, so nothing cancels there.
  const Exp<A> half = exp_of<C>(A(0.5) * bounded);
  return {half.exp, half.expm1 * (half.expm1 + 2), 2 * half.expm1_minus_x + half.expm1 * half.expm1};
}

// expm1(l - l') and the same minus l - l'. The subtraction rounds by up to half an ulp of a number that is then an
// exponent; what it dropped is recovered exactly (Knuth) and put back to first order.
template <class A> struct Ratio { A growth, excess; };
template <Clamp C, class A> GENMOD_INLINE Ratio<A> variance_ratio(A l, A other) {
  const A delta = l - other, back = l - delta;
  const A dropped = (l - (delta + back)) + (back - other);
  const Variance<A> v = variance_of<false, C>(delta);
  return {v.growth + dropped * (v.growth + 1), v.excess + dropped * v.growth};
}

template <bool FREE, class A> GENMOD_INLINE A floor_at(A kl, A free_bits) { return FREE && kl <= free_bits ? free_bits : kl; }

template <bool Z, bool KL, Clamp C, bool FREE, class A>
static void forward_tile(const A* __restrict m, const A* __restrict lv, const A* __restrict eps, A* __restrict z, A* __restrict kl, A free_bits, int64_t n) {
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) {
    const Variance<A> v = variance_of<Z, C>(bound<C>(lv[i]).value);
    if (Z) z[i] = m[i] + v.deviation * eps[i];
    if (KL) kl[i] = floor_at<FREE>(A(0.5) * (v.excess + m[i] * m[i]), free_bits);
  }, m, lv, eps, z);
}

template <Clamp C, bool FREE, class A>
static void pair_tile(const A* __restrict m, const A* __restrict lv, const A* __restrict om, const A* __restrict olv, A* __restrict kl, A free_bits, int64_t n) {
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) {
    const A other = bound<C>(olv[i]).value, delta = m[i] - om[i];
    const A excess = variance_ratio<C>(bound<C>(lv[i]).value, other).excess;
    kl[i] = floor_at<FREE>(A(0.5) * (excess + delta * delta * exp_of<C>(-other).exp), free_bits);
  }, m, lv, om, olv);
}

template <bool Z, bool KL, Clamp C, bool FREE, class A>
static void backward_tile(const A* __restrict m, const A* __restrict lv, const A* __restrict eps, const A* __restrict gz, const A* __restrict g,
                          A* __restrict dm, A* __restrict dlv, A free_bits, int64_t n) {
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) {
    const Bounded<A> l = bound<C>(lv[i]);
    const Variance<A> variance = variance_of<Z, C>(l.value);
    A mean = 0, logvar = 0;
    if (KL) {
      A gi = g[i];
      if (FREE) gi = A(0.5) * (variance.excess + m[i] * m[i]) <= free_bits ? A(0) : gi;
      mean = gi * m[i];
      logvar = gi * variance.growth;
    }
    if (Z) {
      mean += gz[i];
      logvar += gz[i] * variance.deviation * eps[i];
    }
    dm[i] = mean;
    dlv[i] = A(0.5) * l.slope * logvar;
  }, m, lv, eps, gz, dm, dlv);
}

template <Clamp C, bool FREE, class A>
static void pair_backward_tile(const A* __restrict m, const A* __restrict lv, const A* __restrict om, const A* __restrict olv, const A* __restrict g,
                               A* __restrict dm, A* __restrict dlv, A* __restrict dom, A* __restrict dolv, A free_bits, int64_t n) {
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) {
    const Bounded<A> l = bound<C>(lv[i]), other = bound<C>(olv[i]);
    const A delta = m[i] - om[i], precision = exp_of<C>(-other.value).exp;
    const Ratio<A> ratio = variance_ratio<C>(l.value, other.value);
    const A square = delta * delta * precision;
    A gi = g[i];
    if (FREE) gi = A(0.5) * (ratio.excess + square) <= free_bits ? A(0) : gi;
    const A mean = gi * delta * precision;
    dm[i] = mean;
    dom[i] = -mean;
    dlv[i] = A(0.5) * l.slope * gi * ratio.growth;
    dolv[i] = A(-0.5) * other.slope * gi * (ratio.growth + square);
  }, m, lv, om, olv, dm, dlv, dom, dolv);
}

// What arrives at both gradients, `u` and `v`, goes back to mean and logvar and to the gradients that came in.
template <bool Z, bool KL, Clamp C, bool FREE, class A>
static void double_backward_tile(const A* __restrict m, const A* __restrict lv, const A* __restrict eps, const A* __restrict gz, const A* __restrict g,
                                 const A* __restrict u, const A* __restrict v, A* __restrict dgz, A* __restrict dg, A* __restrict dm, A* __restrict dlv,
                                 A free_bits, int64_t n) {
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) {
    const Bounded<A> l = bound<C>(lv[i]);
    const Variance<A> variance = variance_of<Z, C>(l.value);
    const A w = A(0.5) * v[i];
    A mean = 0, once = 0, twice = 0;  // once and twice: what logvar's gradient is by the clamped logvar, and its derivative
    if (KL) {
      A gi = g[i], open = 1;
      if (FREE) open = A(0.5) * (variance.excess + m[i] * m[i]) <= free_bits ? A(0) : A(1);
      gi = open > 0 ? gi : A(0);
      mean = u[i] * gi;
      once = gi * variance.growth;
      twice = gi * (variance.growth + 1);
      dg[i] = open > 0 ? u[i] * m[i] + w * l.slope * variance.growth : A(0);
    }
    if (Z) {
      const A spread = variance.deviation * eps[i], moved = gz[i] * spread;
      once += moved;
      twice += A(0.5) * moved;
      dgz[i] = u[i] + w * l.slope * spread;
    }
    dm[i] = mean;
    dlv[i] = w * (C == Clamp::soft ? l.curvature * once + l.slope * l.slope * twice : l.slope * twice);
  }, m, lv, eps, gz, u, v, dgz, dm, dlv);
}

// Calls f with a compile-time clamp and free-bits flag.
template <Clamp C, bool FREE> struct Mode { static constexpr Clamp clamp = C; static constexpr bool free = FREE; };
template <class F> static void with_mode(Clamp c, bool free, F&& f) {
  if (c == Clamp::none) free ? f(Mode<Clamp::none, true>{}) : f(Mode<Clamp::none, false>{});
  else if (c == Clamp::hard) free ? f(Mode<Clamp::hard, true>{}) : f(Mode<Clamp::hard, false>{});
  else free ? f(Mode<Clamp::soft, true>{}) : f(Mode<Clamp::soft, false>{});
}

template <class A> static const A* draw_noise(uint64_t key, int64_t begin, int64_t n, A* buffer) {
  for (int64_t i = 0; i < n; i += 64) {  // the buffer is a whole number of blocks long
    const uint64_t block = (uint64_t)(begin + i) / 64;
    if constexpr (same<A, float>) {
      philox_normal_block(key, block, buffer + i);
    } else {
      alignas(64) float normals[64];
      philox_normal_block(key, block, normals);
      for (int64_t j = 0; j < 64; j++) buffer[i + j] = normals[j];
    }
  }
  return buffer;
}

template <class A, class S, class P> static const A* noise_tile(const P& p, int64_t begin, int64_t n, A* buffer) {
  if (p.draw) return draw_noise(p.key, begin, n, buffer);
  return p.noise ? load<A, S>({p.noise, 0}, p.numel, begin, n, buffer) : nullptr;
}

// The incoming gradient of the KL.
template <class A> static Spread<A> grad_kl(const GaussianBackward& p) { return {(const A*)p.grad_kl, p.grad_kl_per_element, p.sample, (A)p.scale}; }

template <class S> static void forward_chunks(const GaussianForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  alignas(64) A mb[kChunk], lb[kChunk], eb[kChunk], zb[kChunk], kb[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    const A* m = load<A, S>(p.mean, p.cols, begin, n, mb);
    const A* lv = load<A, S>(p.logvar, p.cols, begin, n, lb);
    const A* eps = noise_tile<A, S>(p, begin, n, eb);
    A* z = p.z ? place<A, S>(p.z, 0, p.numel, begin, n, zb) : zb;
    A* kl = p.kl ? (A*)p.kl + begin : kb;
    const bool want_kl = p.kl || p.sums;
    with_mode(p.clamp, want_kl && p.free_bits > 0, [&](auto mode) {
      using M = decltype(mode);
      if (p.z && want_kl) forward_tile<true, true, M::clamp, M::free>(m, lv, eps, z, kl, (A)p.free_bits, n);
      else if (p.z) forward_tile<true, false, M::clamp, false>(m, lv, eps, z, kl, (A)0, n);
      else forward_tile<false, true, M::clamp, M::free>(m, lv, eps, z, kl, (A)p.free_bits, n);
    });
    if (p.z) store<A, S>(zb, z, p.z, 0, p.numel, begin, n);
    if (p.sums) add_to_samples(kl, begin, n, chunk, p.sample, p.sums);
  }
}

template <class S> static void pair_chunks(const GaussianForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  alignas(64) A mb[kChunk], lb[kChunk], omb[kChunk], olb[kChunk], kb[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    const A* m = load<A, S>(p.mean, p.cols, begin, n, mb);
    const A* lv = load<A, S>(p.logvar, p.cols, begin, n, lb);
    const A* om = load<A, S>(p.other_mean, p.cols, begin, n, omb);
    const A* olv = load<A, S>(p.other_logvar, p.cols, begin, n, olb);
    A* kl = p.kl ? (A*)p.kl + begin : kb;
    with_mode(p.clamp, p.free_bits > 0, [&](auto mode) {
      using M = decltype(mode);
      pair_tile<M::clamp, M::free>(m, lv, om, olv, kl, (A)p.free_bits, n);
    });
    if (p.sums) add_to_samples(kl, begin, n, chunk, p.sample, p.sums);
  }
}

// One output gradient of a chunk: computed where it belongs if it can be, in the buffer otherwise.
template <class A, class S> struct OutTile {
  const GaussianBackward::Out& out;
  int64_t cols, begin, n;
  A* buffer;
  A* data;
  OutTile(const GaussianBackward::Out& o, int64_t cols, int64_t begin, int64_t n, A* buffer)
      : out(o), cols(cols), begin(begin), n(n), buffer(buffer), data(o.data ? place<A, S>(o.data, o.stride, cols, begin, n, buffer) : buffer) {}
  void flush() const {
    if (out.data) store<A, S>(buffer, data, out.data, out.stride, cols, begin, n);
  }
};

template <class S> static void backward_chunks(const GaussianBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  Spread<A> spread = grad_kl<A>(p);
  alignas(64) A mb[kChunk], lb[kChunk], eb[kChunk], zb[kChunk], dmb[kChunk], dlb[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    const A* m = load<A, S>(p.mean, p.cols, begin, n, mb);
    const A* lv = load<A, S>(p.logvar, p.cols, begin, n, lb);
    const A* eps = p.grad_z ? noise_tile<A, S>(p, begin, n, eb) : nullptr;
    const A* gz = p.grad_z ? load<A, S>({p.grad_z, 0}, p.numel, begin, n, zb) : nullptr;
    const A* g = p.grad_kl ? spread.tile(begin, n) : nullptr;
    const OutTile<A, S> dm(p.d_mean, p.out_cols, begin, n, dmb), dl(p.d_logvar, p.out_cols, begin, n, dlb);
    with_mode(p.clamp, p.grad_kl && p.free_bits > 0, [&](auto mode) {
      using M = decltype(mode);
      if (p.grad_z && p.grad_kl) backward_tile<true, true, M::clamp, M::free>(m, lv, eps, gz, g, dm.data, dl.data, (A)p.free_bits, n);
      else if (p.grad_z) backward_tile<true, false, M::clamp, false>(m, lv, eps, gz, g, dm.data, dl.data, (A)0, n);
      else backward_tile<false, true, M::clamp, M::free>(m, lv, eps, gz, g, dm.data, dl.data, (A)p.free_bits, n);
    });
    dm.flush();
    dl.flush();
  }
}

template <class S> static void pair_backward_chunks(const GaussianBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  Spread<A> spread = grad_kl<A>(p);
  alignas(64) A mb[kChunk], lb[kChunk], omb[kChunk], olb[kChunk], b0[kChunk], b1[kChunk], b2[kChunk], b3[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    const A* m = load<A, S>(p.mean, p.cols, begin, n, mb);
    const A* lv = load<A, S>(p.logvar, p.cols, begin, n, lb);
    const A* om = load<A, S>(p.other_mean, p.cols, begin, n, omb);
    const A* olv = load<A, S>(p.other_logvar, p.cols, begin, n, olb);
    const A* g = spread.tile(begin, n);
    const OutTile<A, S> dm(p.d_mean, p.out_cols, begin, n, b0), dl(p.d_logvar, p.out_cols, begin, n, b1);
    const OutTile<A, S> dom(p.d_other_mean, p.other_out_cols, begin, n, b2), dol(p.d_other_logvar, p.other_out_cols, begin, n, b3);
    with_mode(p.clamp, p.free_bits > 0, [&](auto mode) {
      using M = decltype(mode);
      pair_backward_tile<M::clamp, M::free>(m, lv, om, olv, g, dm.data, dl.data, dom.data, dol.data, (A)p.free_bits, n);
    });
    dm.flush();
    dl.flush();
    dom.flush();
    dol.flush();
  }
}

template <class S> static void double_backward_chunks(const GaussianDoubleBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  Spread<A> spread = grad_kl<A>(p);
  alignas(64) A mb[kChunk], lb[kChunk], eb[kChunk], zb[kChunk], ub[kChunk], vb[kChunk], dzb[kChunk], dgb[kChunk], dmb[kChunk], dlb[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    const A* m = load<A, S>(p.mean, p.cols, begin, n, mb);
    const A* lv = load<A, S>(p.logvar, p.cols, begin, n, lb);
    const A* u = load<A, S>(p.other_mean, p.cols, begin, n, ub);
    const A* v = load<A, S>(p.other_logvar, p.cols, begin, n, vb);
    const A* eps = p.grad_z ? noise_tile<A, S>(p, begin, n, eb) : nullptr;
    const A* gz = p.grad_z ? load<A, S>({p.grad_z, 0}, p.numel, begin, n, zb) : nullptr;
    const A* g = p.grad_kl ? spread.tile(begin, n) : nullptr;
    A* dgz = p.d_grad_z ? place<A, S>(p.d_grad_z, 0, p.numel, begin, n, dzb) : dzb;
    A* dg = p.d_grad_kl ? (A*)p.d_grad_kl + begin : dgb;
    const OutTile<A, S> dm(p.d_mean, p.out_cols, begin, n, dmb), dl(p.d_logvar, p.out_cols, begin, n, dlb);
    with_mode(p.clamp, p.grad_kl && p.free_bits > 0, [&](auto mode) {
      using M = decltype(mode);
      if (p.grad_z && p.grad_kl) double_backward_tile<true, true, M::clamp, M::free>(m, lv, eps, gz, g, u, v, dgz, dg, dm.data, dl.data, (A)p.free_bits, n);
      else if (p.grad_z) double_backward_tile<true, false, M::clamp, false>(m, lv, eps, gz, g, u, v, dgz, dg, dm.data, dl.data, (A)0, n);
      else double_backward_tile<false, true, M::clamp, M::free>(m, lv, eps, gz, g, u, v, dgz, dg, dm.data, dl.data, (A)p.free_bits, n);
    });
    if (p.d_grad_z) store<A, S>(dzb, dgz, p.d_grad_z, 0, p.numel, begin, n);
    if (p.sums) add_to_samples(dg, begin, n, chunk, p.sample, p.sums);
    dm.flush();
    dl.flush();
  }
}

// One entry point per job: picks the storage type.
#define GENMOD_BY_DTYPE(name, Params)                                            \
  static void name##_any(const Params& p, int64_t first, int64_t last) {         \
    switch (p.dtype) {                                                           \
      case Dtype::f32: return name##_chunks<float>(p, first, last);              \
      case Dtype::f64: return name##_chunks<double>(p, first, last);             \
      case Dtype::bf16: return name##_chunks<bf16>(p, first, last);              \
      case Dtype::f16: return name##_chunks<f16>(p, first, last);                \
    }                                                                            \
  }
GENMOD_BY_DTYPE(forward, GaussianForward)
GENMOD_BY_DTYPE(pair, GaussianForward)
GENMOD_BY_DTYPE(backward, GaussianBackward)
GENMOD_BY_DTYPE(pair_backward, GaussianBackward)
GENMOD_BY_DTYPE(double_backward, GaussianDoubleBackward)

}  // namespace

extern const GaussianKernels gaussian_kernels{forward_any, pair_any, backward_any, pair_backward_any, double_backward_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
