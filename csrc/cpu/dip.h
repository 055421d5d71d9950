// The covariance penalty of DIP-VAE on the CPU. Work is cut by sizes alone, never by the number of threads, and every sum
// has one order.
#pragma once
#include "../types.h"
#include "isa.h"

namespace genmod {

constexpr int64_t kPart = 64;    // rows of the batch that are taken together
constexpr int64_t kBand = 8;     // rows of the covariance in a tile of it
constexpr int64_t kPanel = 32;   // and columns: whole vectors of every instruction set

inline int64_t parts_of(int64_t rows) { return (rows + kPart - 1) / kPart; }
inline int64_t padded(int64_t dims) { return (dims + kPanel - 1) / kPanel * kPanel; }
// Tiles that have an element on the diagonal or above it. They are numbered panel by panel, of which panel p has bands up
// to its own last, or to the last that there is.
inline int64_t covariance_tiles_of(int64_t dims) {
  const int64_t panels = padded(dims) / kPanel, bands = (dims + kBand - 1) / kBand;
  return panels ? (kPanel / kBand) * panels * (panels - 1) / 2 + bands : 0;
}

struct Covariance {
  bool wide;
  int64_t rows, dims;
  const void *mean, *logvar;   // [rows][dims]; without `logvar` there are no variances
  double* sums;                // [parts][2][dims], of means and of variances over the rows of a part
  const double* variance;      // [dims], the average
  const void* average;         // [dims]
  void* covariance;            // [dims][dims]
  double lambda_od, lambda_d;
  double* penalties;           // one per tile
};

struct CovarianceBackward {
  bool wide;
  int64_t rows, dims;
  const void *mean, *logvar;
  const void *average, *covariance;
  double lambda_od, lambda_d;
  double to_mean, to_logvar;   // factors of the slope by the covariance
  void* slope;                 // [dims][padded(dims)], times `to_mean`; zeros in the padding
  void* variance_slope;        // [dims], times `to_logvar`
  void *d_mean, *d_logvar;     // [rows][dims]; one that is not wanted is null
};

struct DipKernels {
  void (*sum)(const Covariance&, int64_t first, int64_t last);           // parts
  void (*covariance)(const Covariance&, int64_t first, int64_t last);    // tiles
  void (*slope)(const CovarianceBackward&, int64_t first, int64_t last);  // rows of the covariance
  void (*pull)(const CovarianceBackward&, int64_t first, int64_t last);   // parts
};

GENMOD_DECLARE(DipKernels, dip_kernels)

}  // namespace genmod
