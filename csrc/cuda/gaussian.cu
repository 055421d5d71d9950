// Sampling from, and the divergence of, diagonal Gaussians. The formulas are those of genmod/reference/gaussian.py.
//
// A block of threads takes a tile of the flat output and walks over it in packs of neighbours, so that a warp's accesses
// are contiguous; what packs do not cover, it walks over one by one. Noise is drawn a Philox counter at a time, which
// gives four elements that are 16 apart, and handed over in shared memory; the same memory then takes the KL of a tile
// that several samples share.
#include "gaussian.h"

#include <math.h>

#include "block.cuh"
#include "memory.cuh"
#include "philox.cuh"

namespace genmod {
namespace cuda {
namespace {

constexpr int kThreads = 128, kTile = 16 * kThreads;
constexpr int kFinishThreads = 512;

// Where the noise of a sample comes from, or that there is none because nothing is sampled.
struct NoNoise { static constexpr bool sampled = false, drawn = false; };
struct GivenNoise { static constexpr bool sampled = true, drawn = false; };
struct DrawnNoise { static constexpr bool sampled = true, drawn = true; };

// What the host works out once for all threads.
struct Plan {
  Columns in, out, other_out;
  Divider by_sample;
  bool packs;  // every tensor can be moved in packs
  int width;   // threads that add up one sample's share of a tile
};

// This block's part of the flat output.
struct Tile {
  int64_t begin;
  int length;

