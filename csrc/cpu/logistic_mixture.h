// The discretised logistic mixture on the CPU. Work is cut into tiles of neighbouring pixels of one sample; every sum is
// kept per tile, so results do not depend on the number of threads.
#pragma once
#include "../types.h"
#include "isa.h"

namespace genmod {

// A tile reads and writes so many neighbouring numbers of each of a hundred planes: enough for the memory to stream and
// for the translation of addresses, at two pages per plane, to pay.
constexpr int64_t kTilePixels = 256;

inline int64_t tiles_per_sample(int64_t pixels) { return (pixels + kTilePixels - 1) / kTilePixels; }

// An image tensor [B, C, H, W] whose pixels lie at equal distances; strides in elements.
struct Planes {
  void* data;
  Dtype dtype;
  int64_t batch, channel, pixel;
};

struct LogisticMixture {
  bool rgb;  // three channels, or one
  int64_t components, batch, pixels;
  double half_bin, min_log_scale;
  Planes output, target;
  const void* weight;  // one per pixel, dense, in the accumulation type; or null
};

// Of these two one is given.
struct LogisticMixtureForward : LogisticMixture {
  void* nll;     // per pixel, dense, in the accumulation type
  double* sums;  // per tile
};

struct LogisticMixtureBackward : LogisticMixture {
  const void* grad;  // in the accumulation type
  int64_t grad_batch, grad_pixel;  // its strides; zero where one value stands for many
  double scale;      // multiplies it
  Planes d_output;   // of the dtype of output
  double* sums;      // per tile, of the loss; or null
};

struct LogisticMixtureKernels {
  void (*forward)(const LogisticMixtureForward&, int64_t first_tile, int64_t last_tile);
  void (*backward)(const LogisticMixtureBackward&, int64_t first_tile, int64_t last_tile);
};

GENMOD_DECLARE(LogisticMixtureKernels, logistic_mixture_kernels)

}  // namespace genmod
