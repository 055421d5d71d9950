// Images from any strides to pixel by pixel, and from there to plane by plane.
#pragma once
#include "../types.h"
#include "isa.h"

namespace genmod {

constexpr int64_t kPixelVector = 16;  // divides the channels of an image that is taken pixel by pixel
inline int64_t padded_channels(int64_t channels) { return (channels + kPixelVector - 1) / kPixelVector * kPixelVector; }

// The channels are padded with zeros to whole vectors.
struct PixelCopy {
  bool wide;  // double
  int64_t channels, height, width;
  const void* from;
  int64_t of_image, of_channel, of_row, of_column;
  void* to;  // [batch][height][width][padded_channels(channels)]
};

// What the channels were padded with is left out.
struct PlaneCopy {
  bool wide;
  int64_t channels, pixels;
  const void* from;  // [batch][pixels][padded_channels(channels)]
  void* to;          // [batch][channels][pixels]

  int64_t groups() const { return (pixels + kPixelVector - 1) / kPixelVector; }  // of pixels, of an image
};

struct PixelOrderKernels {
  void (*to_pixels)(const PixelCopy&, int64_t first, int64_t last);  // rows of all images
  void (*to_planes)(const PlaneCopy&, int64_t first, int64_t last);  // groups of all images
};

GENMOD_DECLARE(PixelOrderKernels, pixel_order_kernels)

}  // namespace genmod
