// 4x4 convolutions with stride 2 between a map of many channels and one, twice as large, of a few: of an image, as a
// critic's first layer and a generator's last one are. Sixteen taps of a few channels are a row of a matrix; what there is
// to multiply is little beside what is moved, so that a product, not minimal filtering, is the way.
#pragma once
#include "../types.h"
#include "isa.h"

namespace genmod {

constexpr int64_t kFewChannels = 4;

// The larger map in strides; the smaller one, of `channels`, plane by plane or pixel by pixel.
struct FewChannels {
  bool wide;      // double
  bool by_pixel;  // the smaller map
  int64_t batch, channels, few, height, width;
  void* small;
  const void* weight;  // [channels][few][4][4]
  const void* bias;    // of the map that is made; may be null
  void* large;
  void* sums;  // of the weight's gradient: [parts][channels][taps()], of parts of the bands
  int64_t of_image, of_channel, of_row, of_column;  // of the larger map

  int64_t taps() const { return 16 * few; }
  int64_t pixels() const { return height * width; }
  // Rows of the smaller map that are worked on together: some vectors of pixels.
  int64_t rows() const { return width < 64 ? 64 / width : 1; }
  int64_t bands() const { return (height + rows() - 1) / rows(); }
  static constexpr int64_t kMostParts = 8;
  int64_t parts() const { return batch * bands() < kMostParts ? batch * bands() : kMostParts; }
};

struct FewChannelsKernels {
  void (*to_small)(const FewChannels&, int64_t first, int64_t last);  // bands of all images; writes `small`
  void (*to_large)(const FewChannels&, int64_t first, int64_t last);  // images; writes `large`
  void (*to_weight)(const FewChannels&, int64_t first, int64_t last);  // parts; writes `sums`
};

GENMOD_DECLARE(FewChannelsKernels, few_channels_kernels)

}  // namespace genmod
