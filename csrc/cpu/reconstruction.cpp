// Likelihoods of a target under a decoder's output. The formulas are those of genmod/reference/reconstruction.py.
#include "reconstruction.h"

#include "reduce.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

template <class A> GENMOD_INLINE A exp_of(A x) { return exp_parts(x).exp; }
template <class A> GENMOD_INLINE A sign_of(A x) { return choose(mask_if(!(magnitude(x) > 0), x), x, times_sign(A(1), x)); }  // zero and NaN pass

// softplus(x) and its derivatives, from one exponential of -|x|.
template <class A> struct Softplus { A value, slope, curvature; };
template <class A> GENMOD_INLINE Softplus<A> softplus(A x) {
  const A e = decay(-magnitude(x)).exp, less_likely = e / (1 + e);
  return {(x > 0 ? x : A(0)) + log1p_unit(e), (x > 0 ? A(1) : e) / (1 + e), less_likely / (1 + e)};
}

// What depends on the log-scale alone: one for all elements is worked out once, ahead of a loop that then has no branch
// on it. For a discretised logistic also the logarithm of 1 - e^-delta, with its derivative by log delta.
template <class A> struct Scale { A log, inverse, delta, log_width, growth; };
template <Kind K, class A> GENMOD_INLINE Scale<A> scale_of(A s, A half) {
  if constexpr (K == Kind::gaussian || K == Kind::laplace) return {s, exp_of(-s), 0, 0, 0};
  if constexpr (K == Kind::discretized_logistic) {
    const A precision = exp_of(-s);
    A delta = 2 * half * precision;
    delta = delta < A(1e-30) ? A(1e-30) : delta;  // both ways so far that the result no longer depends on it
    delta = delta > A(1e30) ? A(1e30) : delta;
    const Exp<A> decay = exp_parts(-delta);
    const bool small = delta < 1;
    // A small delta's logarithm is known, and never underflows: ln(2 half) - s.
    const A log_width = log_positive(small ? -decay.expm1 / delta : -decay.expm1) + (small ? log_positive(2 * half) - s : A(0));
    return {s, precision, delta, log_width, delta * decay.exp / -decay.expm1};
  }
  return {s, 0, 0, 0, 0};
}

// A discretised logistic's bin: both tails' softplus, and the width, each zero where the bin has no such end.
template <class A> struct Bin { A p, m; Softplus<A> below, above; A log_width, growth; };
template <class A> GENMOD_INLINE Bin<A> bin_of(A difference, A t, const Scale<A>& s, A half) {
  const A zero = 0;
  const auto first = mask_if(t < half - 1, zero), last = mask_if(t > 1 - half, zero);
  const A p = (difference + half) * s.inverse, m = (difference - half) * s.inverse;
  const Softplus<A> below = softplus(-p), above = softplus(m);
  return {p, m,
          {choose(last, zero, below.value), choose(last, zero, below.slope), choose(last, zero, below.curvature)},
          {choose(first, zero, above.value), choose(first, zero, above.slope), choose(first, zero, above.curvature)},
          choose(first | last, zero, s.log_width), choose(first | last, zero, s.growth)};
}

template <Kind K, class A> GENMOD_INLINE A value_of(A x, A t, const Scale<A>& s, A half) {
  const A d = t - x;
  if constexpr (K == Kind::bernoulli) {
    // softplus(x) - x t as |x| times the probability of the less likely outcome's target, so that nothing cancels.
    const A a = magnitude(x);
    return a * choose(negative(x), t, 1 - t) + log1p_unit(decay(-a).exp);
  }
  if constexpr (K == Kind::mse) return d * d;
  if constexpr (K == Kind::l1) return magnitude(d);
  if constexpr (K == Kind::gaussian) return A(0.5) * (d * d * s.inverse + (A(1.8378770664093454835606594728112) + s.log));
  if constexpr (K == Kind::laplace) return magnitude(d) * s.inverse + (A(0.69314718055994530941723212145818) + s.log);
  if constexpr (K == Kind::discretized_logistic) {
    const Bin<A> bin = bin_of(d, t, s, half);
    return bin.below.value + bin.above.value - bin.log_width;
  }
}

