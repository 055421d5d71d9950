// Group norm and activation. The formulas are those of genmod/reference/norm_act.py.
//
// A block holds its share of a group (norm_plan.h) in shared memory, so that memory is read once, and measures it there
// in two passes: first the mean, then the differences from it, whose own mean is what the first one lost in rounding.
// Shares are joined by Chan's formula, in a fixed order: through the shared memory of a cluster, or through global
// memory where a group does not fit into a cluster. Each thread visits the same packs in each pass, at a constant step,
// so that what it keeps is its own.
#include "norm_act.h"

#include <string.h>

#include <map>
#include <mutex>
#include <tuple>

#include "activation.cuh"
#include "block.cuh"
#include "cluster.cuh"
#include "memory.cuh"
#include "norm_plan.h"

namespace genmod {
namespace cuda {
namespace {

constexpr int kLoads = 4;  // that a thread has under way
constexpr int kCombineThreads = 256;

// Packs of 16 bytes.
template <class S> constexpr int kWide = 16 / (int)sizeof(S);

// A pack as words, which is how it waits in registers: as sixteen-bit numbers each would take a register of its own.
template <int kBytes> struct alignas(kBytes) Words { uint32_t v[kBytes / 4]; };
template <> struct Words<2> { uint16_t v[1]; };
template <class S, int N> using Raw = Words<sizeof(S) * N>;

template <class S, int N> __device__ __forceinline__ Raw<S, N> load_raw(const void* data, int64_t index) {
  return *reinterpret_cast<const Raw<S, N>*>(static_cast<const S*>(data) + index);
}
template <class S, int N> __device__ __forceinline__ Pack<S, N> unpacked(const Raw<S, N>& raw) {
  Pack<S, N> x;
  memcpy(&x, &raw, sizeof(x));
  return x;
}
template <class S, int N> __device__ __forceinline__ Raw<S, N> packed(const Pack<S, N>& x) {
  Raw<S, N> raw;
  memcpy(&raw, &x, sizeof(x));
  return raw;
}

// The cut, and divisors that only the device uses.
struct Plan {
  NormCut cut;
  Divider by_channel;  // contiguous: packs in a channel
};

// Mean and sum of squared differences from it of `count` numbers. What rounding took from the mean is `rest`.
template <class A> struct alignas(16) Part { A mean, rest, squares, count; };
template <class A> struct alignas(16) Statistics { A mean, rest, rstd, unused; };

// This thread's packs: pack j is at element start + j * step of the tensor.
template <int N, bool kLast> struct Walk {
  int64_t sample, start, step;
  int64_t group;     // of the unit's first, counted over all samples
  int64_t channel;   // of the tensor: the unit's first (contiguous), the block's first (channels_last)
  int64_t first;     // contiguous: the number, within the group, of pack 0
  int64_t elements;  // of each group, in this block
  int rank, slice;
  int packs;         // that this thread has
  int column, width, lane_row, lane_rows;  // channels_last: of the tile

  __device__ Walk(const GroupNorm& p, const NormCut& cut) {
    unsigned block = blockIdx.x;
    const int thread = threadIdx.x, threads = blockDim.x;
    rank = (int)(block % (unsigned)cut.blocks);
    block /= (unsigned)cut.blocks;
    slice = (int)(block % (unsigned)cut.slices);
    const unsigned unit = block / (unsigned)cut.slices;
    sample = unit / (unsigned)cut.units;
    group = (int64_t)unit * cut.together;
    const int64_t of_unit = unit % (unsigned)cut.units, begin = rank * cut.share;
    const int64_t over = (kLast ? p.space : cut.of_group * p.space / N) - begin;
    const int mine = over < 0 ? 0 : (int)(over < cut.share ? over : cut.share);  // packs or positions
    if (kLast) {
      const int across = cut.of_group * cut.together, left = across / N - slice * cut.width;
      width = left < cut.width ? left : cut.width;
      channel = of_unit * across + slice * cut.width * N;
      lane_rows = threads / width;
      lane_row = thread / width;
      column = thread % width;
      packs = lane_row < lane_rows && lane_row < mine ? (mine - lane_row + lane_rows - 1) / lane_rows : 0;
      start = (sample * p.space + begin + lane_row) * p.channels + channel + column * N;
      step = lane_rows * p.channels;
      elements = (int64_t)mine * (cut.slices > 1 ? width * N : cut.of_group);
      first = 0;
    } else {
      channel = of_unit * cut.of_group;
      packs = thread < mine ? (mine - thread + threads - 1) / threads : 0;
      first = begin + thread;
      start = unit * (cut.of_group * p.space) + first * N;
      step = (int64_t)threads * N;
      elements = (int64_t)mine * N;
      width = column = lane_row = lane_rows = 0;
    }
  }
  __device__ __forceinline__ int64_t at(int j) const { return start + j * step; }
};

// The block's shared memory.
template <class S, int N, class A> struct Room {
  A *totals, *table, *columns;
  Part<A>* parts;
  Statistics<A>* stats;
  Raw<S, N>* slots;  // of this thread; the next is a block of threads further

  __device__ explicit Room(const NormCut& cut) {
    char* memory = dynamic_shared();
    totals = reinterpret_cast<A*>(memory);
    parts = reinterpret_cast<Part<A>*>(memory + cut.parts);
    stats = reinterpret_cast<Statistics<A>*>(memory + cut.stats);
    table = reinterpret_cast<A*>(memory + cut.table);
    columns = reinterpret_cast<A*>(memory + cut.columns);
    slots = reinterpret_cast<Raw<S, N>*>(memory + cut.slots) + threadIdx.x;
  }
};

// A parameter is as short as it is often read: the caches have it.
template <class A> __device__ __forceinline__ A parameter(const NormParameter& p, int64_t sample, int64_t channel) {
  const int64_t i = sample * p.stride + channel;
  switch (p.dtype) {
    case Dtype::f32: return (A) static_cast<const float*>(p.data)[i];
    case Dtype::f64: return (A) static_cast<const double*>(p.data)[i];
    case Dtype::bf16: return (A)(float)static_cast<const __nv_bfloat16*>(p.data)[i];
    case Dtype::f16: return (A)(float)static_cast<const __half*>(p.data)[i];
    case Dtype::u8: break;
  }
  return 0;
}

// z = h * factor + offset.
template <class A> struct Affine { A factor, offset; };
template <class A> __device__ __forceinline__ Affine<A> affine(const GroupNorm& p, int64_t sample, int64_t channel) {
  Affine<A> a{1, 0};
  if (p.weight.data) a.factor = parameter<A>(p.weight, 0, channel);
  if (p.bias.data) a.offset = parameter<A>(p.bias, 0, channel);
  if (p.scale.data) {
    const A growth = 1 + parameter<A>(p.scale, sample, channel);
    a.factor *= growth;
    a.offset *= growth;
  }
  if (p.shift.data) a.offset += parameter<A>(p.shift, sample, channel);
  return a;
}

// --- Sums over the block, which every thread gets.

template <class A> __device__ __forceinline__ A total(A x, A* warps) {
  x = group_sum(x, kWarp);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  A sum = 0;
  for (int w = 0; w < (int)blockDim.x / kWarp; w++) sum += warps[w];
  return sum;
}

// The same for each of the unit's groups, from sums per column; gives them to set(group, sum), one thread each.
template <int N, class A, class W, class Set>
__device__ __forceinline__ void totals_by_group(A (&x)[N], const W& walk, const NormCut& cut, int of_group,
                                                A* columns, Set set) {
  const int across = walk.width * N;
  int row = walk.lane_row, rows = walk.lane_rows;
  bool writes = row < rows;
  if (cut.folds) {
    for (int apart = walk.width; apart < kWarp; apart *= 2) {
#pragma unroll
      for (int e = 0; e < N; e++) x[e] += __shfl_xor_sync(0xffffffffu, x[e], apart);
    }
    row = threadIdx.x / kWarp;
    rows = blockDim.x / kWarp;
    writes = (int)threadIdx.x % kWarp < walk.width;
  }
  __syncthreads();  // the last sums have been read
  if (writes) {
#pragma unroll
    for (int e = 0; e < N; e++) columns[row * across + walk.column * N + e] = x[e];
  }
  __syncthreads();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int g = warp; g < cut.together; g += blockDim.x / kWarp) {
    A sum = 0;
    for (int i = lane; i < rows * of_group; i += kWarp)
      sum += columns[i / of_group * across + g * of_group + i % of_group];
    sum = group_sum(sum, kWarp);
    if (lane == 0) set(g, sum);
  }
  __syncthreads();
}

// --- Passes.

// f(j, pack j) for all packs of this thread: those that were kept, then those that are read again, `kAhead` at a time.
template <class S, int N, int kAhead, class W, class F>
__device__ __forceinline__ void revisit(const W& walk, const NormCut& cut, const Raw<S, N>* slots,
                                        const void* source, F f) {
  const int kept = walk.packs < cut.kept ? walk.packs : cut.kept;
#pragma unroll 1
  for (int j = 0; j < kept; j++) f(j, unpacked<S, N>(slots[j * blockDim.x]));
#pragma unroll 1
  for (int j = kept; j < walk.packs; j += kAhead) {
    Raw<S, N> x[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (j + u < walk.packs) x[u] = load_raw<S, N>(source, walk.at(j + u));
#pragma unroll
    for (int u = 0; u < kAhead; u++)
      if (j + u < walk.packs) f(j + u, unpacked<S, N>(x[u]));
  }
}

// take(j + u, pack j + u) for up to `kCount` packs that are under way at once; of x, and of x + residual.
template <class S, int N, int kCount, class W, class F>
__device__ __forceinline__ void load_and_take(const GroupNorm& p, const W& walk, int j, F take) {
  Raw<S, N> x[kCount];
#pragma unroll
  for (int u = 0; u < kCount; u++)
    if (j + u < walk.packs) x[u] = load_raw<S, N>(p.x, walk.at(j + u));
#pragma unroll
  for (int u = 0; u < kCount; u++)
    if (j + u < walk.packs) take(j + u, unpacked<S, N>(x[u]));
}
template <class S, int N, int kCount, class W, class F>
__device__ __forceinline__ void add_and_take(const GroupNorm& p, const W& walk, int j, F take) {
  using A = typename Arithmetic<S>::type;
  Raw<S, N> x[kCount], r[kCount];
#pragma unroll
  for (int u = 0; u < kCount; u++)
    if (j + u < walk.packs) {
      x[u] = load_raw<S, N>(p.x, walk.at(j + u));
      r[u] = load_raw<S, N>(p.residual, walk.at(j + u));
    }
#pragma unroll
  for (int u = 0; u < kCount; u++)
    if (j + u < walk.packs) {
      Pack<S, N> sum = unpacked<S, N>(x[u]);
      const Pack<S, N> other = unpacked<S, N>(r[u]);
#pragma unroll
      for (int e = 0; e < N; e++) sum.v[e] = S(A(sum.v[e]) + A(other.v[e]));
      store(p.total, walk.at(j + u), sum);
      take(j + u, sum);
    }
}

// Reads this block's share once, writes x + residual if there is one, keeps what it can, and measures each group's
// part.
template <class S, int N, bool kLast, class A>
__device__ __forceinline__ void measure(const GroupNorm& p, const NormCut& cut, const Walk<N, kLast>& walk,
                                        const Room<S, N, A>& room) {
  A sum[N] = {};
  const auto take = [&](int j, const Pack<S, N>& x) {
    if (j < cut.kept) room.slots[j * blockDim.x] = packed<S, N>(x);
#pragma unroll
    for (int e = 0; e < N; e++) sum[e] += A(x.v[e]);
  };
  if (p.residual) {
#pragma unroll 1
    for (int j = 0; j < walk.packs; j += kLoads / 2) add_and_take<S, N, kLoads / 2>(p, walk, j, take);
  } else {
#pragma unroll 1
    for (int j = 0; j < walk.packs; j += kLoads) load_and_take<S, N, kLoads>(p, walk, j, take);
  }

  const A count = (A)walk.elements, share = count > 0 ? 1 / count : A(0);
  const void* source = p.total ? p.total : p.x;
  const int of_group = cut.of_group;
  if (!kLast || cut.together == 1) {
    A mine = 0;
#pragma unroll
    for (int e = 0; e < N; e++) mine += sum[e];
    const A mean = total(mine, room.totals) * share;
    A apart[N] = {}, square[N] = {};
    revisit<S, N, 1>(walk, cut, room.slots, source, [&](int, const Pack<S, N>& x) {
#pragma unroll
      for (int e = 0; e < N; e++) {
        const A d = A(x.v[e]) - mean;
        apart[e] += d;
        square[e] += d * d;
      }
    });
    A all_apart = 0, all_square = 0;
#pragma unroll
    for (int e = 0; e < N; e++) {
      all_apart += apart[e];
      all_square += square[e];
    }
    all_apart = total(all_apart, room.totals + kWarp);
    all_square = total(all_square, room.totals + 2 * kWarp);
    const A rest = all_apart * share;
    if (threadIdx.x == 0) room.parts[0] = {mean, rest, all_square - all_apart * rest, count};
    __syncthreads();
    return;
  }
  totals_by_group(sum, walk, cut, of_group, room.columns, [&](int g, A s) { room.parts[g].mean = s * share; });
  A mean[N];
#pragma unroll
  for (int e = 0; e < N; e++) mean[e] = room.parts[(walk.column * N + e) / of_group].mean;
  A apart[N] = {}, square[N] = {};
  revisit<S, N, 1>(walk, cut, room.slots, source, [&](int, const Pack<S, N>& x) {
#pragma unroll
    for (int e = 0; e < N; e++) {
      const A d = A(x.v[e]) - mean[e];
      apart[e] += d;
      square[e] += d * d;
    }
  });
  totals_by_group(apart, walk, cut, of_group, room.columns, [&](int g, A s) {
    room.parts[g].rest = s * share;
    room.parts[g].count = count;
  });
  totals_by_group(square, walk, cut, of_group, room.columns, [&](int g, A s) {
    const A rest = room.parts[g].rest;
    room.parts[g].squares = s - rest * rest * count;
  });
}

// Chan's formula for many parts: `pivot` is near all their means, so that the differences are small and nearly exact.
template <class A> __device__ __forceinline__ A mean_share(const Part<A>& part, A pivot) {
  return part.count > 0 ? part.count * ((part.mean - pivot) + part.rest) : A(0);
}
template <class A> __device__ __forceinline__ A square_share(const Part<A>& part, A pivot, A shifted) {
  const A d = (part.mean - pivot) + part.rest - shifted;
  return part.count > 0 ? part.squares + part.count * d * d : A(0);
}
template <class A> __device__ __forceinline__ Statistics<A> finished(A pivot, A shifted, A variance, double eps) {
  const A mean = pivot + shifted, back = mean - pivot;  // what the sum loses is recovered exactly (Knuth)
  const A rest = (pivot - (mean - back)) + (shifted - back);
  return {mean, rest, 1 / sqrt(variance + (A)eps), 0};
}

// Joins the parts of a cluster's blocks. Each block does it for itself, with the same result.
template <class A>
__device__ __forceinline__ void join_cluster(const GroupNorm& p, const NormCut& cut, int64_t group, int rank,
                                             const Part<A>* parts, Statistics<A>* stats) {
  const A count = (A)(cut.of_group * p.space);
  const int of = cut.blocks, member = threadIdx.x % of, at_once = blockDim.x / of;
  for (int begin = 0; begin < cut.together; begin += at_once) {  // whole warps stay together for group_sum
    const int g = begin + (int)threadIdx.x / of;
    Part<A> part{};
    A pivot = 0;
    if (g < cut.together) {
      part = of > 1 ? *shared_of(parts + g, member) : parts[g];
      pivot = of > 1 ? shared_of(parts + g, 0)->mean : part.mean;
    }
    const A shifted = group_sum(mean_share(part, pivot), of) / count;
    const A variance = group_sum(square_share(part, pivot, shifted), of) / count;
    if (member == 0 && g < cut.together) {
      stats[g] = finished(pivot, shifted, variance, p.eps);
      if (rank == 0) {
        static_cast<A*>(p.mean)[group + g] = stats[g].mean;
        static_cast<A*>(p.rstd)[group + g] = stats[g].rstd;
      }
    }
  }
}

// channels_last: factor and offset of each of the tile's channels, while the data is under way.
template <int N, class A>
__device__ __forceinline__ void fill_table(const GroupNorm& p, const Walk<N, true>& walk, A* table) {
  for (int c = threadIdx.x; c < walk.width * N; c += blockDim.x) {
    const Affine<A> a = affine<A>(p, walk.sample, walk.channel + c);
    table[2 * c] = a.factor;
    table[2 * c + 1] = a.offset;
  }
}

template <int kAhead, class S, int N, bool kLast, class A>
__device__ __forceinline__ void normalise(const GroupNorm& p, const Plan& plan, const Walk<N, kLast>& walk,
                                          const Room<S, N, A>& room) {
  constexpr int M = kLast ? N : 1;  // sets of coefficients at a time: a pack's channels, or the one that it lies in
  A mean[M], factor[M], offset[M];
  const int of_group = plan.cut.of_group;
  if constexpr (kLast) {
#pragma unroll
    for (int e = 0; e < N; e++) {
      const int c = walk.column * N + e;
      const Statistics<A> s = room.stats[plan.cut.together > 1 ? c / of_group : 0];
      mean[e] = s.mean;
      factor[e] = s.rstd * room.table[2 * c];
      offset[e] = room.table[2 * c + 1] - s.rest * factor[e];
    }
  }
  int64_t channel = -1;
  const A slope = (A)p.negative_slope;
  revisit<S, N, kAhead>(walk, plan.cut, room.slots, p.total ? p.total : p.x, [&](int j, const Pack<S, N>& x) {
    if constexpr (!kLast) {
      const int64_t now = plan.by_channel.quotient(walk.first + (int64_t)j * blockDim.x);
      if (now != channel) {
        channel = now;
        const Affine<A> a = affine<A>(p, walk.sample, walk.channel + now);
        const Statistics<A> s = room.stats[0];
        mean[0] = s.mean;
        factor[0] = s.rstd * a.factor;
        offset[0] = a.offset - s.rest * factor[0];
      }
    }
    Pack<A, N> z;
#pragma unroll
    for (int e = 0; e < N; e++)
      z.v[e] = (A(x.v[e]) - mean[kLast ? e : 0]) * factor[kLast ? e : 0] + offset[kLast ? e : 0];
    activate<S>(z, p.activation, slope);
    Pack<S, N> y;
#pragma unroll
    for (int e = 0; e < N; e++) y.v[e] = S(z.v[e]);
    store(p.y, walk.at(j), y);
  });
}

// --- Kernels.

// Everything, by a cluster that keeps its groups.
template <class S, int N, bool kLast>
__global__ void __launch_bounds__(kMaxThreads, sizeof(S) == 8 ? 1 : 2) whole(GroupNorm p, Plan plan) {
  using A = typename Arithmetic<S>::type;
  const Walk<N, kLast> walk(p, plan.cut);
  const Room<S, N, A> room(plan.cut);
  if constexpr (kLast) fill_table(p, walk, room.table);
  measure(p, plan.cut, walk, room);
  const bool others = plan.cut.blocks > 1;
  if (others) {
    cluster_arrive();
    cluster_wait();
  }
  join_cluster(p, plan.cut, walk.group, walk.rank, room.parts, room.stats);
  if (others) cluster_arrive();  // has seen what it needs of the others
  __syncthreads();
  normalise<1>(p, plan, walk, room);
  if (others) cluster_wait();  // may end: nobody looks into its memory any more
}

// Room for numbers in the workspace: a part of each piece, then the rest of each mean.
__host__ __device__ __forceinline__ int64_t pieces_of(const NormCut& cut) { return (int64_t)cut.blocks * cut.slices; }
template <class A> __device__ __forceinline__ A* rests(const GroupNorm& p, int64_t pieces) {
  return static_cast<A*>(p.workspace) + 4 * p.samples * p.groups * pieces;
}

// The parts of a piece of a unit.
template <class S, int N, bool kLast>
__global__ void __launch_bounds__(kMaxThreads, sizeof(S) == 8 ? 1 : 2) pieces(GroupNorm p, Plan plan) {
  using A = typename Arithmetic<S>::type;
  const Walk<N, kLast> walk(p, plan.cut);
  const Room<S, N, A> room(plan.cut);
  measure(p, plan.cut, walk, room);
  Part<A>* parts = static_cast<Part<A>*>(p.workspace);
  for (int g = threadIdx.x; g < plan.cut.together; g += blockDim.x)
    parts[(walk.group + g) * pieces_of(plan.cut) + (int64_t)walk.slice * plan.cut.blocks + walk.rank] = room.parts[g];
}

// Joins the parts of one group.
template <class A> __global__ void __launch_bounds__(kCombineThreads) combine(GroupNorm p, int64_t pieces) {
  A* totals = reinterpret_cast<A*>(dynamic_shared());
  const int64_t group = blockIdx.x;
  const Part<A>* parts = static_cast<const Part<A>*>(p.workspace) + group * pieces;
  const A count = (A)(p.channels / p.groups * p.space), pivot = parts[0].mean;
  A sum = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) sum += mean_share(parts[i], pivot);
  const A shifted = total(sum, totals) / count;
  sum = 0;
  for (int64_t i = threadIdx.x; i < pieces; i += blockDim.x) sum += square_share(parts[i], pivot, shifted);
  const A variance = total(sum, totals + kWarp) / count;
  if (threadIdx.x > 0) return;
  const Statistics<A> s = finished(pivot, shifted, variance, p.eps);
  static_cast<A*>(p.mean)[group] = s.mean;
  static_cast<A*>(p.rstd)[group] = s.rstd;
  rests<A>(p, pieces)[group] = s.rest;
}

// A piece of a unit, once its statistics are known.
template <class S, int N, bool kLast>
__global__ void __launch_bounds__(kMaxThreads, sizeof(S) == 8 ? 1 : 2) apply(GroupNorm p, Plan plan) {
  using A = typename Arithmetic<S>::type;
  const Walk<N, kLast> walk(p, plan.cut);
  const Room<S, N, A> room(plan.cut);
  if constexpr (kLast) fill_table(p, walk, room.table);
  for (int g = threadIdx.x; g < plan.cut.together; g += blockDim.x) {
    const int64_t i = walk.group + g;
    const A rest = rests<A>(p, pieces_of(plan.cut))[i];
    room.stats[g] = {static_cast<const A*>(p.mean)[i], rest, static_cast<const A*>(p.rstd)[i], 0};
  }
  __syncthreads();
  normalise<2>(p, plan, walk, room);
}

// --- Launching.

NormDevice device_now(int device) {
  NormDevice d{};
  int value = 0;
  const auto get = [&](cudaDeviceAttr what) {
    return cudaDeviceGetAttribute(&value, what, device) == cudaSuccess ? value : 0;
  };
  d.processors = get(cudaDevAttrMultiProcessorCount);
  d.shared_of_block = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  d.shared_of_processor = get(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  d.largest_cluster = get(cudaDevAttrComputeCapabilityMajor) >= 9 ? 16 : 1;
  return d;
}

// What a kernel has been allowed on a device, and which clusters of it the device has room for: asked once.
template <class Kernel> class Allowed {
 public:
  explicit Allowed(Kernel kernel) : kernel(kernel) {}

  cudaError_t shared(int device, int bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    int& so_far = granted[device];
    if (bytes <= so_far || bytes <= (48 << 10)) return cudaSuccess;
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status == cudaSuccess) so_far = bytes;
    return status;
  }

  bool cluster(int device, const NormCut& cut) {
    if (cut.blocks == 1) return true;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_tuple(device, cut.blocks, cut.threads, cut.bytes);
    const auto known = fits.find(key);
    if (known != fits.end()) return known->second;
    int clusters = 0;
    const Shape shape{cut.blocks, cut.threads, cut.blocks, (size_t)cut.bytes};
    const cudaError_t status = most_clusters(&clusters, kernel, shape);
    if (status != cudaSuccess) cudaGetLastError();  // such a cluster is not possible here, which is all that was asked
    return fits[key] = status == cudaSuccess && clusters > 0;
  }

 private:
  Kernel kernel;
  std::mutex mutex;
  std::map<int, int> granted;
  std::map<std::tuple<int, int, int, int>, bool> fits;
};

template <class S, int N, bool kLast> struct Kernels {
  using Kernel = void (*)(GroupNorm, Plan);
  static Allowed<Kernel>& whole_kernel() {
    static Allowed<Kernel> allowed(whole<S, N, kLast>);
    return allowed;
  }

  static NormShape shape(const GroupNorm& p) {
    const int arithmetic = (int)sizeof(typename Arithmetic<S>::type);
    return {p.samples, p.channels, p.space, p.groups, kLast, (int)sizeof(S), N, arithmetic};
  }

  // The first choice whose clusters the device has room for.
  static NormCut cut(const GroupNorm& p, int device) {
    NormDevice d = device_now(device);
    for (;;) {
      const NormCut c = choose(shape(p), d, p.cluster, p.together);
      if (c.split) return c;
      if (whole_kernel().shared(device, c.bytes) == cudaSuccess && whole_kernel().cluster(device, c)) return c;
      if (d.largest_cluster == 1) return split(shape(p), c.together);
      d.largest_cluster = c.blocks / 2;
    }
  }

  static cudaError_t run(const GroupNorm& p, int device, cudaStream_t stream) {
    using A = typename Arithmetic<S>::type;
    Plan plan{cut(p, device), Divider(std::max<int64_t>(p.space / N, 1))};
    const NormCut& c = plan.cut;
    const int64_t blocks = p.samples * (p.groups / c.together) * pieces_of(c);
    if (!c.split) return launch(whole<S, N, kLast>, {blocks, c.threads, c.blocks, (size_t)c.bytes}, stream, p, plan);
    cudaError_t status = launch(pieces<S, N, kLast>, {blocks, c.threads, 1, (size_t)c.bytes}, stream, p, plan);
    if (status != cudaSuccess) return status;
    const size_t totals = 2 * kWarp * sizeof(A);
    status = launch(combine<A>, {p.samples * p.groups, kCombineThreads, 1, totals}, stream, p, pieces_of(c));
    if (status != cudaSuccess) return status;
    plan.cut.kept = 0;
    return launch(apply<S, N, kLast>, {blocks, c.threads, 1, (size_t)c.slots}, stream, p, plan);
  }

  static int64_t workspace(const GroupNorm& p, int device) {
    const NormCut c = cut(p, device);
    return c.split ? p.samples * p.groups * (4 * pieces_of(c) + 1) : 0;
  }
};

// Calls f(Kernels<...>) for the storage type, the widest packs that fit, and the layout.
template <class S, class F> auto with_packs(const GroupNorm& p, F f) {
  constexpr int N = kWide<S>;
  bool wide = true;
  for (const void* data : {p.x, p.residual, (const void*)p.y, (const void*)p.total})
    wide = wide && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  if (p.channels_last) {
    wide = wide && p.channels % N == 0 && together_for(Kernels<S, N, true>::shape(p), 1) > 0;
    return wide ? f(Kernels<S, N, true>()) : f(Kernels<S, 1, true>());
  }
  return wide && p.space % N == 0 ? f(Kernels<S, N, false>()) : f(Kernels<S, 1, false>());
}

template <class R, class F> R with_kernels(const GroupNorm& p, R otherwise, F f) {
  switch (p.dtype) {
    case Dtype::f32: return with_packs<float>(p, f);
    case Dtype::f64: return with_packs<double>(p, f);
    case Dtype::bf16: return with_packs<__nv_bfloat16>(p, f);
    case Dtype::f16: return with_packs<__half>(p, f);
    case Dtype::u8: break;  // pixels, in losses only
  }
  return otherwise;
}

int current_device() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? device : 0;
}

}  // namespace

int64_t group_norm_workspace(const GroupNorm& p) {
  if (p.samples == 0) return 0;
  const int device = current_device();
  return with_kernels(p, (int64_t)0, [&](auto kernels) { return kernels.workspace(p, device); });
}

cudaError_t group_norm(const GroupNorm& p, cudaStream_t stream) {
  if (p.samples == 0) return cudaSuccess;
  const int device = current_device();
  return with_kernels(p, cudaErrorInvalidValue, [&](auto kernels) { return kernels.run(p, device, stream); });
}

}  // namespace cuda
}  // namespace genmod
