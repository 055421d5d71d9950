// From sums per piece to coefficients per channel: short loops in double precision, the same on every instruction set.
#pragma once
#include <math.h>

#include <vector>

#include "norm_act.h"

namespace genmod {

// Where the statistics lie, and with them the coefficients of every channel that has its own.
struct NormCoefficients {
  std::vector<double> mean, slope, offset, tilt, level;
  explicit NormCoefficients(const NormCut& cut) {
    for (auto* v : {&mean, &slope, &offset, &tilt, &level}) v->assign((size_t)(cut.blocks * cut.block_channels()), 0.);
  }
  template <class Params> void lend(Params& p) {
    p.mean = mean.data();
    p.slope = slope.data();
    p.offset = offset.data();
  }
};

// Parameters in double precision; those not given are empty. Scale and shift hold a value per sample and channel.
struct NormParameters {
  std::vector<double> weight, bias, scale, shift;
  double weight_of(int64_t c) const { return weight.empty() ? 1. : weight[(size_t)c]; }
  double bias_of(int64_t c) const { return bias.empty() ? 0. : bias[(size_t)c]; }
  double growth_of(int64_t q) const { return scale.empty() ? 1. : 1. + scale[(size_t)q]; }
  double shift_of(int64_t q) const { return shift.empty() ? 0. : shift[(size_t)q]; }
};

// Set q of the coefficients, that of channel c, from a mean and 1 / (standard deviation). What is subtracted has to be a number of the
// kernel's precision; what that rounding takes from the mean goes into the offset.
inline void set_coefficients(NormCoefficients& k, const NormParameters& given, Dtype dtype, int64_t q, int64_t c, double mean, double rstd) {
  const double near = dtype == Dtype::f64 ? mean : (double)(float)mean, gain = rstd * given.weight_of(c);
  k.mean[(size_t)q] = near;
  k.slope[(size_t)q] = gain * given.growth_of(q);
  k.offset[(size_t)q] = (given.bias_of(c) + (near - mean) * gain) * given.growth_of(q) + given.shift_of(q);
}

// Joins the moments of a block's pieces, in order.
inline void join_moments(const NormCut& cut, int64_t block, const double* moments, double* all_means, double* all_variances) {
  double *means = all_means + block * cut.statistics, *variances = all_variances + block * cut.statistics, count = 0;
  for (int64_t g = 0; g < cut.statistics; g++) means[g] = variances[g] = 0;
  for (int64_t piece = 0; piece < cut.pieces; piece++) {
    const double* m = moments + 2 * (block * cut.pieces + piece) * cut.statistics;
    const double n = (double)cut.count(piece), share = n / (count + n);
    for (int64_t g = 0; g < cut.statistics; g++, m += 2) {
      const double delta = m[0] - means[g];
      means[g] += delta * share;
      variances[g] += m[1] + delta * delta * (count * share);
    }
    count += n;
  }
  for (int64_t g = 0; g < cut.statistics; g++) variances[g] /= count;
}

// Sums per channel that has its own coefficients: of dz, and of dz * (x - mean).
struct NormSums {
  std::vector<double> dz, product;
  explicit NormSums(const NormCut& cut) : dz((size_t)(cut.blocks * cut.block_channels())), product(dz.size()) {}
  void collect(const NormCut& cut, int64_t block, const double* sums) {
    double *d = dz.data() + block * cut.block_channels(), *q = product.data() + block * cut.block_channels();
    for (int64_t piece = 0; piece < cut.pieces; piece++) {
      const double* s = sums + 2 * (block * cut.pieces + piece) * cut.width();
      const int64_t first = cut.in_rows ? 0 : cut.channel(piece), last = cut.in_rows ? cut.block_channels() : first + 1;
      for (int64_t c = first; c < last; c++, s += 2) {
        d[c] += s[0];
        q[c] += s[1];
      }
    }
  }
};

// What the gradient takes back because the statistics depend on x: with h = (x - mean) rstd and dh = dz slope / rstd,
// dx = rstd (dh - [dh] - h [dh h]).
inline void set_tilt_and_level(NormCoefficients& k, const NormSums& sums, const NormCut& cut, int64_t block, const double* rstd) {
  double count = 0;
  for (int64_t piece = 0; piece < cut.pieces; piece++) count += (double)cut.count(piece);
  for (int64_t g = block * cut.statistics; g < (block + 1) * cut.statistics; g++) {
    const int64_t first = g * cut.statistic_channels, last = first + cut.statistic_channels;
    double dh = 0, dh_h = 0;
    for (int64_t q = first; q < last; q++) {
      dh += k.slope[(size_t)q] * sums.dz[(size_t)q];
      dh_h += k.slope[(size_t)q] * sums.product[(size_t)q];
    }
    const double level = -dh / count, tilt = -dh_h / count * rstd[g] * rstd[g];
    for (int64_t q = first; q < last; q++) {
      k.level[(size_t)q] = level;
      k.tilt[(size_t)q] = tilt;
    }
  }
}

}  // namespace genmod
