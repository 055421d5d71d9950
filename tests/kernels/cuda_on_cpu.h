// CUDA C++ on the CPU, for tests: enough of the language and the runtime to run the kernels of csrc/cuda.
//
// Blocks run one after another. A block's threads are fibres that run until they meet a barrier; a barrier that not all
// of its threads reach makes the launch fail, as it would hang a GPU, and so does a misaligned access, if compiled with
// -fsanitize=alignment (and linked without, so that the handler below is the one called). Proves logic and indexing. What it cannot show:
// races inside one stretch between barriers (though running the threads in reverse must not change a result), memory
// ordering, speed.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time: one copy will do

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9, cudaErrorMisalignedAddress = 716, cudaErrorLaunchFailure = 719 };
typedef struct CUstream_st* cudaStream_t;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_on_cpu {

enum class At { running, warp_barrier, block_barrier, end };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  At at;
  uint64_t slot;  // what a shuffle offers to the other lanes
};

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kWarp = 32;

static unsigned misaligned = 0;
static bool reversed = false;  // last block and thread first: a correct kernel does not care
static std::vector<Thread> threads;
static unsigned current;
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

static bool run_block() {
  const unsigned count = (unsigned)threads.size();
  for (Thread& t : threads) {
    if (!t.stack) t.stack.reset(new char[kStack]);
    t.at = At::running;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = kStack;
    t.context.uc_link = nullptr;
    makecontext(&t.context, enter, 0);
  }
  for (;;) {
    bool ended = true;
    for (unsigned i = 0; i < count; i++) {
      current = reversed ? count - 1 - i : i;
      if (threads[current].at == At::running) {
        threadIdx = dim3(current);
        swapcontext(&scheduler, &threads[current].context);
      }
      ended = ended && threads[current].at == At::end;
    }
    if (ended) return true;
    bool released = release(0, count, At::block_barrier);
    for (unsigned t = 0; t < count; t += kWarp) released |= release(t, t + kWarp < count ? t + kWarp : count, At::warp_barrier);
    if (!released) {
      fprintf(stderr, "cuda_on_cpu: block %u stands at a barrier that not all of its threads reach\n", blockIdx.x);
      return false;
    }
  }
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
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  cuda_on_cpu::threads.resize(blockDim.x);
  cuda_on_cpu::kernel = [&] { function(args...); };
  for (unsigned b = 0; b < gridDim.x; b++) {
    blockIdx = dim3(cuda_on_cpu::reversed ? gridDim.x - 1 - b : b);
    if (!cuda_on_cpu::run_block()) return cudaErrorLaunchFailure;
  }
  return std::exchange(cuda_on_cpu::misaligned, 0) ? cudaErrorMisalignedAddress : cudaSuccess;
}

// What the alignment sanitizer calls.
extern "C" void __ubsan_handle_type_mismatch_v1(void*, void*) { cuda_on_cpu::misaligned++; }

static inline void __syncthreads() { cuda_on_cpu::wait(cuda_on_cpu::At::block_barrier); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return cuda_on_cpu::exchange(value, threadIdx.x ^ (unsigned)mask); }
template <class T> T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % cuda_on_cpu::kWarp;
  return cuda_on_cpu::exchange(value, lane + delta < cuda_on_cpu::kWarp ? lane + delta : lane);
}

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
