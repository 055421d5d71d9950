// Leaky ReLU by its mask on the CPU.
#pragma once
#include "../types.h"
#include "chunks.h"
#include "isa.h"

namespace genmod {

struct LeakyRelu {
  Dtype dtype;
  double slope;
  int64_t numel, cols;
  Rows x;
  void* y;        // dense
  uint8_t* mask;  // dense, one byte per element: written by `mask`, read by `apply`
};

struct CriticKernels {
  void (*mask)(const LeakyRelu&, int64_t first_chunk, int64_t last_chunk);
  void (*apply)(const LeakyRelu&, int64_t first_chunk, int64_t last_chunk);
};

GENMOD_DECLARE(CriticKernels, critic_kernels)

}  // namespace genmod
