// Launching blocks, and sums within one, always added in the same order.
#pragma once
#include <cuda_runtime.h>
#include <limits.h>
#include <stdint.h>

namespace genmod {
namespace cuda {

// Sum over `width` neighbouring threads, a power of two up to 32; each gets the same bits. The whole warp must call it.
template <class A> __device__ __forceinline__ A group_sum(A x, int width) {
  for (int offset = width / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Sum over a block of THREADS, returned to thread 0. To be called once per kernel, by every thread.
template <int THREADS, class A> __device__ __forceinline__ A block_sum(A x) {
  __shared__ A warps[THREADS / 32];
  x = group_sum(x, 32);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  A total = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < THREADS / 32; w++) total += warps[w];
  return total;
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, cudaStream_t stream, const Args&... args) {
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;  // the grid's limit
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)blocks);
  config.blockDim = dim3((unsigned)threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace cuda
}  // namespace genmod
