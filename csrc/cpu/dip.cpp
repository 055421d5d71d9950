// The covariance penalty of DIP-VAE: two matrix products, in tiles that stay in registers, and what goes around them. The
// formulas are those of genmod/reference/aggregate.py.
#include "dip.h"

#include "products.h"
#include "tile.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// Rows of a register tile of products; half of the registers are left for what is multiplied.
#if defined(__AVX512F__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
static_assert(kBand % kRows == 0 && kPart % kRows == 0, "bands and parts are whole tiles");

struct PartRows {
  int64_t begin, count;
  PartRows(int64_t part, int64_t rows) : begin(part * kPart), count(rows - begin < kPart ? rows - begin : kPart) {}
};

template <class A> static void sum_parts(const Covariance& p, int64_t first, int64_t last) {
  Scratch<double> scratch(2 * p.dims);  // in float equal numbers, one by one, would all be rounded the same way
  double *__restrict of_means = scratch.data(), *__restrict of_variances = of_means + p.dims;
  for (int64_t part = first; part < last; part++) {
    const PartRows rows(part, p.rows);
    for (int64_t d = 0; d < 2 * p.dims; d++) of_means[d] = 0;
    for (int64_t k = rows.begin; k < rows.begin + rows.count; k++) {
      const A* __restrict mean = (const A*)p.mean + k * p.dims;
      for (int64_t d = 0; d < p.dims; d++) of_means[d] += (double)mean[d];
      if (!p.logvar) continue;
      const A* __restrict logvar = (const A*)p.logvar + k * p.dims;
      for (int64_t d = 0; d < p.dims; d++) of_variances[d] += (double)exp_parts(logvar[d]).exp;
    }
    for (int64_t d = 0; d < 2 * p.dims; d++) p.sums[part * 2 * p.dims + d] = of_means[d];  // and of_variances behind it
  }
}

// Means less their average, [count][pitch], and zeros behind them.
template <class A> static void centre(const A* __restrict mean, const A* __restrict average, int64_t count, int64_t dims, int64_t pitch, A* __restrict centred) {
  for (int64_t k = 0; k < count; k++) {
    for (int64_t d = 0; d < dims; d++) centred[k * pitch + d] = mean[k * dims + d] - average[d];
    for (int64_t d = dims; d < pitch; d++) centred[k * pitch + d] = 0;
  }
}

// Where a tile of the covariance begins.
struct TilePlace {
  int64_t row, column;
  explicit TilePlace(int64_t tile) {
    constexpr int64_t kBands = kPanel / kBand;
    int64_t panel = 0, before = 0;
    for (; tile - before >= kBands * (panel + 1); panel++) before += kBands * (panel + 1);
    row = (tile - before) * kBand;
    column = panel * kPanel;
  }
};

// Rows that are summed before they are added to those before: few enough for the cache, and for the rounding.
static int64_t stretch_of(int64_t pitch) {
  const int64_t fit = (int64_t(1) << 16) / pitch;
  return fit < kPart ? kPart : fit > 8 * kPart ? 8 * kPart : fit;
}

template <class A> static double finish_tile(const Covariance& p, const TilePlace& place, const A* products) {
  A* covariance = (A*)p.covariance;
  const double share = 1. / (double)p.rows;
  double penalty = 0;
  for (int64_t i = place.row; i < place.row + kBand && i < p.dims; i++)
    for (int64_t j = place.column > i ? place.column : i; j < place.column + kPanel && j < p.dims; j++) {
      double value = share * (double)products[(i - place.row) * kPanel + j - place.column];
      if (i == j) {
        value += p.variance[i];
        penalty += p.lambda_d * (value - 1) * (value - 1);
      } else {
        penalty += 2 * p.lambda_od * value * value;
      }
      covariance[i * p.dims + j] = covariance[j * p.dims + i] = (A)value;
    }
  return penalty;
}

