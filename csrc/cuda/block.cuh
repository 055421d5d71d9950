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

// How many blocks of how many threads; of clusters, how many blocks each; and how much shared memory beyond what the
// kernel declares.
struct Shape {
  int64_t blocks;
  int threads;
  int cluster;
  size_t shared;
};

// `attribute` has to live as long as the result.
inline cudaLaunchConfig_t configured(const Shape& shape, cudaStream_t stream, cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)shape.blocks);
  config.blockDim = dim3((unsigned)shape.threads);
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  if (shape.cluster > 1) {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = (unsigned)shape.cluster;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    config.attrs = attribute;
    config.numAttrs = 1;
  }
  return config;
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), const Shape& shape, cudaStream_t stream, const Args&... args) {
  if (shape.blocks > INT_MAX) return cudaErrorInvalidConfiguration;  // the grid's limit
  cudaLaunchAttribute attribute{};
  const cudaLaunchConfig_t config = configured(shape, stream, &attribute);
  return cudaLaunchKernelEx(&config, kernel, args...);
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, cudaStream_t stream, const Args&... args) {
  return launch(kernel, Shape{blocks, threads, 1, 0}, stream, args...);
}

// How many clusters of this shape the device can run at once.
template <class... Params> cudaError_t most_clusters(int* clusters, void (*kernel)(Params...), Shape shape) {
  if (shape.cluster > 8) {  // more than every device with clusters promises
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (status != cudaSuccess) return status;
  }
  shape.blocks = shape.cluster;
  cudaLaunchAttribute attribute{};
  const cudaLaunchConfig_t config = configured(shape, nullptr, &attribute);
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

}  // namespace cuda
}  // namespace genmod
