// Shared memory of a size known at the launch, and clusters: blocks that run at the same time, near each other, and see
// each other's shared memory. They came with compute capability 9.0; before it every block is a cluster by itself.
// Tests exchange this file for one that runs on a CPU.
#pragma once
#include <cuda_runtime.h>

namespace genmod {
namespace cuda {

// The launch's dynamicSmemBytes, aligned for any pack.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ __align__(16) char genmod_dynamic_shared[];
  return genmod_dynamic_shared;
}

// Every thread of the cluster arrives, and waits for all others to have; what was written before is seen after. A block
// must not end while another may still look into its shared memory.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// Where block `rank` of this cluster has what this one has at `shared`.
template <class T> __device__ __forceinline__ const T* shared_of(const T* shared, unsigned rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return there;
#else
  (void)rank;
  return shared;
#endif
}

}  // namespace cuda
}  // namespace genmod