// Derivatives by output and log-scale.
template <class A> struct Slopes { A output, log_scale; };
template <Kind K, class A> GENMOD_INLINE Slopes<A> slopes_of(A x, A t, const Scale<A>& s, A half) {
  const A d = t - x;
  if constexpr (K == Kind::bernoulli) {
    const A e = decay(-magnitude(x)).exp, d = choose(negative(x), t, 1 - t) - e / (1 + e);  // sigmoid(-|x|)
    return {times_sign(d, x), A(0)};
  }
  if constexpr (K == Kind::mse) return {-2 * d, A(0)};
  if constexpr (K == Kind::l1) return {-sign_of(d), A(0)};
  if constexpr (K == Kind::gaussian) {
    const A scaled = d * s.inverse;
    return {-scaled, A(0.5) - A(0.5) * d * scaled};
  }
  if constexpr (K == Kind::laplace) {
    const A scaled = sign_of(d) * s.inverse;
    return {-scaled, 1 - d * scaled};
  }
  if constexpr (K == Kind::discretized_logistic) {
    const Bin<A> bin = bin_of(d, t, s, half);
    return {(bin.below.slope - bin.above.slope) * s.inverse, bin.p * bin.below.slope - bin.m * bin.above.slope + bin.growth};
  }
}

// The derivatives of those again: by output and output, by output and log-scale, by log-scale and log-scale.
template <class A> struct Curvatures { A output, mixed, log_scale; };
template <Kind K, class A> GENMOD_INLINE Curvatures<A> curvatures_of(A x, A t, const Scale<A>& s, A half) {
  const A d = t - x;
  if constexpr (K == Kind::bernoulli) return {softplus(x).curvature, A(0), A(0)};
  if constexpr (K == Kind::mse) return {A(2), A(0), A(0)};
  if constexpr (K == Kind::l1) return {A(0), A(0), A(0)};
  if constexpr (K == Kind::gaussian) {
    const A scaled = d * s.inverse;
    return {s.inverse, scaled, A(0.5) * d * scaled};
  }
  if constexpr (K == Kind::laplace) {
    const A scaled = sign_of(d) * s.inverse;
    return {A(0), scaled, d * scaled};
  }
  if constexpr (K == Kind::discretized_logistic) {
    const Bin<A> bin = bin_of(d, t, s, half);
    // Far out a curvature is zero before its factor is infinite, so that comes last.
    const A below = bin.p * bin.below.curvature, above = bin.m * bin.above.curvature;
    return {(bin.below.curvature + bin.above.curvature) * s.inverse * s.inverse,
            (below + above - (bin.below.slope - bin.above.slope)) * s.inverse,
            bin.p * (below - bin.below.slope) + bin.m * (above + bin.above.slope) + bin.growth * (bin.growth + (s.delta - 1))};
  }
}

template <class A> GENMOD_INLINE A raise(A s, A low) { return s < low ? low : s; }

// ONE: a single log-scale.
template <Kind K, bool ONE, class A>
static void forward_tile(const A* __restrict x, const A* __restrict t, const A* __restrict s, A* __restrict out, A low, A half, int64_t n) {
  const Scale<A> one = scale_of<K>(raise(*s, low), half);
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) { out[i] = value_of<K>(x[i], t[i], ONE ? one : scale_of<K>(raise(s[i], low), half), half); }, x, t);
}

