// The gaussian family on the CPU. Every sum is kept per chunk, so results do not depend on the number of threads.
#pragma once
#include "../gaussian_types.h"
#include "chunks.h"
#include "isa.h"

namespace genmod {

// A sum over samples of `sample` elements each goes to `sums` as reduce.h says.
struct GaussianForward {
  Dtype dtype;
  Clamp clamp;
  double free_bits;
  int64_t numel, cols;
  Rows mean, logvar, other_mean, other_logvar;  // other_*: the second Gaussian of a KL, if any
  const void* noise;                            // dense, or null
  bool draw;                                    // draw noise from `key`
  uint64_t key;
  void* z;                                      // dense, or null
  void* kl;                                     // per element in the accumulation type, or null
  double* sums;                                 // or null
  int64_t sample;
};

struct GaussianBackward {
  Dtype dtype;
  Clamp clamp;
  double free_bits;
  int64_t numel, cols;
  Rows mean, logvar, other_mean, other_logvar;
  const void* noise;
  bool draw;
  uint64_t key;
  const void* grad_z;   // dense, or null
  const void* grad_kl;  // in the accumulation type: per element, or one value per `sample` elements, or null
  bool grad_kl_per_element;
  int64_t sample;
  double scale;         // multiplies grad_kl
  struct Out { void* data; int64_t stride; } d_mean, d_logvar, d_other_mean, d_other_logvar;  // data may be null
  int64_t out_cols, other_out_cols;  // the rows of the outputs, as `cols` is of the inputs
};

// What backward returned, differentiated: `other_mean` and `other_logvar` are what arrives at its two gradients.
struct GaussianDoubleBackward : GaussianBackward {
  void* d_grad_z;   // dense, or null
  void* d_grad_kl;  // per element in the accumulation type, or null
  double* sums;     // of the same, or null
};

struct GaussianKernels {
  void (*forward)(const GaussianForward&, int64_t first_chunk, int64_t last_chunk);
  void (*kl_pair)(const GaussianForward&, int64_t first_chunk, int64_t last_chunk);
  void (*backward)(const GaussianBackward&, int64_t first_chunk, int64_t last_chunk);
  void (*kl_pair_backward)(const GaussianBackward&, int64_t first_chunk, int64_t last_chunk);
  void (*double_backward)(const GaussianDoubleBackward&, int64_t first_chunk, int64_t last_chunk);
};

GENMOD_DECLARE(GaussianKernels, gaussian_kernels)

}  // namespace genmod
