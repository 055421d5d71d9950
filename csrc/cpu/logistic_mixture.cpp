// PixelCNN++'s likelihood. The formulas are those of genmod/reference/logistic_mixture.py.
#include "logistic_mixture.h"

#include <limits>
#include <vector>

#include "tile.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

constexpr int64_t kLanes = 16;  // tiles are padded to whole groups of so many pixels

// `count` rows of a tile's pixels, `stride` apart.
template <class A> struct Tile {
  const A* data;
  int64_t stride;
  const A* row(int64_t r) const { return data + r * stride; }
};

// Pixels [begin, begin + n) of `count` channels of a sample, as A: in place, or in a buffer padded with zeros.
template <class A, class S>
static Tile<A> load_planes(const Planes& p, int64_t sample, int64_t begin, int64_t n, int64_t count, A* __restrict buffer) {
  const S* data = (const S*)p.data + sample * p.batch + begin * p.pixel;
  if constexpr (same<A, S>)
    if (p.pixel == 1 && n % kLanes == 0) return {data, p.channel};
  // A few pixels at a time: with channels innermost, each line of memory is then read while it is near.
  for (int64_t group = 0; group < n; group += kLanes) {
    const int64_t length = n - group < kLanes ? n - group : kLanes;
    for (int64_t c = 0; c < count; c++) {
      const S* from = data + c * p.channel + group * p.pixel;
      A* to = buffer + c * kTilePixels + group;
      if (p.pixel == 1)
        for (int64_t i = 0; i < length; i++) to[i] = widen(from[i]);
      else
        for (int64_t i = 0; i < length; i++) to[i] = widen(from[i * p.pixel]);
      for (int64_t i = length; i < kLanes; i++) to[i] = 0;
    }
  }
  return {buffer, kTilePixels};
}

// The same for whatever the tensor holds.
template <class A>
static Tile<A> load_any(const Planes& p, int64_t sample, int64_t begin, int64_t n, int64_t count, A* buffer) {
  if (p.dtype == Dtype::bf16) return load_planes<A, bf16>(p, sample, begin, n, count, buffer);
  if (p.dtype == Dtype::f16) return load_planes<A, f16>(p, sample, begin, n, count, buffer);
  if constexpr (same<A, double>)
    if (p.dtype == Dtype::f64) return load_planes<A, double>(p, sample, begin, n, count, buffer);
  return load_planes<A, float>(p, sample, begin, n, count, buffer);
}

// log_positive reads a NaN's bits as a number.
template <class A> GENMOD_INLINE A log_of(A x) { return choose(mask_if(x != x, A()), x, log_positive(x)); }

// tanh x and its derivative, neither of which cancels.
template <class A> struct Tanh { A value, slope; };
template <class A> GENMOD_INLINE Tanh<A> tanh_of(A x) {
  const Decay<A> e = decay(-2 * magnitude(x));
  const A r = 1 / (2 + e.expm1), t = -e.expm1 * r;
  return {choose(negative(x), -t, t), 4 * e.exp * r * r};
}

// Below this width of a bin, in scales, (1 - e^-w) / w is 1 to rounding; w itself may have underflowed.
template <class A> constexpr A kNarrowest = A(1e-9);
template <> constexpr double kNarrowest<double> = 1e-30;

// What all pixels share.
template <class A> struct Constants {
  A half, log_bin, min_log_scale, log_narrowest;  // log_bin: ln(2 half)
  explicit Constants(const LogisticMixture& p)
      : half((A)p.half_bin), log_bin((A)log(2 * p.half_bin)), min_log_scale((A)p.min_log_scale), log_narrowest((A)log((double)kNarrowest<A>)) {}
};

// ln p = linear + ln(mass / spread) for one bin of one logistic distribution. `spread` is in [1, 4], `mass` in (0, 1].
template <class A> struct Bin {
  A linear, mass, spread;
  A mean_slope, log_scale_slope;  // of ln p
};