  __device__ explicit Tile(int64_t numel) : begin((int64_t)blockIdx.x * kTile) {
    length = numel - begin < kTile ? (int)(numel - begin) : kTile;
  }
};

template <int N> struct Count { static constexpr int value = N; };

// Calls f(Count<n>, i) for this thread's share of the tile's elements, i .. i + n - 1 at a time: n is N, or 1 for what
// packs of N do not cover.
template <int N, class F> __device__ __forceinline__ void for_packs(const Tile& tile, const Plan& plan, F f) {
  const int packed = N > 1 && plan.packs ? tile.length / N * N : 0;
  if (N > 1) {
#pragma unroll 1
    for (int i = N * (int)threadIdx.x; i < packed; i += N * kThreads) f(Count<N>(), i);
  }
#pragma unroll 1
  for (int i = packed + (int)threadIdx.x; i < tile.length; i += kThreads) f(Count<1>(), i);
}

// Element i = 64 block + 16 word + lane of the noise is the normal of word `word` of counter 16 block + lane.
template <class A> __device__ __forceinline__ void draw_noise(const int64_t* seed, const Tile& tile, A* noise) {
  const uint64_t key = (uint64_t)*seed, first = (uint64_t)tile.begin / 4;
#pragma unroll 1
  for (int c = threadIdx.x; c < (tile.length + 63) / 64 * 16; c += kThreads) {
    float normal[4];
    philox_normals(key, first + c, normal);
#pragma unroll
    for (int word = 0; word < 4; word++) noise[c / 16 * 64 + 16 * word + c % 16] = A(normal[word]);
  }
  __syncthreads();
}

// logvar, bounded, and the derivative of the bound.
template <class A> struct Bounded { A value, slope; };

template <class A> __device__ __forceinline__ Bounded<A> bound(A x, Clamp clamp) {
  const A low = -30, high = 20;
  if (clamp == Clamp::hard) return {x < low ? low : x > high ? high : x, x < low || x > high ? A(0) : A(1)};
  if (clamp == Clamp::none || x != x) return {x, A(1)};
  // high - softplus(high - x), then low + softplus(. - low); softplus(t) = max(t, 0) + log(1 + e^-|t|)
  const A t = high - x, et = exp_parts(t > 0 ? -t : t).exp;
  const A upper = (t > 0 ? x : high) - log_positive(1 + et);
  const A u = upper - low, eu = exp_parts(u > 0 ? -u : u).exp;
  return {(u > 0 ? upper : low) + log_positive(1 + eu), (t > 0 ? A(1) : et) / (1 + et) * ((u > 0 ? A(1) : eu) / (1 + eu))};
}

// expm1(l) - l from h = l / 2: both terms are positive near the prior, so nothing cancels there.
template <class A> __device__ __forceinline__ A variance_term(const Exp<A>& half) {
  return 2 * half.expm1_minus_x + half.expm1 * half.expm1;
}
template <class A> __device__ __forceinline__ A expm1_twice(const Exp<A>& half) { return half.expm1 * (half.expm1 + 2); }

// expm1(l - l') and the same minus l - l'. The subtraction rounds by up to half an ulp of a number that is then an
// exponent; what it dropped is recovered exactly (Knuth) and put back to first order.
template <class A> struct Ratio { A growth, excess; };
template <class A> __device__ __forceinline__ Ratio<A> variance_ratio(A l, A other) {
  const A delta = l - other, back = l - delta;
  const A dropped = (l - (delta + back)) + (back - other);
  const Exp<A> half = exp_parts(A(0.5) * delta);
  const A growth = expm1_twice(half);
  return {growth + dropped * (growth + 1), variance_term(half) + dropped * growth};
}

template <class A> __device__ __forceinline__ A floored(A kl, double free_bits) { return kl <= (A)free_bits ? (A)free_bits : kl; }

// Where a tile's KL goes: element by element to memory, or into sums[tile + sample], one share for each sample that the
// tile touches. The index never repeats, because the next share starts either a new tile or a new sample.
template <class A> struct KlOutput {
  const GaussianForward& p;
  const Tile& tile;
  A* staged;  // [kTile] in shared memory: the tile's elements, if they belong to several samples
  int64_t first_sample = 0, last_sample = 0;
  A total = 0;

  __device__ KlOutput(const GaussianForward& p, const Plan& plan, const Tile& tile, A* staged)
      : p(p), tile(tile), staged(staged) {
    if (!p.sums) return;
    first_sample = plan.by_sample.quotient(tile.begin);
    last_sample = plan.by_sample.quotient(tile.begin + tile.length - 1);
  }

  template <int N> __device__ void add(int i, const Pack<A, N>& kl) {
    if (p.kl) store(p.kl, tile.begin + i, kl);
    if (first_sample != last_sample) store(staged, i, kl);
#pragma unroll
    for (int e = 0; e < N; e++) total += kl.v[e];
  }

  __device__ void finish(int width) const {
    if (!p.sums) return;
    A* sums = static_cast<A*>(p.sums) + blockIdx.x;
    const A scale = (A)p.scale;
    if (first_sample == last_sample) {
      const A sum = block_sum<kThreads>(total);
      if (threadIdx.x == 0) sums[first_sample] = sum * scale;
      return;
    }
    __syncthreads();
    const int group = threadIdx.x / width, lane = threadIdx.x % width;
#pragma unroll 1
    for (int64_t s = first_sample; s <= last_sample; s += kThreads / width) {  // whole warps stay together for group_sum
      const int64_t sample = s + group, begin = sample * p.sample - tile.begin, end = begin + p.sample;
      A sum = 0;
#pragma unroll 1
      for (int64_t i = (begin > 0 ? begin : 0) + lane; i < tile.length && i < end; i += width) sum += staged[i];
      sum = group_sum(sum, width);
      if (lane == 0 && sample <= last_sample) sums[sample] = sum * scale;
    }
  }
};

template <class S, class Noise> __global__ void __launch_bounds__(kThreads) forward(GaussianForward p, Plan plan) {
  using A = typename Arithmetic<S>::type;
  alignas(16) __shared__ A shared[kTile];
  const Tile tile(p.numel);
  if (Noise::drawn) draw_noise(p.seed, tile, shared);
  KlOutput<A> output(p, plan, tile, shared);
  const bool has_kl = !Noise::sampled || p.kl || p.sums;
  for_packs<kPack<S>>(tile, plan, [&](auto count, int i) {
    constexpr int N = decltype(count)::value;
    const int64_t index = tile.begin + i;
    const Pack<S, N> mean = load_rows<S, N>(p.mean, plan.in, index), logvar = load_rows<S, N>(p.logvar, plan.in, index);
    Pack<S, N> noise, z;
    if (Noise::sampled && !Noise::drawn) noise = load<S, N>(p.noise, index);
    Pack<A, N> kl = {};
#pragma unroll
    for (int e = 0; e < N; e++) {
      const A m = A(mean.v[e]);
      const Exp<A> half = exp_parts(A(0.5) * bound(A(logvar.v[e]), p.clamp).value);
      if (Noise::sampled) z.v[e] = S(m + half.exp * (Noise::drawn ? shared[i + e] : A(noise.v[e])));
      if (has_kl) kl.v[e] = floored(A(0.5) * (variance_term(half) + m * m), p.free_bits);
    }
    if (Noise::sampled) store(p.z, index, z);
    if (has_kl) output.add(i, kl);
  });
  output.finish(plan.width);
}

template <class S> __global__ void __launch_bounds__(kThreads) pair_forward(GaussianForward p, Plan plan) {
  using A = typename Arithmetic<S>::type;
  alignas(16) __shared__ A shared[kTile];
  const Tile tile(p.numel);
  KlOutput<A> output(p, plan, tile, shared);
  for_packs<kPack<S>>(tile, plan, [&](auto count, int i) {
    constexpr int N = decltype(count)::value;
    const int64_t index = tile.begin + i;
    const Pack<S, N> mean = load_rows<S, N>(p.mean, plan.in, index), logvar = load_rows<S, N>(p.logvar, plan.in, index);
    const Pack<S, N> other_mean = load_rows<S, N>(p.other_mean, plan.in, index);
    const Pack<S, N> other_logvar = load_rows<S, N>(p.other_logvar, plan.in, index);
    Pack<A, N> kl;
#pragma unroll
    for (int e = 0; e < N; e++) {
      const A delta = A(mean.v[e]) - A(other_mean.v[e]), other = bound(A(other_logvar.v[e]), p.clamp).value;
      const A excess = variance_ratio(bound(A(logvar.v[e]), p.clamp).value, other).excess;
      kl.v[e] = floored(A(0.5) * (excess + delta * delta * exp_parts(-other).exp), p.free_bits);
    }
    output.add(i, kl);
  });
  output.finish(plan.width);
}

// Adds each sample's shares in the order of their tiles. `width` threads take one sample: a power of two up to 32, or
// the whole block.
template <class A>
__global__ void __launch_bounds__(kFinishThreads)
finish(const A* shares, A* sums, int64_t samples, int64_t sample, double scale, int width) {
  const int64_t s = ((int64_t)blockIdx.x * kFinishThreads + threadIdx.x) / width;
  double total = 0;
  if (s < samples && sample > 0) {
    const int64_t last = ((s + 1) * sample - 1) / kTile;
    for (int64_t tile = s * sample / kTile + threadIdx.x % width; tile <= last; tile += width) total += (double)shares[tile + s];
  }
  total = width > 32 ? block_sum<kFinishThreads>(total) : group_sum(total, width);
  if (s < samples && threadIdx.x % width == 0) sums[s] = (A)(total * scale);
}

// The incoming gradient of the KL, before `scale`.
template <class A, int N>
__device__ __forceinline__ Pack<A, N> load_grad_kl(const GaussianBackward& p, const Plan& plan, int64_t index) {
  const A* grad = static_cast<const A*>(p.grad_kl);
  if (p.grad_kl_per_element) return load<A, N>(grad, index);
  int64_t sample = p.sample < p.numel ? plan.by_sample.quotient(index) : 0;
  int64_t position = index - sample * p.sample;
  Pack<A, N> x;
  x.v[0] = grad[sample];
#pragma unroll
  for (int e = 1; e < N; e++) {
    x.v[e] = x.v[e - 1];
    if (++position == p.sample) {
      position = 0;
      x.v[e] = grad[++sample];
    }
  }
  return x;
}

template <class S, int N>
__device__ __forceinline__ void store_rows(const GaussianBackward::Out& out, const Columns& columns, int64_t index,
                                           const Pack<S, N>& x) {
  if (out.data) store(out.data, columns.offset(index, out.stride), x);
}

// A sample's gradient came in if there is noise; one of the KL if there is `grad_kl`.
template <class S, class Noise> __global__ void __launch_bounds__(kThreads) backward(GaussianBackward p, Plan plan) {
  using A = typename Arithmetic<S>::type;
  __shared__ A drawn[Noise::drawn ? kTile : 1];
  const Tile tile(p.numel);
  if (Noise::drawn) draw_noise(p.seed, tile, drawn);
  const bool has_kl = !Noise::sampled || p.grad_kl;
  for_packs<kPack<S>>(tile, plan, [&](auto count, int i) {
    constexpr int N = decltype(count)::value;
    const int64_t index = tile.begin + i;
    const Pack<S, N> logvar = load_rows<S, N>(p.logvar, plan.in, index);
    Pack<S, N> mean, noise, grad_z;
    Pack<A, N> grad_kl;
    if (Noise::sampled) grad_z = load<S, N>(p.grad_z, index);
    if (Noise::sampled && !Noise::drawn) noise = load<S, N>(p.noise, index);
    if (has_kl) {
      mean = load_rows<S, N>(p.mean, plan.in, index);
      grad_kl = load_grad_kl<A, N>(p, plan, index);
    }
    Pack<S, N> d_mean, d_logvar;
#pragma unroll
    for (int e = 0; e < N; e++) {
      const Bounded<A> l = bound(A(logvar.v[e]), p.clamp);
      const Exp<A> half = exp_parts(A(0.5) * l.value);
      A dm = 0, dl = 0;
      if (has_kl) {
        const A m = A(mean.v[e]), kl = A(0.5) * (variance_term(half) + m * m);
        const A g = kl <= (A)p.free_bits ? A(0) : grad_kl.v[e] * (A)p.scale;
        dm = g * m;
        dl = g * expm1_twice(half);
      }
      if (Noise::sampled) {
        const A g = A(grad_z.v[e]);
        dm += g;
        dl += g * half.exp * (Noise::drawn ? drawn[i + e] : A(noise.v[e]));
      }
      d_mean.v[e] = S(dm);
      d_logvar.v[e] = S(A(0.5) * l.slope * dl);
    }
    store_rows(p.d_mean, plan.out, index, d_mean);
    store_rows(p.d_logvar, plan.out, index, d_logvar);
  });
}

template <class S> __global__ void __launch_bounds__(kThreads) pair_backward(GaussianBackward p, Plan plan) {
  using A = typename Arithmetic<S>::type;
  const Tile tile(p.numel);
  for_packs<kPack<S>>(tile, plan, [&](auto count, int i) {
    constexpr int N = decltype(count)::value;
    const int64_t index = tile.begin + i;
    const Pack<S, N> mean = load_rows<S, N>(p.mean, plan.in, index), logvar = load_rows<S, N>(p.logvar, plan.in, index);
    const Pack<S, N> other_mean = load_rows<S, N>(p.other_mean, plan.in, index);
    const Pack<S, N> other_logvar = load_rows<S, N>(p.other_logvar, plan.in, index);
    const Pack<A, N> grad_kl = load_grad_kl<A, N>(p, plan, index);
    Pack<S, N> d_mean, d_logvar, d_other_mean, d_other_logvar;
#pragma unroll
    for (int e = 0; e < N; e++) {
      const Bounded<A> l = bound(A(logvar.v[e]), p.clamp), other = bound(A(other_logvar.v[e]), p.clamp);
      const A delta = A(mean.v[e]) - A(other_mean.v[e]), precision = exp_parts(-other.value).exp;
      const A square = delta * delta * precision;
      const Ratio<A> ratio = variance_ratio(l.value, other.value);
      const A kl = A(0.5) * (ratio.excess + square);
      const A g = kl <= (A)p.free_bits ? A(0) : grad_kl.v[e] * (A)p.scale;
      const A dm = g * delta * precision;
      d_mean.v[e] = S(dm);
      d_other_mean.v[e] = S(-dm);
      d_logvar.v[e] = S(A(0.5) * l.slope * g * ratio.growth);
      d_other_logvar.v[e] = S(A(-0.5) * other.slope * g * (ratio.growth + square));
    }
    store_rows(p.d_mean, plan.out, index, d_mean);
    store_rows(p.d_logvar, plan.out, index, d_logvar);
    store_rows(p.d_other_mean, plan.other_out, index, d_other_mean);
    store_rows(p.d_other_logvar, plan.other_out, index, d_other_logvar);
  });
}

int64_t tile_count(int64_t numel) { return (numel + kTile - 1) / kTile; }

// The smallest power of two that leaves a thread about eight of `count` numbers to add; at most a warp.
int adders(int64_t count) {
  int width = 1;
  while (width < 32 && width * 8 < count) width *= 2;
  return width;
}

// Whether packs of kPack<S> elements fit a dense tensor of T, and tensors in rows.
template <class S, class T = S> bool dense_fits(const void* data) { return packs_fit<T, kPack<S>>(data, Columns(), 0); }
template <class S, class... R> bool rows_fit(const Columns& columns, const R&... rows) {
  return (packs_fit<S, kPack<S>>(rows.data, columns, rows.stride) && ...);
}

template <class S, class Params> Plan plan_inputs(const Params& p) {
  Plan plan;
  plan.in = Columns(p.cols, p.numel);
  plan.by_sample = Divider(p.sample > 0 ? p.sample : 1);
  plan.width = adders(p.sample);
  plan.packs = dense_fits<S>(p.noise) && rows_fit<S>(plan.in, p.mean, p.logvar, p.other_mean, p.other_logvar);
  return plan;
}

// A floor that no KL is below stands for "no free bits", which saves a flag.
double floor_of(double free_bits) { return free_bits > 0 ? free_bits : -INFINITY; }

template <class S> cudaError_t forward_as(const GaussianForward& given, cudaStream_t stream) {
  using A = typename Arithmetic<S>::type;
  const int64_t tiles = tile_count(given.numel);
  if (tiles > 0) {
    GaussianForward p = given;
    p.free_bits = floor_of(given.free_bits);
    if (tiles > 1) {  // the shares of a single tile are the sums already
      p.sums = given.sums ? given.workspace : nullptr;
      p.scale = 1;
    }
    Plan plan = plan_inputs<S>(p);
    plan.packs = plan.packs && dense_fits<S>(p.z) && dense_fits<S, A>(p.kl);
    const auto kernel = p.other_mean.data ? pair_forward<S>
                        : !p.z            ? forward<S, NoNoise>
                        : p.seed          ? forward<S, DrawnNoise>
                                          : forward<S, GivenNoise>;
    const cudaError_t status = launch(kernel, tiles, kThreads, stream, p, plan);
    if (status != cudaSuccess) return status;
  }
  if (!given.sums || tiles == 1 || given.samples == 0) return cudaSuccess;
  const int64_t shares = given.sample / kTile + 2, sample = given.numel > 0 ? given.sample : 0;
  const int width = shares > 64 ? kFinishThreads : adders(shares), per_block = kFinishThreads / width;
  return launch(finish<A>, (given.samples + per_block - 1) / per_block, kFinishThreads, stream,
                static_cast<const A*>(given.workspace), static_cast<A*>(given.sums), given.samples, sample, given.scale, width);
}

template <class S> cudaError_t backward_as(const GaussianBackward& given, cudaStream_t stream) {
  using A = typename Arithmetic<S>::type;
  if (given.numel == 0) return cudaSuccess;
  GaussianBackward p = given;
  p.free_bits = floor_of(given.free_bits);
  Plan plan = plan_inputs<S>(p);
  plan.out = Columns(p.out_cols, p.numel);
  if (p.other_mean.data) plan.other_out = Columns(p.other_out_cols, p.numel);
  plan.packs = plan.packs && dense_fits<S>(p.grad_z) && (!p.grad_kl_per_element || dense_fits<S, A>(p.grad_kl)) &&
               rows_fit<S>(plan.out, p.d_mean, p.d_logvar) && rows_fit<S>(plan.other_out, p.d_other_mean, p.d_other_logvar);
  const auto kernel = p.other_mean.data ? pair_backward<S>
                      : !p.grad_z       ? backward<S, NoNoise>
                      : p.seed          ? backward<S, DrawnNoise>
                                        : backward<S, GivenNoise>;
  return launch(kernel, tile_count(p.numel), kThreads, stream, p, plan);
}

}  // namespace

int64_t gaussian_workspace(int64_t numel, int64_t samples) {
  const int64_t tiles = tile_count(numel);
  return tiles > 1 ? tiles + samples : 0;
}

cudaError_t gaussian_forward(const GaussianForward& p, cudaStream_t stream) {
  switch (p.dtype) {
    case Dtype::f32: return forward_as<float>(p, stream);
    case Dtype::f64: return forward_as<double>(p, stream);
    case Dtype::bf16: return forward_as<__nv_bfloat16>(p, stream);
    case Dtype::f16: return forward_as<__half>(p, stream);
    case Dtype::u8: break;  // pixels, in losses only
  }
  return cudaErrorInvalidValue;
}

cudaError_t gaussian_backward(const GaussianBackward& p, cudaStream_t stream) {
  switch (p.dtype) {
    case Dtype::f32: return backward_as<float>(p, stream);
    case Dtype::f64: return backward_as<double>(p, stream);
    case Dtype::bf16: return backward_as<__nv_bfloat16>(p, stream);
    case Dtype::f16: return backward_as<__half>(p, stream);
    case Dtype::u8: break;  // pixels, in losses only
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace genmod
