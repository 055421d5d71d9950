// Group norm and activation on the GPU: plain structs and pointers, no tensors. All pointers are device memory. Nothing
// here waits for the device or allocates, so every call can be captured in a graph.
#pragma once
#include <cuda_runtime_api.h>

#include "../activation_types.h"
#include "../types.h"

namespace genmod {
namespace cuda {

// A number per channel; of sample n, if it has its own, `stride` elements further than of sample n - 1.
struct NormParameter {
  const void* data;  // or null
  Dtype dtype;
  int64_t stride;
};

struct GroupNorm {
  Dtype dtype;
  Activation activation;
  double eps, negative_slope;
  int64_t samples, channels, space, groups;
  bool channels_last;
  const void *x, *residual;  // [samples, channels, space] or, channels_last, [samples, space, channels]
  NormParameter weight, bias, scale, shift;
  void *y, *total;           // as x; total = x + residual; without a residual both are null
  void *mean, *rstd;         // [samples, groups] in the arithmetic type
  void* workspace;           // group_norm_workspace() numbers of the arithmetic type, aligned to 16 bytes
  // For measurements; 0: chosen here. How many blocks keep a group (-1: none, the statistics go through memory), and
  // how many groups they take at once in channels_last.
  int cluster, together;
};

// Of the current device, as group_norm() then finds it.
int64_t group_norm_workspace(const GroupNorm&);
cudaError_t group_norm(const GroupNorm&, cudaStream_t);

}  // namespace cuda
}  // namespace genmod
