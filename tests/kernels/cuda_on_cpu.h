// CUDA C++ on the CPU, for tests: enough of the language and the runtime to run the kernels of csrc/cuda.
//
// Clusters (of one block, if the launch names no others) run one after another. A cluster's threads are fibres that run
// until they meet a barrier; a barrier that not all of its threads reach makes the launch fail, as it would hang a GPU,
// and so does a misaligned access, if compiled with -fsanitize=alignment (and linked without, so that the handler below
// is the one called). Each block of a cluster has its own dynamic shared memory, which turns into NaN when it ends;
// what a kernel declares as __shared__ exists once, for kernels without clusters. Proves logic and indexing. What it
// cannot show: races inside one stretch between barriers (though running the threads in reverse must not change a
// result), memory ordering, speed.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time, but in clusters: one copy will do

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719
};
typedef struct CUstream_st* cudaStream_t;
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct { struct { unsigned x, y, z; } clusterDim; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 13
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

namespace cuda_on_cpu {

enum class At { running, warp_barrier, block_barrier, cluster_barrier, end };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  At at;
  uint64_t slot;     // what a shuffle offers to the other lanes
  unsigned arrived;  // how often, at the cluster's barrier
};

// The device, as tests want it.
struct Device {
  int processors = 4, major = 9, shared_of_block = 227 << 10, shared_of_processor = 228 << 10;
  unsigned largest_cluster = 16;  // that there is room for
};

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kWarp = 32;

static unsigned misaligned = 0;
static bool reversed = false;  // last block and thread first: a correct kernel does not care
static std::vector<Thread> threads;  // of a cluster
static unsigned current, block_threads;
static Device device;
static std::vector<std::unique_ptr<char[]>> shared;  // dynamic, of each block in the cluster
static size_t shared_bytes;
static std::map<const void*, size_t> granted;        // dynamic shared memory beyond 48 KB, by kernel
static std::map<const void*, bool> large_clusters;   // beyond 8 blocks, by kernel
static ucontext_t scheduler;
static std::function<void()> kernel;

static void enter() {
  kernel();
  threads[current].at = At::end;
  swapcontext(&threads[current].context, &scheduler);
}

static void wait(At barrier) {
  Thread& self = threads[current];
  self.at = barrier;
  swapcontext(&self.context, &scheduler);
}

// Lets through the threads first .. last - 1 if all that have not ended wait at `barrier`; a warp must be complete.
static bool release(unsigned first, unsigned last, At barrier) {
  unsigned waiting = 0, ended = 0;
  for (unsigned t = first; t < last; t++) {
    waiting += threads[t].at == barrier;
    ended += threads[t].at == At::end;
  }
  if (waiting == 0 || waiting + ended < last - first || (barrier == At::warp_barrier && ended)) return false;
  for (unsigned t = first; t < last; t++)
    if (threads[t].at == barrier) threads[t].at = At::running;
  return true;
}

// Lets those through that have arrived no more often than every other thread that still runs.
static bool release_cluster() {
  unsigned least = ~0u;
  bool released = false;
  for (const Thread& t : threads)
    if (t.at != At::end && t.arrived < least) least = t.arrived;
  for (Thread& t : threads)
    if (t.at == At::cluster_barrier && t.arrived <= least) {
      t.at = At::running;
      released = true;
    }
  return released;
}

constexpr size_t kAlign = 128;
static char* shared_memory(unsigned block) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(shared[block].get());
  return reinterpret_cast<char*>((start + kAlign - 1) / kAlign * kAlign);
}
static void fill_with_nan(unsigned block) { memset(shared_memory(block), 0xff, shared_bytes); }

// Runs the blocks first .. first + blocks - 1.
static bool run_cluster(unsigned first, unsigned blocks) {
  const unsigned count = (unsigned)threads.size();
  for (unsigned b = 0; b < blocks; b++) fill_with_nan(b);
  for (Thread& t : threads) {
    if (!t.stack) t.stack.reset(new char[kStack]);
    t.at = At::running;
    t.arrived = 0;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = kStack;
    t.context.uc_link = nullptr;
    makecontext(&t.context, enter, 0);
  }
  for (;;) {
    bool ended = true;
    for (unsigned b = 0; b < blocks; b++) {
      const unsigned block = reversed ? blocks - 1 - b : b;
      bool block_ended = true;
      for (unsigned i = 0; i < block_threads; i++) {
        const unsigned thread = reversed ? block_threads - 1 - i : i;
        current = block * block_threads + thread;
        if (threads[current].at == At::running) {
          threadIdx = dim3(thread);
          blockIdx = dim3(first + block);
          swapcontext(&scheduler, &threads[current].context);
        }
        block_ended = block_ended && threads[current].at == At::end;
      }
      if (block_ended && blocks > 1) fill_with_nan(block);  // nobody may look there any more
      ended = ended && block_ended;
    }
    if (ended) return true;
    bool released = release_cluster();
    for (unsigned b = 0; b < count; b += block_threads) {
      released |= release(b, b + block_threads, At::block_barrier);
      for (unsigned t = 0; t < block_threads; t += kWarp)
        released |= release(b + t, b + (t + kWarp < block_threads ? t + kWarp : block_threads), At::warp_barrier);
    }
    if (!released) {
      fprintf(stderr, "cuda_on_cpu: block %u stands at a barrier that not all of its threads reach\n", blockIdx.x);
      return false;
    }
  }
}

