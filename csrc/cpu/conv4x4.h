// 4x4 convolutions with stride 2 and padding 1, and their transposes, on the CPU: one map is twice as high and wide as the
// other. Taken apart by the parity of the larger map's rows and columns, that is a 2x2 convolution for each of four
// phases, and each is computed by Winograd's minimal filtering F(2x2, 2x2): 9 multiplications for each 2x2 tile of the
// smaller map where a convolution has 16. The transforms, which only add, are those of genmod/reference/conv4x4.py.
//
// Images lie pixel by pixel, their channels padded with zeros to whole vectors. Phases are counted row by row: even rows
// and columns first. Sizes are the smaller map's.
#pragma once
#include "conv3x3.h"

namespace genmod {

constexpr int64_t kPhases = 4, kPairFrequencies = 9;
constexpr int64_t kProducts4x4 = kPhases * kPairFrequencies;

struct Conv4x4 {
  bool wide;        // double
  bool transposed;  // from the smaller map to the larger
  int64_t batch, inputs, outputs, height, width;
  int64_t block;  // tiles that are worked on together
  void* patches;  // of all tiles, transformed, where panels of outputs are worked on one after another; see Conv4x4Panels
  const void *image, *bias;  // `bias` may be null
  // Transformed: of each frequency a panel of outputs after another, whose rows are phases by inputs; `transposed`: of
  // each phase and frequency, and rows are inputs.
  const void* weight;
  void* result;

  int64_t tile_rows() const { return (height + 1) / 2; }
  int64_t tile_columns() const { return (width + 1) / 2; }
  int64_t tiles() const { return batch * tile_rows() * tile_columns(); }
  int64_t blocks() const { return (tiles() + block - 1) / block; }
};

// The weight as it comes, in strides, and how many inputs and outputs it has before they are padded.
struct Conv4x4Weight {
  bool wide, transposed;
  int64_t inputs, outputs, padded_inputs, padded_outputs;
  const void* weight;
  int64_t of_output, of_input, of_row, of_column;
  void* transformed;
};

// A weight that is larger than all patches is transformed a panel at a time, and the panel's products and results are made
// before the next one: it never leaves the cache.
struct Conv4x4Panels {
  bool wide;
  Conv4x4 conv;
  Conv4x4Weight weight;  // `transformed` is not used
};

// The weight's gradient: of each phase and frequency the product of what the tiles have on both sides of the convolution,
// and then the transpose of the weight's transform.
struct Conv4x4Gradient {
  bool wide;
  int64_t batch, inputs, outputs, height, width;  // inputs: channels of the larger map
  const void *image, *grad;                       // the larger map and the smaller
  int64_t first, begin, count;  // the first tile of all, and those that are transformed now
  void *of_image, *of_grad;     // [phase and frequency][count][image_pitch()], [frequency][count][grad_pitch()]
  void* products;               // [phase and frequency][grad_pitch()][image_pitch()]: sums over all tiles so far
  bool last;                    // of the result, which is that of Conv4x4WeightResult, with these inputs and outputs
  void* result;
  int64_t result_inputs, result_outputs;

  int64_t image_pitch() const { return (inputs + 31) / 32 * 32; }
  int64_t grad_pitch() const { return padded_channels((outputs + 11) / 12 * 12); }
  int64_t tile_rows() const { return (height + 1) / 2; }
  int64_t tile_columns() const { return (width + 1) / 2; }
  int64_t image_elements() const { return kProducts4x4 * image_pitch(); }  // of a tile
  int64_t grad_elements() const { return kPairFrequencies * grad_pitch(); }
  int64_t sums() const { return kProducts4x4 * image_pitch() * grad_pitch(); }
};

struct Conv4x4WeightResult {
  bool wide;
  int64_t inputs, outputs;       // of the result, not padded
  int64_t parts;                 // of the sums over tiles, which are added up
  const void* products;
  int64_t row, frequency, part;  // strides of `products`
  bool last;                     // whether inputs come last
  void* result;                  // [outputs][inputs][4][4], or [outputs][4][4][inputs]
};

struct Conv4x4Kernels {
  int64_t (*panels)(bool wide, int64_t outputs);
  int64_t (*panel_width)(bool wide);
  void (*weight)(const Conv4x4Weight&, int64_t first, int64_t last);   // panels
  void (*convolve)(const Conv4x4&, int64_t first, int64_t last);       // blocks
  int64_t (*patch_elements)(const Conv4x4&);                           // of all tiles
  void (*patches)(const Conv4x4&, int64_t first, int64_t last);        // blocks
  void (*by_panels)(const Conv4x4Panels&, int64_t first, int64_t last);  // panels
};

struct Conv4x4GradientKernels {
  void (*transform)(const Conv4x4Gradient&, int64_t first, int64_t last);          // tiles, from `begin` on
  int64_t (*bands)(const Conv4x4Gradient&);                                        // of the products
  void (*accumulate)(const Conv4x4Gradient&, int64_t first, int64_t last);         // bands
  int64_t (*groups)(const Conv4x4Gradient&);                                       // of outputs
  void (*finish)(const Conv4x4Gradient&, int64_t first, int64_t last);             // groups: products of all tiles, and the result
  void (*weight_result)(const Conv4x4WeightResult&, int64_t first, int64_t last);  // outputs
};

GENMOD_DECLARE(Conv4x4Kernels, conv4x4_kernels)
GENMOD_DECLARE(Conv4x4GradientKernels, conv4x4_gradient_kernels)

}  // namespace genmod