template <bool GRAD, class A> GENMOD_INLINE Bin<A> bin_of(A x, A mean, A raw_log_scale, const Constants<A>& k) {
  const auto bounded = mask_if(raw_log_scale < k.min_log_scale, A());
  const A log_scale = choose(bounded, k.min_log_scale, raw_log_scale);
  const A inverse = exp_parts(-log_scale).exp, centred = x - mean;
  const A a = inverse * (centred + k.half), b = inverse * (centred - k.half);
  const auto lowest = mask_if(x < k.half - 1, A()), highest = mask_if(x > 1 - k.half, A()), outer = lowest | highest;
  const auto low_a = negative(a), low_b = negative(b);
  const A ea = choose(highest, A(0), decay(-magnitude(a)).exp), eb = choose(lowest, A(0), decay(-magnitude(b)).exp);
  const A width = 2 * k.half * inverse;
  const auto narrow = mask_if(width < kNarrowest<A>, A());
  const A held = choose(narrow, kNarrowest<A>, width);
  const Decay<A> ew = decay(-held);
  Bin<A> r;
  r.mass = choose(outer, A(1), -ew.expm1);
  r.spread = (1 + ea) * (1 + eb);
  r.linear = choose(low_a & ~highest, a, A(0)) - choose(low_b | lowest, A(0), b);
  r.linear += choose(narrow & ~outer, k.log_bin - log_scale - k.log_narrowest, A(0));  // what holding the width up gave
  if (GRAD) {
    const A sa = choose(highest, A(0), choose(low_a, A(1), ea) / (1 + ea));  // sigmoid(-a)
    const A sb = choose(lowest, A(0), choose(low_b, eb, A(1)) / (1 + eb));   // sigmoid(b)
    const A ratio = choose(outer, A(0), held * ew.exp / r.mass);             // w / (e^w - 1)
    r.mean_slope = inverse * (sb - sa);
    r.log_scale_slope = choose(bounded, A(0), (b * sb - a * sa) - ratio);
  }
  return r;
}

// Where the parameters of component k stand among the rows of `output`, and how many rows a channel has for it.
struct Rows3 { int64_t mean, log_scale, coefficient; };
template <int C> static Rows3 rows_of(int64_t k, int64_t components, int channel) {
  const int64_t block = components + channel * components * (C == 3 ? 3 : 2) + k;
  return {block, block + components, block + 2 * components};
}

// ln of pi_k p_k up to the sum over the priors, for component k; and, if wanted, its slopes by each of the component's
// parameters, at the rows of `slopes` that are theirs. The row of the logit gets the unnormalised prior.
template <int C, bool GRAD, class A>
static void component(const Tile<A>& in, const Tile<A>& x, const A* __restrict top, int64_t k, int64_t components, const Constants<A>& constants,
                      A* __restrict joint, A* __restrict prior, A* __restrict slopes, int64_t n) {
  const A* __restrict logit = in.row(k);
  const A *__restrict mean[C], *__restrict log_scale[C], *__restrict coefficient[C], *__restrict pixel[C];
  A *__restrict d_mean[C], *__restrict d_log_scale[C], *__restrict d_coefficient[C];
  for (int c = 0; c < C; c++) {
    const Rows3 r = rows_of<C>(k, components, c);
    mean[c] = in.row(r.mean);
    log_scale[c] = in.row(r.log_scale);
    coefficient[c] = C == 3 ? in.row(r.coefficient) : nullptr;
    pixel[c] = x.row(c);
    if (GRAD) {
      d_mean[c] = slopes + r.mean * kTilePixels;
      d_log_scale[c] = slopes + r.log_scale * kTilePixels;
      d_coefficient[c] = slopes + r.coefficient * kTilePixels;
    }
  }
#pragma GCC ivdep  // rows do not overlap, which restrict cannot say of an array of pointers
  for (int64_t i = 0; i < n; i++) {
    const A above = logit[i] - top[i];
    prior[i] = decay(above).exp;
    A m[C];
    Tanh<A> t[3];
    for (int c = 0; c < C; c++) m[c] = mean[c][i];
    if (C == 3) {
      for (int c = 0; c < C; c++) t[c] = tanh_of(coefficient[c][i]);
      m[1] += t[0].value * pixel[0][i];
      m[2] += t[1].value * pixel[0][i] + t[2].value * pixel[1][i];
    }
    A linear = 0, mass = 1, spread = 1;
    A by_mean[3];
#pragma GCC unroll 3
    for (int c = 0; c < C; c++) {
      const Bin<A> bin = bin_of<GRAD>(pixel[c][i], m[c], log_scale[c][i], constants);
      linear += bin.linear;
      mass *= bin.mass;
      spread *= bin.spread;
      if (GRAD) {
        d_mean[c][i] = by_mean[c] = bin.mean_slope;
        d_log_scale[c][i] = bin.log_scale_slope;
      }
    }
    joint[i] = above + (linear + log_of(mass / spread));
    if (GRAD && C == 3) {
      d_coefficient[0][i] = by_mean[1] * pixel[0][i] * t[0].slope;
      d_coefficient[1][i] = by_mean[2] * pixel[0][i] * t[1].slope;
      d_coefficient[2][i] = by_mean[2] * pixel[1][i] * t[2].slope;
    }
  }
}

// The largest logit of each pixel. A NaN is passed over here, and found in the sums.
template <class A> static void largest(const Tile<A>& in, int64_t components, A* __restrict top, int64_t n) {
  for (int64_t i = 0; i < n; i++) top[i] = in.row(0)[i];
  for (int64_t k = 1; k < components; k++) {
    const A* __restrict logit = in.row(k);
    for (int64_t i = 0; i < n; i++) top[i] = logit[i] > top[i] ? logit[i] : top[i];
  }
}