static unsigned cluster_of(const cudaLaunchConfig_t& config) {
  return config.numAttrs ? config.attrs->val.clusterDim.x : 1;
}

// What a GPU would refuse to launch.
static bool refused(const cudaLaunchConfig_t& config, const void* kernel) {
  const unsigned cluster = cluster_of(config);
  const size_t allowed = granted.count(kernel) ? granted[kernel] : 48 << 10;
  return config.dynamicSmemBytes > allowed || config.dynamicSmemBytes > (size_t)device.shared_of_block ||
         config.gridDim.x % cluster || cluster > device.largest_cluster ||
         (cluster > 1 && device.major < 9) || (cluster > 8 && !large_clusters[kernel]);
}

template <class T> T exchange(T value, unsigned source_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles move up to 8 bytes");
  memcpy(&threads[current].slot, &value, sizeof(T));
  wait(At::warp_barrier);
  memcpy(&value, &threads[current / kWarp * kWarp + source_lane % kWarp].slot, sizeof(T));
  wait(At::warp_barrier);  // nobody offers the next value before all have read this one
  return value;
}

}  // namespace cuda_on_cpu

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*function)(Params...), Args&&... args) {
  using namespace cuda_on_cpu;
  if (refused(*config, (const void*)function)) return cudaErrorInvalidConfiguration;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  const unsigned cluster = cluster_of(*config);
  block_threads = blockDim.x;
  threads.resize(cluster * block_threads);
  shared_bytes = config->dynamicSmemBytes;
  shared.clear();
  for (unsigned b = 0; b < cluster; b++) shared.emplace_back(new char[shared_bytes + kAlign]);
  kernel = [&] { function(args...); };
  for (unsigned b = 0; b < gridDim.x; b += cluster)
    if (!run_cluster(reversed ? gridDim.x - cluster - b : b, cluster)) return cudaErrorLaunchFailure;
  return std::exchange(misaligned, 0) ? cudaErrorMisalignedAddress : cudaSuccess;
}

template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*function)(Params...), cudaFuncAttribute what, int value) {
  using namespace cuda_on_cpu;
  if (what == cudaFuncAttributeNonPortableClusterSizeAllowed) large_clusters[(const void*)function] = value;
  else if (value > device.shared_of_block) return cudaErrorInvalidValue;
  else granted[(const void*)function] = (size_t)value;
  return cudaSuccess;
}
template <class... Params>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*function)(Params...),
                                           const cudaLaunchConfig_t* config) {
  *clusters = !cuda_on_cpu::refused(*config, (const void*)function);
  return cudaSuccess;
}
static inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
static inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  const cuda_on_cpu::Device& d = cuda_on_cpu::device;
  *value = what == cudaDevAttrMultiProcessorCount            ? d.processors
           : what == cudaDevAttrComputeCapabilityMajor       ? d.major
           : what == cudaDevAttrMaxSharedMemoryPerBlockOptin ? d.shared_of_block
                                                             : d.shared_of_processor;
  return cudaSuccess;
}

// What the alignment sanitizer calls.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) { cuda_on_cpu::misaligned++; }

static inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::At::block_barrier); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_cpu::exchange(value, threadIdx.x ^ (unsigned)mask);
}
template <class T> T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % cuda_on_cpu::kWarp;
  return cuda_on_cpu::exchange(value, lane + delta < cuda_on_cpu::kWarp ? lane + delta : lane);
}

#define __expf expf  // a function of that name is in glibc
static inline float __fdividef(float x, float y) { return x / y; }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (uint64_t)((unsigned __int128)a * b >> 64); }
static inline int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, 4);
  return bits;
}
static inline float __int_as_float(int bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// The two 16-bit types: float on conversion, rounded to the nearest even on the way back.
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) {
    const uint32_t b = (uint32_t)__float_as_int(x);
    bits = x != x ? 0x7fff : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
  }
  operator float() const { return __int_as_float((int)((uint32_t)bits << 16)); }
};

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float x) {
    const float a = fabsf(x);
    int exponent;
    frexpf(a, &exponent);  // a = mantissa * 2^exponent, mantissa in [1/2, 1)
    if (x != x) bits = 0x7fff;
    else if (a >= 65520.f) bits = 0x7c00;
    else if (a < 0x1p-14f) bits = (uint16_t)nearbyintf(ldexpf(a, 24));  // subnormal; may round up to the first normal
    else bits = (uint16_t)(((exponent + 14) << 10) + (int)nearbyintf(ldexpf(a, 11 - exponent)) - 1024);
    bits |= (uint16_t)(signbit(x) ? 0x8000 : 0);
  }
  operator float() const {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float a = exponent == 0    ? ldexpf((float)mantissa, -24)
                    : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                     : ldexpf((float)(1024 + mantissa), exponent - 25);
    return bits & 0x8000 ? -a : a;
  }
};