// Each range of tiles centres the rows for itself: that is little beside its products, and needs no memory of the batch's
// size.
template <class A> static void covariance_tiles(const Covariance& p, int64_t first, int64_t last) {
  if (first == last) return;  // there are no dimensions
  const int64_t pitch = padded(p.dims), stretch = stretch_of(pitch);
  Scratch<A> sums((last - first) * kBand * kPanel), scratch(stretch * pitch);  // zeros
  A* centred = scratch.data();
  for (int64_t begin = 0; begin < p.rows; begin += stretch) {
    const int64_t count = p.rows - begin < stretch ? p.rows - begin : stretch;
    centre((const A*)p.mean + begin * p.dims, (const A*)p.average, count, p.dims, pitch, centred);
    for (int64_t tile = first; tile < last; tile++) {
      const TilePlace place(tile);
      A* products = sums.data() + (tile - first) * kBand * kPanel;
      for (int64_t r = 0; r < kBand; r += kRows)
        for (int64_t c = 0; c < kPanel; c += kWide<A>)
          multiply<kRows, false>(centred + place.row + r, pitch, centred + place.column + c, pitch, count, products + r * kPanel + c, kPanel, begin > 0);
    }
  }
  for (int64_t tile = first; tile < last; tile++)
    p.penalties[tile] = finish_tile<A>(p, TilePlace(tile), sums.data() + (tile - first) * kBand * kPanel);
}

template <class A> static void slope_rows(const CovarianceBackward& b, int64_t first, int64_t last) {
  const int64_t pitch = padded(b.dims);
  const A* __restrict covariance = (const A*)b.covariance;
  A* __restrict slope = (A*)b.slope;
  const A factor = (A)(2 * b.lambda_od * b.to_mean);
  for (int64_t i = first; i < last; i++) {
    for (int64_t j = 0; j < b.dims; j++) slope[i * pitch + j] = factor * covariance[i * b.dims + j];
    for (int64_t j = b.dims; j < pitch; j++) slope[i * pitch + j] = 0;
    const double diagonal = 2 * b.lambda_d * ((double)covariance[i * b.dims + i] - 1);
    slope[i * pitch + i] = (A)(diagonal * b.to_mean);
    ((A*)b.variance_slope)[i] = (A)(diagonal * b.to_logvar);
  }
}

template <class A> static void pull_means(const CovarianceBackward& b, const PartRows& rows, A* __restrict centred, A* __restrict pulls) {
  const int64_t pitch = padded(b.dims), whole = (rows.count + kRows - 1) / kRows * kRows;
  centre((const A*)b.mean + rows.begin * b.dims, (const A*)b.average, rows.count, b.dims, b.dims, centred);
  for (int64_t k = rows.count * b.dims; k < whole * b.dims; k++) centred[k] = 0;
  for (int64_t c = 0; c < pitch; c += kWide<A>)
    for (int64_t r = 0; r < whole; r += kRows)
      multiply<kRows, true>(centred + r * b.dims, b.dims, (const A*)b.slope + c, pitch, b.dims, pulls + r * pitch + c, pitch);
  A* d_mean = (A*)b.d_mean + rows.begin * b.dims;
  for (int64_t k = 0; k < rows.count; k++)
    for (int64_t d = 0; d < b.dims; d++) d_mean[k * b.dims + d] = pulls[k * pitch + d];
}

template <class A> static void pull_parts(const CovarianceBackward& b, int64_t first, int64_t last) {
  Scratch<A> centred(kPart * b.dims), pulls(kPart * padded(b.dims));
  for (int64_t part = first; part < last; part++) {
    const PartRows rows(part, b.rows);
    if (b.d_mean) pull_means<A>(b, rows, centred.data(), pulls.data());
    if (!b.d_logvar) continue;
    const A *__restrict slope = (const A*)b.variance_slope, *__restrict logvar = (const A*)b.logvar;
    A* __restrict d_logvar = (A*)b.d_logvar;
    for (int64_t k = rows.begin; k < rows.begin + rows.count; k++)
      for (int64_t d = 0; d < b.dims; d++) d_logvar[k * b.dims + d] = slope[d] * exp_parts(logvar[k * b.dims + d]).exp;
  }
}

GENMOD_BY_WIDTH(sum_parts, Covariance)
GENMOD_BY_WIDTH(covariance_tiles, Covariance)
GENMOD_BY_WIDTH(slope_rows, CovarianceBackward)
GENMOD_BY_WIDTH(pull_parts, CovarianceBackward)

}  // namespace

extern const DipKernels dip_kernels{sum_parts_any, covariance_tiles_any, slope_rows_any, pull_parts_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
