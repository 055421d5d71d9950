// The aggregate family on the CPU: sums over all pairs of a row and a column, with nothing kept per pair.
//
// Columns lie transposed, [dims][stride], so that neighbours in memory are neighbours in a register, and come in whole
// tiles. `wide` arrays are double, and the others float. Work is cut by sizes alone, never by the number of
// threads, and every sum has one order.
#pragma once
#include "../types.h"
#include "isa.h"

namespace genmod {

constexpr int64_t kTile = 64;     // columns
constexpr int64_t kRowBlock = 4;  // rows that share what is loaded of a column

inline int64_t tiles_of(int64_t columns) { return (columns + kTile - 1) / kTile; }
// One cache line more than whole tiles: rows a power of two apart would all compete for a few lines of level-1 cache.
inline int64_t stride_of(int64_t columns) { return tiles_of(columns) * kTile + 16; }
inline int64_t row_blocks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock; }

// Any dtype to and from the type of the arithmetic.
struct Cast {
  Dtype dtype;
  const void* from;
  void* to;
};

struct Transpose {
  bool wide;
  int64_t rows, dims, stride;  // of the matrix to be transposed; its rows become columns
  const void* matrix;
  void* columns;  // [dims][stride], padded with zeros
};

// Everything in logarithms to base 2: t = scale (z - centre)^2 + offset, with scale = -e^-logvar / (2 ln 2).
struct Posterior {
  bool wide;
  int64_t batch, dims, stride;
  const void *mean, *logvar;         // [batch][dims]
  void *centre, *scale, *offset;     // [dims][stride]
};

// A sum over columns of 2^t is 2^top / inverse, for each of the marginals and, last, the joint: [rows][dims + 1]. Two
// numbers, because the rounding of a large log2 is itself large: 2^(t - top) is at most one whatever t is.
struct Normalizers { void *top, *inverse; };

struct TotalCorrelation {
  bool wide;
  int64_t rows, batch, dims, stride, first_row;
  double own, successor, rest;  // log2 of the weights: that of most pairs, and by how much two of them differ
  const void* z;                // [rows][dims]
  const void *centre, *scale, *offset;
  Normalizers normalizers;
  double* terms;  // [rows][3]
};

// A partition owns the gradients of its columns, and has a part of d_z of its own: [partitions][rows][dims].
struct TotalCorrelationBackward {
  TotalCorrelation forward;
  int64_t partitions;
  double to_joint, to_marginals, to_own, to_prior;
  void* partial;
  void *d_z, *d_mean, *d_logvar;
};

enum class PairKernel : int { imq, rbf };

// sum over rows i and columns j of k(row_i, column_j), without j = first + i where `skip` says so.
struct PairSum {
  bool wide, skip;
  PairKernel kernel;
  int64_t rows, columns, dims, stride, first;
  const double* widths;
  int64_t width_count;
  const void* row;     // [rows][dims]
  const void* column;  // [dims][stride]
  double* sums;        // one per row block
};

// pull_i += sum over j of factor k'(d^2) (row_i - column_j)
struct PairPull {
  PairSum pairs;
  double factor;
  void* pull;  // [rows][dims]
};

struct AggregateKernels {
  void (*widen)(const Cast&, int64_t first, int64_t last);   // elements
  void (*narrow)(const Cast&, int64_t first, int64_t last);  // elements
  void (*transpose)(const Transpose&, int64_t first, int64_t last);                              // tiles
  void (*posterior)(const Posterior&, int64_t first, int64_t last);                              // tiles
  void (*total_correlation)(const TotalCorrelation&, int64_t first, int64_t last);               // row blocks
  void (*total_correlation_columns)(const TotalCorrelationBackward&, int64_t first, int64_t last);  // partitions
  void (*total_correlation_rows)(const TotalCorrelationBackward&, int64_t first, int64_t last);     // rows
  void (*pair_sum)(const PairSum&, int64_t first, int64_t last);                                 // row blocks
  void (*pair_pull)(const PairPull&, int64_t first, int64_t last);                               // row blocks
};

GENMOD_DECLARE(AggregateKernels, aggregate_kernels)

}  // namespace genmod
