// Normalisation and activation on the CPU: how the work is cut, and what a kernel is told.
//
// Memory is dense in one of two forms:
//   planes: [N, C, S], one row of S elements per channel of a sample, which has one set of coefficients;
//   rows:   [block, row, lane], where a lane has one set of coefficients: a channel of channels_last memory, or one
//           element of a whole sample where S is small ("spread" lanes to a channel).
//
// A *block* is what statistics never leave: in planes one group of a sample, or one channel of the batch; in rows one
// sample (with all its groups), or the batch (with all its channels). It holds `statistics` means and variances.
// A block is cut into *pieces* of a size that depends on the shape alone. Every sum is kept per piece and added in
// order, so the same bits come out of any number of threads, whether one of them takes a whole block or they share it.
#pragma once
#include "../activation_types.h"
#include "../types.h"
#include "isa.h"

namespace genmod {

constexpr int64_t kPiece = 16384;  // elements, about: half of a level-2 cache with everything that goes with them

// Rows of so many lanes that are taken together at least, while they fit a level-2 cache.
inline int64_t rows_at_least(int64_t lanes) {
  const int64_t fit = 4 * kPiece / lanes;
  return fit > 8 ? 8 : fit > 0 ? fit : 1;
}

struct NormCut {
  bool in_rows, over_batch;
  int64_t channels, space;
  int64_t blocks, pieces, statistics;         // pieces and statistics per block
  int64_t statistic_channels;                 // channels that share a statistic
  int64_t channel_pieces = 0;                 // planes: pieces to a row of S
  int64_t rows = 0, lanes = 0, spread = 1;    // rows: per block; lanes to a channel
  int64_t piece_rows = 0;
  int64_t bundle = 1;                         // planes of a group: pieces whose moments are taken together, being neighbours

  int64_t bundles() const { return (pieces + bundle - 1) / bundle; }  // per block
  // The first piece of a bundle, both counted through all blocks.
  int64_t first_piece(int64_t index) const { return index / bundles() * pieces + index % bundles() * bundle; }

  // Sums kept per piece: one per channel.
  int64_t width() const { return in_rows ? block_channels() : 1; }
  // Sets of coefficients in a block, one per channel that has its own; the block's first is block * block_channels().
  int64_t block_channels() const { return statistics * statistic_channels; }
  // Elements of a piece that share a statistic.
  int64_t count(int64_t piece) const {
    if (in_rows) return piece_length(piece) / statistics;
    return piece_length(piece);
  }
  int64_t piece_length(int64_t piece) const { return in_rows ? rows_of(piece) * lanes : part_length(channel_pieces == 1 ? 0 : piece % channel_pieces); }
  int64_t rows_of(int64_t piece) const {
    const int64_t left = rows - piece * piece_rows;
    return left < piece_rows ? left : piece_rows;
  }
  int64_t part_length(int64_t part) const {
    const int64_t left = space - part * kPiece;
    return left < kPiece ? left : kPiece;
  }
  // Planes: which of its block's coefficients a piece has.
  int64_t channel(int64_t piece) const { return over_batch ? 0 : channel_pieces == 1 ? piece : piece / channel_pieces; }
};

// One piece after another, through all blocks.
struct NormPlace {
  int64_t block, piece, row = 0, part = 0;  // planes: the row of S within the block, and the piece of that
  NormPlace(const NormCut& cut, int64_t index) : block(index / cut.pieces), piece(index % cut.pieces) {
    if (!cut.in_rows) row = piece / cut.channel_pieces, part = piece % cut.channel_pieces;
  }
  void next(const NormCut& cut) {
    if (++part == cut.channel_pieces) part = 0, row++;
    if (++piece == cut.pieces) piece = row = part = 0, block++;
  }
  int64_t length(const NormCut& cut) const { return cut.in_rows ? cut.rows_of(piece) * cut.lanes : cut.part_length(part); }
  // Where it begins in memory.
  int64_t offset(const NormCut& cut) const {
    if (cut.in_rows) return (block * cut.rows + piece * cut.piece_rows) * cut.lanes;
    return (cut.over_batch ? row * cut.channels + block : block * cut.statistic_channels + row) * cut.space + part * kPiece;
  }
  // Planes: which of its block's coefficients it has.
  int64_t channel(const NormCut& cut) const { return cut.over_batch ? 0 : row; }
};

// How an element becomes its activation: z = (x - mean) * slope + offset per set of coefficients, then for `bounded`
// kernels a gain and a clamp.
struct NormShared {
  Dtype dtype;
  NormCut cut;
  Activation activation;
  double negative_slope;
  bool bounded;
  double gain, clamp;
  const void* x;
  double *mean, *slope, *offset;  // a value per set of coefficients
};

struct NormForward : NormShared {
  const void* residual;  // added to x into `sum`, or null
  void* sum;
  double* moments;       // per piece and statistic: mean, and sum of squared differences from it
  void* y;
};

// dx = dz * slope + (x - mean) * tilt + level (+ grad_sum)
struct NormBackward : NormShared {
  const void *grad, *grad_sum;  // grad_sum may be null
  double* sums;                 // per piece and channel: sum of dz, and of dz * (x - mean)
  double *tilt, *level;
  void* dx;
  bool keep_dz;                 // planes in the precision of computation: `sums` leaves dz in dx for `gradient`
};

// Each kernel does pieces [first, last), counted through all blocks; `moments` whole bundles of them.
struct NormKernels {
  void (*add)(const NormForward&, int64_t first, int64_t last);         // residual
  void (*moments)(const NormForward&, int64_t first, int64_t last);
  void (*apply)(const NormForward&, int64_t first, int64_t last);
  void (*sums)(const NormBackward&, int64_t first, int64_t last);
  void (*gradient)(const NormBackward&, int64_t first, int64_t last);
  void (*both)(const NormBackward&, int64_t first, int64_t last);       // where the gradient does not need the sums
};

GENMOD_DECLARE(NormKernels, norm_kernels)

}  // namespace genmod
