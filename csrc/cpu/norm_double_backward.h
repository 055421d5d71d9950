// The second derivative of normalisation and activation on the CPU: what a kernel is told. Cuts are those of norm_act.h.
#pragma once
#include "norm_act.h"

namespace genmod {

// With c = x - mean, z = c slope + offset and dz = grad act'(z), and `to_x` what arrives at the gradient of x, or null:
//     K  = to_x slope + c turn + level      what arrives at dz
//     dg = K act'(z)                        the gradient of grad
//     Z  = K grad act''(z)                  that of z
//     dx = dz turn + Z slope + to_x pull + c tilt + base
// All but the last two coefficients are there before `spread`, which leaves the sums that these are made of.
struct NormDoubleBackward : NormShared {
  const void *grad, *to_x;
  double *turn, *level, *pull, *tilt, *base;  // a value per set of coefficients
  double* sums;                               // per piece and channel, kFirstSums of `sums`
  double* spread_sums;                        // the same, kSpreadSums of `spread`
  void *d_grad, *dx;                          // may be null
};

constexpr int kFirstSums = 5;   // dz, dz c, to_x, to_x c, to_x dz
constexpr int kSpreadSums = 2;  // Z, Z c

struct NormDoubleKernels {
  void (*sums)(const NormDoubleBackward&, int64_t first, int64_t last);
  void (*spread)(const NormDoubleBackward&, int64_t first, int64_t last);    // writes dg
  void (*gradient)(const NormDoubleBackward&, int64_t first, int64_t last);  // writes dx
};

GENMOD_DECLARE(NormDoubleKernels, norm_double_kernels)

}  // namespace genmod
