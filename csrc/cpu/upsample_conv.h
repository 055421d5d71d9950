// What an upsampling convolution does besides its matrix products: sums of taps, and copies between memory orders.
// The formulas are those of genmod/reference/upsample_conv.py, "taps first".
#pragma once
#include "../types.h"
#include "isa.h"

namespace genmod {

// Where an element of a 4-d tensor lies: data + sample * n + channel * c + row * i + col * j, in elements.
struct Image {
  void* data;
  int64_t sample, channel, row, col;
};

// A tile: some rows of the low resolution, of some samples, in one group of channels. Taps and bias are in the
// accumulation type, the image of twice the resolution in `dtype`.
struct UpsampleTile {
  Dtype dtype;
  bool channels_last;
  int64_t samples, channels, height, width;  // of the low resolution; channels of the image
  int64_t begin, end;                        // the rows to be worked on
  Image taps;                                // nine for each channel and pixel, `tap` elements apart
  int64_t tap;
  int64_t first;                             // the row that lies first in taps
  Image image;
  const void* bias;                          // or null
};

// Items of a tile, which may run on any thread: a row of a sample, or in contiguous memory a row of one channel.
inline int64_t upsample_items(const UpsampleTile& t) {
  return t.samples * (t.end - t.begin) * (t.channels_last ? 1 : t.channels);
}

// A copy between any strides, over the first index on any thread. `widens` from `dtype` to its accumulation type,
// otherwise back; `adds` to what is there, in the accumulation type on both sides.
struct StridedCopy {
  enum { widens, narrows, moves, adds } kind;
  Dtype dtype;
  const void* from;
  void* to;
  int64_t sizes[3], from_strides[3], to_strides[3];
};

struct UpsampleKernels {
  void (*combine)(const UpsampleTile&, int64_t first_item, int64_t last_item);  // taps to image
  void (*spread)(const UpsampleTile&, int64_t first_item, int64_t last_item);   // its transpose, image to taps
  void (*copy)(const StridedCopy&, int64_t first, int64_t last);
};

GENMOD_DECLARE(UpsampleKernels, upsample_kernels)

}  // namespace genmod