// With VALUES the loss as well: what is computed for both of it and its derivatives is computed once. No pointer is
// optional, since a loop with a condition on one is not vectorised where it is long.
template <Kind K, bool ONE, bool VALUES, class A>
static void backward_tile(const A* __restrict x, const A* __restrict t, const A* __restrict s, const A* __restrict g, A* __restrict dx, A* __restrict ds,
                          A* __restrict values, A low, A half, int64_t n) {
  const Scale<A> one = scale_of<K>(raise(*s, low), half);
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) {
    const Scale<A> scale = ONE ? one : scale_of<K>(raise(s[i], low), half);
    const Slopes<A> d = slopes_of<K>(x[i], t[i], scale, half);
    dx[i] = g[i] * d.output;
    if (has_scale(K)) ds[i] = !ONE && s[i] < low ? A(0) : g[i] * d.log_scale;
    if (VALUES) values[i] = value_of<K>(x[i], t[i], scale, half);
  }, x, t, dx);
}

// What arrives at both gradients, `u` and `v`, goes back to output and log-scale and to the gradient g that came in.
template <Kind K, bool ONE, class A>
static void double_backward_tile(const A* __restrict x, const A* __restrict t, const A* __restrict s, const A* __restrict g, const A* __restrict u,
                                 const A* __restrict v, A* __restrict dx, A* __restrict ds, A* __restrict dg, A low, A half, int64_t n) {
  const Scale<A> one = scale_of<K>(raise(*s, low), half);
  const A one_open = *s < low ? A(0) : A(1);
  for_each<A>(n, [&](int64_t i) __attribute__((always_inline)) {
    const Scale<A> scale = ONE ? one : scale_of<K>(raise(s[i], low), half);
    const Slopes<A> slope = slopes_of<K>(x[i], t[i], scale, half);
    const Curvatures<A> curvature = curvatures_of<K>(x[i], t[i], scale, half);
    if (has_scale(K)) {
      const A open = ONE ? one_open : s[i] < low ? A(0) : A(1);  // below its bound a log-scale has no derivatives
      dx[i] = g[i] * (u[i] * curvature.output + open * v[i] * curvature.mixed);
      ds[i] = g[i] * open * (u[i] * curvature.mixed + v[i] * curvature.log_scale);
      dg[i] = u[i] * slope.output + open * v[i] * slope.log_scale;
    } else {
      dx[i] = g[i] * u[i] * curvature.output;
      dg[i] = u[i] * slope.output;
    }
  }, x, t, dx);
}

// What has no weight counts for nothing, whatever it is.
template <class A> static void weigh(A* __restrict values, const A* __restrict w, int64_t n) {
  for (int64_t i = 0; i < n; i++) values[i] = w[i] == 0 ? A(0) : values[i] * w[i];
}

template <class A> static const A* load_any(const Input& in, int64_t cols, int64_t begin, int64_t n, A* buffer) {
  switch (in.dtype) {
    case Dtype::f32: return load<A, float>(in.rows, cols, begin, n, buffer);
    case Dtype::f64: return load<A, double>(in.rows, cols, begin, n, buffer);
    case Dtype::bf16: return load<A, bf16>(in.rows, cols, begin, n, buffer);
    case Dtype::f16: return load<A, f16>(in.rows, cols, begin, n, buffer);
    case Dtype::u8: return load<A, uint8_t>(in.rows, cols, begin, n, buffer);
  }
  return buffer;
}

// One output gradient of a chunk: computed where it belongs if it can be, in the buffer otherwise.
template <class A> struct OutTile {
  const ReconstructionBackward::Out& out;
  int64_t cols, begin, n;
  A* buffer;
  A* data;

  OutTile(const ReconstructionBackward::Out& o, int64_t cols, int64_t begin, int64_t n, A* buffer) : out(o), cols(cols), begin(begin), n(n), buffer(buffer), data(buffer) {
    if (o.data && o.dtype == (sizeof(A) == 8 ? Dtype::f64 : Dtype::f32)) data = place<A, A>(o.data, o.stride, cols, begin, n, buffer);
  }
  void flush() const {
    if (!out.data) return;
    switch (out.dtype) {
      case Dtype::f32: return store<A, float>(buffer, data, out.data, out.stride, cols, begin, n);
      case Dtype::f64: return store<A, double>(buffer, data, out.data, out.stride, cols, begin, n);
      case Dtype::bf16: return store<A, bf16>(buffer, data, out.data, out.stride, cols, begin, n);
      case Dtype::f16: return store<A, f16>(buffer, data, out.data, out.stride, cols, begin, n);
      case Dtype::u8: return;
    }
  }
};

