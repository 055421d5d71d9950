// What csrc/cuda/cluster.cuh is on a CPU; see cuda_on_cpu.h.
#pragma once
#include <cuda_runtime.h>

namespace genmod {
namespace cuda {

static inline unsigned this_block() { return cuda_on_cpu::current / cuda_on_cpu::block_threads; }
static inline char* dynamic_shared() { return cuda_on_cpu::shared_memory(this_block()); }
static inline void cluster_arrive() { cuda_on_cpu::threads[cuda_on_cpu::current].arrived++; }
static inline void cluster_wait() { cuda_on_cpu::wait(cuda_on_cpu::At::cluster_barrier); }
template <class T> const T* shared_of(const T* shared, unsigned rank) {
  const char* here = reinterpret_cast<const char*>(shared);
  return reinterpret_cast<const T*>(cuda_on_cpu::shared_memory(rank) + (here - dynamic_shared()));
}

}  // namespace cuda
}  // namespace genmod
