// 3x3 convolutions with stride and padding 1 on the CPU, by Winograd's minimal filtering F(2x2, 3x3): 16 multiplications
// for each 2x2 tile of the output where a convolution has 36. The three transforms are those of
// genmod/reference/conv3x3.py; between them stand 16 matrix products, over a few tiles at a time, which stay in the cache.
#pragma once
#include "../types.h"
#include "isa.h"

namespace genmod {

constexpr int64_t kFrequencies = 16;  // elements of a transformed 4x4 patch
// Tiles that are worked on together, of images that lie plane by plane or pixel by pixel: whole vectors of them, or whole
// rows of the products' register tiles.
constexpr int64_t kPlaneTiles = 32, kPixelTiles = 36;
constexpr int64_t kPixelVector = 16;  // divides the channels of an image that is taken pixel by pixel

struct Conv3x3 {
  bool wide;      // double
  bool by_pixel;  // channels_last
  int64_t batch, inputs, outputs, height, width;
  const void *image, *bias;  // `bias` may be null
  const void* weight;        // transformed: [frequency][panel][inputs][panel width]
  void* result;

  int64_t tile_rows() const { return (height + 1) / 2; }
  int64_t tile_columns() const { return (width + 1) / 2; }
  int64_t tiles() const { return batch * tile_rows() * tile_columns(); }
  int64_t block() const { return by_pixel ? kPixelTiles : kPlaneTiles; }
  int64_t blocks() const { return (tiles() + block() - 1) / block(); }
};

// The weight as it comes, in strides. `flipped` is the transposed convolution's: taps in the opposite order.
struct Conv3x3Weight {
  bool wide, by_pixel, flipped;
  int64_t inputs, outputs;
  const void* weight;
  int64_t of_output, of_input, of_row, of_column;
  void* transformed;
};

// An image from any strides to pixel by pixel, its channels padded with zeros to whole vectors.
struct PixelCopy {
  bool wide;
  int64_t channels, height, width;
  const void* from;
  int64_t of_image, of_channel, of_row, of_column;
  void* to;  // [batch][height][width][padded_channels(channels)]
};

inline int64_t padded_channels(int64_t channels) { return (channels + kPixelVector - 1) / kPixelVector * kPixelVector; }

// The weight's gradient: of each frequency the product of what the tiles have on both sides of the convolution, and then
// the transpose of the weight's transform. Images lie pixel by pixel, their channels padded.
struct Conv3x3Gradient {
  bool wide;
  int64_t batch, inputs, outputs, height, width;  // channels are padded
  const void *image, *grad;
  int64_t first, begin, count;     // the first tile of all, and those that are transformed now
  void *of_image, *of_grad;        // [frequency][count][pitch], transformed
  void* products;                  // [frequency][grad_pitch()][image_pitch()]: sums over all tiles so far

  // Of whole register tiles, columns in one and rows in the other, and of whole vectors.
  int64_t image_pitch() const { return (inputs + 31) / 32 * 32; }
  int64_t grad_pitch() const { return padded_channels((outputs + 11) / 12 * 12); }
  int64_t tile_rows() const { return (height + 1) / 2; }
  int64_t tile_columns() const { return (width + 1) / 2; }
};

struct Conv3x3WeightResult {
  bool wide;
  int64_t inputs, outputs;         // of the result, not padded
  int64_t parts;                   // of the sums over tiles, which are added up
  const void* products;
  int64_t row, frequency, part;    // strides of `products`
  void* result;                    // [outputs][inputs][3][3]
};

struct Conv3x3Kernels {
  int64_t (*panels)(const Conv3x3&);  // of a transformed weight
  int64_t (*panel_width)(const Conv3x3&);
  void (*weight)(const Conv3x3Weight&, int64_t first, int64_t last);  // panels
  void (*convolve)(const Conv3x3&, int64_t first, int64_t last);      // blocks
  void (*to_pixels)(const PixelCopy&, int64_t first, int64_t last);              // rows of all images
  void (*transform)(const Conv3x3Gradient&, int64_t first, int64_t last);        // tiles, from `begin` on
  int64_t (*bands)(const Conv3x3Gradient&);                                      // of the products
  void (*accumulate)(const Conv3x3Gradient&, int64_t first, int64_t last);       // bands
  void (*weight_result)(const Conv3x3WeightResult&, int64_t first, int64_t last);  // outputs
};

GENMOD_DECLARE(Conv3x3Kernels, conv3x3_kernels)

}  // namespace genmod