template <class A> static A single_log_scale(const Reconstruction& p) {
  A value;
  return p.log_scale.rows.data ? *load_any<A>(p.log_scale, 1, 0, 1, &value) : (A)p.fixed;
}

// The inputs of a chunk as A.
template <class A> struct Inputs {
  alignas(64) A xb[kChunk], tb[kChunk], sb[kChunk], wb[kChunk];
  const A one;
  const A *x, *t, *s, *w;

  explicit Inputs(const Reconstruction& p) : one(p.one_log_scale ? single_log_scale<A>(p) : A(0)) {}
  void read(const Reconstruction& p, int64_t begin, int64_t n) {
    x = load_any<A>(p.output, p.cols, begin, n, xb);
    t = load_any<A>(p.target, p.cols, begin, n, tb);
    s = p.one_log_scale ? &one : load_any<A>(p.log_scale, p.cols, begin, n, sb);
    w = p.weight.rows.data ? load_any<A>(p.weight, p.cols, begin, n, wb) : nullptr;
  }
};

template <Kind K, bool ONE, class A> static void forward_chunks(const ReconstructionForward& p, int64_t first, int64_t last) {
  Inputs<A> in(p);
  alignas(64) A vb[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    in.read(p, begin, n);
    A* values = p.values ? (A*)p.values + begin : vb;
    forward_tile<K, ONE>(in.x, in.t, in.s, values, (A)p.min_log_scale, (A)p.half, n);
    if (in.w) weigh(values, in.w, n);
    if (p.sums) add_to_samples(values, begin, n, chunk, p.sample, p.sums);
  }
}

template <Kind K, bool ONE, class A> static void backward_chunks(const ReconstructionBackward& p, int64_t first, int64_t last) {
  Inputs<A> in(p);
  Spread<A> grad{(const A*)p.grad, p.grad_per_element, p.sample, (A)p.scale};
  alignas(64) A xb[kChunk], sb[kChunk], vb[kChunk];
  const A low = (A)p.min_log_scale;
  const bool want_log_scale = p.d_log_scale.data || p.log_scale_sums;
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    in.read(p, begin, n);
    const A* g = grad.tile(begin, n);
    const OutTile<A> dx(p.d_output, p.out_cols, begin, n, xb), ds(p.d_log_scale, p.out_cols, begin, n, sb);
    // A Laplace distribution's loss and slope would share a product, and round it otherwise than the slope alone does.
    constexpr bool kTogether = K != Kind::laplace;
    const auto tile = kTogether && p.sums ? backward_tile<K, ONE, kTogether, A> : backward_tile<K, ONE, false, A>;
    tile(in.x, in.t, in.s, g, dx.data, ds.data, vb, low, (A)p.half, n);
    if (!kTogether && p.sums) forward_tile<K, ONE>(in.x, in.t, in.s, vb, low, (A)p.half, n);
    if (in.w) {
      weigh(dx.data, in.w, n);
      if (want_log_scale) weigh(ds.data, in.w, n);
      if (p.sums) weigh(vb, in.w, n);
    }
    if (p.sums) add_to_samples(vb, begin, n, chunk, p.sample, p.sums);
    dx.flush();
    ds.flush();
    if (p.log_scale_sums) p.log_scale_sums[chunk] = in.one < low ? 0 : sum(ds.data, n);
  }
}

// What arrives at a gradient, as A: per element, one for all, or nothing.
template <class A> struct Arriving {
  const Input& in;
  const bool per_element;
  alignas(64) A buffer[kChunk];

  Arriving(const Input& in, bool per_element) : in(in), per_element(per_element && in.rows.data) {
    A value = 0;
    if (!this->per_element && in.rows.data) value = *load_any<A>(in, 1, 0, 1, &value);
    for (A& b : buffer) b = value;
  }
  const A* tile(int64_t cols, int64_t begin, int64_t n) { return per_element ? load_any<A>(in, cols, begin, n, buffer) : buffer; }
};

