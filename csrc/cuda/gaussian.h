// The gaussian family on the GPU: plain structs and pointers, no tensors. All pointers are device memory. Nothing here
// waits for the device or allocates, so every call can be captured in a graph.
#pragma once
#include <cuda_runtime_api.h>

#include "../gaussian_types.h"

namespace genmod {
namespace cuda {

// A sum over samples of `sample` elements each (one sample of `numel` elements: the sum of all).
struct GaussianForward {
  Dtype dtype;
  Clamp clamp;
  double free_bits;
  int64_t numel, cols;
  Rows mean, logvar, other_mean, other_logvar;  // other_*: the second Gaussian of a KL, if any; then no z
  const void* noise;                            // dense, or null
  const int64_t* seed;                          // or the key to draw it from
  void* z;                                      // dense, or null
  void* kl;                                     // per element in the arithmetic type, or null
  void* sums;                                   // [samples] in the arithmetic type, times `scale`, or null
  int64_t sample, samples;
  double scale;
  void* workspace;                              // gaussian_workspace() numbers of the arithmetic type, for `sums`
};

struct GaussianBackward {
  Dtype dtype;
  Clamp clamp;
  double free_bits;
  int64_t numel, cols;
  Rows mean, logvar, other_mean, other_logvar;
  const void* noise;
  const int64_t* seed;
  const void* grad_z;   // dense, or null
  const void* grad_kl;  // in the arithmetic type: per element, or one value per `sample` elements, or null
  bool grad_kl_per_element;
  int64_t sample;
  double scale;         // multiplies grad_kl
  struct Out { void* data; int64_t stride; } d_mean, d_logvar, d_other_mean, d_other_logvar;  // data may be null
  int64_t out_cols, other_out_cols;  // the rows of the outputs, as `cols` is of the inputs
};

int64_t gaussian_workspace(int64_t numel, int64_t samples);
cudaError_t gaussian_forward(const GaussianForward&, cudaStream_t);
cudaError_t gaussian_backward(const GaussianBackward&, cudaStream_t);

}  // namespace cuda
}  // namespace genmod
