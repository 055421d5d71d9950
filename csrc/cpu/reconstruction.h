// Reconstruction losses on the CPU. Every sum is kept per chunk, so results do not depend on the number of threads.
#pragma once
#include "../types.h"
#include "chunks.h"
#include "isa.h"

namespace genmod {

enum class Kind : int { bernoulli, gaussian, laplace, discretized_logistic, mse, l1 };
constexpr bool has_scale(Kind kind) { return kind == Kind::gaussian || kind == Kind::laplace || kind == Kind::discretized_logistic; }

// A tensor of a dtype of its own, in the common rows; data may be null.
struct Input {
  Dtype dtype;
  Rows rows;
};

// What is lost between an output and a target, of which forward and backward both are made.
struct Reconstruction {
  Kind kind;
  bool wide;  // compute in double
  int64_t numel, cols;
  Input output, target, weight;
  Input log_scale;      // per element, or of stride 0 one for all, or
  bool one_log_scale;
  double fixed;         // this, where log_scale is null
  double min_log_scale;
  double half;          // half of a bin's width
};

struct ReconstructionForward : Reconstruction {
  void* values;  // per element in the accumulation type, or null
  double* sums;  // of samples, as reduce.h says, or null
  int64_t sample;
};

struct ReconstructionBackward : Reconstruction {
  const void* grad;  // in the accumulation type: per element, or one value per `sample` elements
  bool grad_per_element;
  int64_t sample;
  double scale;      // multiplies grad
  struct Out { Dtype dtype; void* data; int64_t stride; } d_output, d_log_scale;  // data may be null
  int64_t out_cols;
  double* log_scale_sums;  // one per chunk: the gradient of a single log-scale; or null
  double* sums;            // of the values, as forward's, in the same pass; or null
};

// The gradients, by output and log-scale and by the gradient that came in, of what backward returned.
struct ReconstructionDoubleBackward : ReconstructionBackward {
  Input by_output, by_log_scale;  // what arrives at the two gradients, as the inputs lie; null where nothing does
  void* grad_values;              // that of each element's incoming gradient, in the accumulation type, or null; or in sums
};

struct ReconstructionKernels {
  void (*forward)(const ReconstructionForward&, int64_t first_chunk, int64_t last_chunk);
  void (*backward)(const ReconstructionBackward&, int64_t first_chunk, int64_t last_chunk);
  void (*double_backward)(const ReconstructionDoubleBackward&, int64_t first_chunk, int64_t last_chunk);
};

GENMOD_DECLARE(ReconstructionKernels, reconstruction_kernels)

}  // namespace genmod