template <Kind K, bool ONE, class A> static void double_backward_chunks(const ReconstructionDoubleBackward& p, int64_t first, int64_t last) {
  Inputs<A> in(p);
  Spread<A> grad{(const A*)p.grad, p.grad_per_element, p.sample, (A)p.scale};
  Arriving<A> by_output(p.by_output, true), by_log_scale(p.by_log_scale, !p.one_log_scale);
  alignas(64) A xb[kChunk], sb[kChunk], gb[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    in.read(p, begin, n);
    const A *g = grad.tile(begin, n), *u = by_output.tile(p.cols, begin, n), *v = by_log_scale.tile(p.cols, begin, n);
    const OutTile<A> dx(p.d_output, p.out_cols, begin, n, xb), ds(p.d_log_scale, p.out_cols, begin, n, sb);
    A* dg = p.grad_values ? (A*)p.grad_values + begin : gb;
    double_backward_tile<K, ONE>(in.x, in.t, in.s, g, u, v, dx.data, ds.data, dg, (A)p.min_log_scale, (A)p.half, n);
    if (in.w) {
      weigh(dx.data, in.w, n);
      if (has_scale(K)) weigh(ds.data, in.w, n);
      weigh(dg, in.w, n);
    }
    dx.flush();
    ds.flush();
    if (p.sums) add_to_samples(dg, begin, n, chunk, p.sample, p.sums);
    if (p.log_scale_sums) p.log_scale_sums[chunk] = sum(ds.data, n);
  }
}

// Calls f with what is known at compile time: the kind, whether one log-scale serves all, and the arithmetic's type.
template <Kind K, bool ONE, class A> struct Mode { static constexpr Kind kind = K; static constexpr bool one = ONE; using type = A; };
template <Kind K, class F> static void with_scale(const Reconstruction& p, F&& f) {
  if (p.one_log_scale) p.wide ? f(Mode<K, true, double>{}) : f(Mode<K, true, float>{});
  else p.wide ? f(Mode<K, false, double>{}) : f(Mode<K, false, float>{});
}
template <Kind K, class F> static void without_scale(const Reconstruction& p, F&& f) {
  p.wide ? f(Mode<K, true, double>{}) : f(Mode<K, true, float>{});
}
template <class F> static void with_mode(const Reconstruction& p, F&& f) {
  switch (p.kind) {
    case Kind::bernoulli: return without_scale<Kind::bernoulli>(p, f);
    case Kind::mse: return without_scale<Kind::mse>(p, f);
    case Kind::l1: return without_scale<Kind::l1>(p, f);
    case Kind::gaussian: return with_scale<Kind::gaussian>(p, f);
    case Kind::laplace: return with_scale<Kind::laplace>(p, f);
    case Kind::discretized_logistic: return with_scale<Kind::discretized_logistic>(p, f);
  }
}

static void forward_any(const ReconstructionForward& p, int64_t first, int64_t last) {
  with_mode(p, [&](auto mode) { forward_chunks<decltype(mode)::kind, decltype(mode)::one, typename decltype(mode)::type>(p, first, last); });
}
static void backward_any(const ReconstructionBackward& p, int64_t first, int64_t last) {
  with_mode(p, [&](auto mode) { backward_chunks<decltype(mode)::kind, decltype(mode)::one, typename decltype(mode)::type>(p, first, last); });
}
static void double_backward_any(const ReconstructionDoubleBackward& p, int64_t first, int64_t last) {
  with_mode(p, [&](auto mode) { double_backward_chunks<decltype(mode)::kind, decltype(mode)::one, typename decltype(mode)::type>(p, first, last); });
}

}  // namespace

extern const ReconstructionKernels reconstruction_kernels{forward_any, backward_any, double_backward_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
