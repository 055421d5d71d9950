// 3x3 convolutions with stride and padding 1 on the CPU, by Winograd's minimal filtering F(2x2, 3x3): 16 multiplications
// for each 2x2 tile of the output where a convolution has 36. The three transforms are those of
// genmod/reference/conv3x3.py; between them stand 16 matrix products, over a few tiles at a time, which stay in the cache.
//
// Of an image that is doubled by nearest neighbour first, a tile is what a pixel becomes. The two columns, or rows, in the
// middle of its patch are equal, so that one frequency of four is zero, and nine products are left.
#pragma once
#include "../types.h"
#include "isa.h"
#include "pixel_order.h"

namespace genmod {

constexpr int64_t kFrequencies = 16;  // elements of a transformed 4x4 patch
inline int64_t frequencies_of(bool doubled) { return doubled ? 9 : kFrequencies; }
// Tiles are worked on in blocks of whole vectors, of images that lie plane by plane, or of whole rows of the products'
// register tiles, of those that lie pixel by pixel.
constexpr int64_t kPlaneTiles = 32, kPixelTiles = 12, kMostTiles = 128;

struct Conv3x3 {
  bool wide;      // double
  bool by_pixel;  // channels_last
  bool doubled;   // the image is upsampled first
  int64_t batch, inputs, outputs, height, width;  // of the image
  int64_t image_channels, result_channels;        // of the tensors, of which these may be a group
  int64_t block;                                  // tiles that are worked on together; says nothing of the result
  const void *image, *bias;  // `bias` may be null
  const void* weight;        // transformed: [frequency][panel][inputs][panel width]
  void* result;

  int64_t result_height() const { return doubled ? 2 * height : height; }
  int64_t result_width() const { return doubled ? 2 * width : width; }
  int64_t tile_rows() const { return (result_height() + 1) / 2; }
  int64_t tile_columns() const { return (result_width() + 1) / 2; }
  int64_t tiles() const { return batch * tile_rows() * tile_columns(); }
  int64_t blocks() const { return (tiles() + block - 1) / block; }
};

// The weight as it comes, in strides. `flipped` is the transposed convolution's: taps in the opposite order.
struct Conv3x3Weight {
  bool wide, by_pixel, doubled, flipped;
  int64_t inputs, outputs;
  const void* weight;
  int64_t of_output, of_input, of_row, of_column;
  void* transformed;
};

// The weight's gradient: of each frequency the product of what the tiles have on both sides of the convolution, and then
// the transpose of the weight's transform.
struct Conv3x3Gradient {
  bool wide;
  int64_t batch, inputs, outputs, height, width;  // channels are padded to whole vectors
  const void *image, *grad;
  int64_t image_planes, grad_planes;  // channels of an image that lies plane by plane; else 0, and channels are padded
  int64_t first, begin, count;     // the first tile of all, and those that are transformed now
  void *of_image, *of_grad;        // [frequency][count][pitch], transformed
  void* products;                  // [frequency][grad_pitch()][image_pitch()]: sums over all tiles so far

  // Of whole register tiles, columns in one and rows in the other, and of whole vectors.
  int64_t image_pitch() const { return (inputs + 31) / 32 * 32; }
  int64_t grad_pitch() const { return padded_channels((outputs + 11) / 12 * 12); }
  int64_t tile_rows() const { return (height + 1) / 2; }
  int64_t tile_columns() const { return (width + 1) / 2; }
  int64_t image_elements() const { return kFrequencies * image_pitch(); }  // of a tile
  int64_t grad_elements() const { return kFrequencies * grad_pitch(); }
  int64_t sums() const { return kFrequencies * image_pitch() * grad_pitch(); }
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
};

struct Conv3x3GradientKernels {
  void (*transform)(const Conv3x3Gradient&, int64_t first, int64_t last);          // tiles, from `begin` on
  int64_t (*bands)(const Conv3x3Gradient&);                                        // of the products
  void (*accumulate)(const Conv3x3Gradient&, int64_t first, int64_t last);         // bands
  void (*weight_result)(const Conv3x3WeightResult&, int64_t first, int64_t last);  // outputs
};

GENMOD_DECLARE(Conv3x3Kernels, conv3x3_kernels)
GENMOD_DECLARE(Conv3x3GradientKernels, conv3x3_gradient_kernels)

}  // namespace genmod