template <class A> constexpr A kLowest = A(-3e38);

// A running sum of exponentials, relative to the largest so far.
template <class A> struct LogSum {
  A peak[kTilePixels], sum[kTilePixels];
  void clear(int64_t n) {
    for (int64_t i = 0; i < n; i++) peak[i] = kLowest<A>, sum[i] = 0;
  }
  void add(const A* __restrict x, int64_t n) {
    A *__restrict p = peak, *__restrict s = sum;
    for (int64_t i = 0; i < n; i++) {
      const A e = decay(-magnitude(x[i] - p[i])).exp;
      const bool higher = x[i] > p[i];
      s[i] = (higher ? s[i] * e : s[i]) + (higher ? A(1) : e);
      p[i] = higher ? x[i] : p[i];
    }
  }
};

// The pixels of one tile.
struct Span {
  int64_t sample, begin, n, padded;
  Span(const LogisticMixture& p, int64_t tile) {
    const int64_t per_sample = tiles_per_sample(p.pixels);
    sample = tile / per_sample;
    begin = tile % per_sample * kTilePixels;
    n = p.pixels - begin < kTilePixels ? p.pixels - begin : kTilePixels;
    padded = (n + kLanes - 1) / kLanes * kLanes;
  }
};

// The loss of each pixel of a tile.
template <class A> static void pixel_losses(const LogisticMixture& p, const Span& s, const A* __restrict priors, const LogSum<A>& total, A* __restrict nll) {
  // No component may be able to make a pixel, all means being infinitely far away.
  for (int64_t i = 0; i < s.padded; i++) nll[i] = total.sum[i] == 0 ? std::numeric_limits<A>::infinity() : log_of(priors[i] / total.sum[i]) - total.peak[i];
  if (p.weight) {
    const A* weight = (const A*)p.weight + s.sample * p.pixels + s.begin;
    for (int64_t i = 0; i < s.n; i++) nll[i] = weight[i] == 0 ? A(0) : weight[i] * nll[i];
  }
}

template <class S, int C> static void forward_tiles(const LogisticMixtureForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const int64_t parameters = p.components * (C == 3 ? 10 : 3);
  const Constants<A> constants(p);
  std::vector<A> buffer((size_t)(parameters * kTilePixels));
  alignas(64) A xb[C * kTilePixels], top[kTilePixels], joint[kTilePixels], prior[kTilePixels], priors[kTilePixels], nll[kTilePixels];
  LogSum<A> total;
  for (int64_t tile = first; tile < last; tile++) {
    const Span s(p, tile);
    const Tile<A> in = load_planes<A, S>(p.output, s.sample, s.begin, s.n, parameters, buffer.data());
    const Tile<A> x = load_any<A>(p.target, s.sample, s.begin, s.n, C, xb);
    largest(in, p.components, top, s.padded);
    total.clear(s.padded);
    for (int64_t i = 0; i < s.padded; i++) priors[i] = 0;
    for (int64_t k = 0; k < p.components; k++) {
      component<C, false>(in, x, top, k, p.components, constants, joint, prior, (A*)nullptr, s.padded);
      total.add(joint, s.padded);
      for (int64_t i = 0; i < s.padded; i++) priors[i] += prior[i];
    }
    pixel_losses(p, s, priors, total, nll);
    if (p.nll) memcpy((A*)p.nll + s.sample * p.pixels + s.begin, nll, (size_t)s.n * sizeof(A));
    else p.sums[tile] = sum(nll, s.n);
  }
}

// The incoming gradient of each pixel of a tile.
template <class A> static void pixel_grads(const LogisticMixtureBackward& p, const Span& s, A* __restrict g) {
  const A* grad = (const A*)p.grad + s.sample * p.grad_batch + s.begin * p.grad_pixel;
  const A scale = (A)p.scale;
  for (int64_t i = 0; i < s.padded; i++) g[i] = 0;
  for (int64_t i = 0; i < s.n; i++) g[i] = grad[i * p.grad_pixel] * scale;
  if (p.weight) {
    const A* weight = (const A*)p.weight + s.sample * p.pixels + s.begin;
    for (int64_t i = 0; i < s.n; i++) g[i] *= weight[i];
  }
}

// Multiplies one row of a tile by a factor per pixel, and writes it to memory where pixels are neighbours there. Where
// the factor is zero the product is, whatever stands in the row.
template <class A, class S>
static void finish_row(const Planes& p, const Span& s, int64_t channel, A* __restrict row, const A* __restrict factor) {
  S* __restrict to = (S*)p.data + s.sample * p.batch + s.begin * p.pixel + channel * p.channel;
  if (p.pixel == 1)
    for (int64_t i = 0; i < s.n; i++) narrow(factor[i] == 0 ? A(0) : row[i] * factor[i], to[i]);
  else
    for (int64_t i = 0; i < s.n; i++) row[i] = factor[i] == 0 ? A(0) : row[i] * factor[i];
}

// Writes finished rows to memory where channels are neighbours.
template <class A, class S> static void store_pixels(const Planes& p, const Span& s, int64_t count, const A* __restrict rows) {
  S* __restrict to = (S*)p.data + s.sample * p.batch + s.begin * p.pixel;
  for (int64_t group = 0; group < s.n; group += kLanes) {
    const int64_t end = s.n - group < kLanes ? s.n : group + kLanes;
    for (int64_t c = 0; c < count; c++)
      for (int64_t i = group; i < end; i++) narrow(rows[c * kTilePixels + i], to[i * p.pixel + c * p.channel]);
  }
}

template <class S, int C> static void backward_tiles(const LogisticMixtureBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const int64_t parameters = p.components * (C == 3 ? 10 : 3);
  const Constants<A> constants(p);
  std::vector<A> memory((size_t)((2 * parameters + p.components) * kTilePixels));
  A *buffer = memory.data(), *slopes = buffer + parameters * kTilePixels, *joints = slopes + parameters * kTilePixels;
  alignas(64) A xb[C * kTilePixels], top[kTilePixels], priors[kTilePixels], g[kTilePixels], factor[kTilePixels];
  LogSum<A> total;
  for (int64_t tile = first; tile < last; tile++) {
    const Span s(p, tile);
    const Tile<A> in = load_planes<A, S>(p.output, s.sample, s.begin, s.n, parameters, buffer);
    const Tile<A> x = load_any<A>(p.target, s.sample, s.begin, s.n, C, xb);
    largest(in, p.components, top, s.padded);
    total.clear(s.padded);
    for (int64_t i = 0; i < s.padded; i++) priors[i] = 0;
    for (int64_t k = 0; k < p.components; k++) {
      A *joint = joints + k * kTilePixels, *prior = slopes + k * kTilePixels;
      component<C, true>(in, x, top, k, p.components, constants, joint, prior, slopes, s.padded);
      total.add(joint, s.padded);
      for (int64_t i = 0; i < s.padded; i++) priors[i] += prior[i];
    }
    if (p.sums) {
      pixel_losses(p, s, priors, total, factor);
      p.sums[tile] = sum(factor, s.n);
    }
    pixel_grads(p, s, g);
    for (int64_t i = 0; i < s.padded; i++) priors[i] = 1 / priors[i], total.sum[i] = 1 / total.sum[i];
    for (int64_t k = 0; k < p.components; k++) {
      A *__restrict joint = joints + k * kTilePixels, *__restrict prior = slopes + k * kTilePixels;
      for (int64_t i = 0; i < s.padded; i++) {
        const A posterior = decay(joint[i] - total.peak[i]).exp * total.sum[i];
        prior[i] = prior[i] * priors[i] - posterior;
        factor[i] = g[i] == 0 ? A(0) : -g[i] * posterior;
      }
      finish_row<A, S>(p.d_output, s, k, prior, g);
      for (int c = 0; c < C; c++)
        for (int kind = 0; kind < (C == 3 ? 3 : 2); kind++) {
          const int64_t row = rows_of<C>(k, p.components, c).mean + kind * p.components;
          finish_row<A, S>(p.d_output, s, row, slopes + row * kTilePixels, factor);
        }
    }
    if (p.d_output.pixel != 1) store_pixels<A, S>(p.d_output, s, parameters, slopes);
  }
}

template <class S> static void forward_of(const LogisticMixtureForward& p, int64_t first, int64_t last) {
  p.rgb ? forward_tiles<S, 3>(p, first, last) : forward_tiles<S, 1>(p, first, last);
}
template <class S> static void backward_of(const LogisticMixtureBackward& p, int64_t first, int64_t last) {
  p.rgb ? backward_tiles<S, 3>(p, first, last) : backward_tiles<S, 1>(p, first, last);
}

// One entry point per job: picks the storage type.
#define GENMOD_BY_DTYPE(name, Params)                                    \
  static void name##_any(const Params& p, int64_t first, int64_t last) { \
    switch (p.output.dtype) {                                            \
      case Dtype::f32: return name##_of<float>(p, first, last);          \
      case Dtype::f64: return name##_of<double>(p, first, last);         \
      case Dtype::bf16: return name##_of<bf16>(p, first, last);          \
      case Dtype::f16: return name##_of<f16>(p, first, last);            \
    }                                                                    \
  }
GENMOD_BY_DTYPE(forward, LogisticMixtureForward)
GENMOD_BY_DTYPE(backward, LogisticMixtureBackward)

}  // namespace

extern const LogisticMixtureKernels logistic_mixture_kernels{forward_any, backward_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
