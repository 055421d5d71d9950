// A 3x3 convolution of an image, or of the image doubled, by the kernels of cpu/conv3x3.cpp.
#pragma once
#include "cpu/conv3x3.h"

#include "pixels.h"

namespace genmod {

// Blocks that fall evenly on the threads; larger ones where the weight is large, which is read again for each of them.
inline int64_t block_of(const Conv3x3& p) {
  const int64_t unit = p.by_pixel ? kPixelTiles : kPlaneTiles, threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const bool large = frequencies_of(p.doubled) * p.inputs * p.outputs * (p.wide ? 8 : 4) > (1 << 20);
  const int64_t most = (large ? kMostTiles : 36) / unit * unit, of_thread = (p.tiles() + threads - 1) / threads;
  const int64_t blocks = std::max<int64_t>(1, (of_thread + most - 1) / most), even = (of_thread + blocks - 1) / blocks;
  return std::max(unit, (even + unit - 1) / unit * unit);
}

// `transposed`: what a convolution with that weight has as its input's gradient. `doubled`: of the image upsampled by two.
// In the dtype and memory format of `x`; half precision is summed in float32.
inline Tensor convolved_3x3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t groups, bool transposed, bool doubled) {
  const Conv3x3Kernels& kernels = GENMOD_SELECT(conv3x3_kernels);
  const ScalarType type = accumulate_type(dtype_of(x));
  const MemoryFormat format = format_of(View(x));
  const int64_t outputs = weight.size(transposed ? 1 : 0);
  Conv3x3 p{};
  p.wide = dtype_of(x) == Dtype::f64;
  p.doubled = doubled;
  p.batch = x.size(0);
  p.image_channels = x.size(1);
  p.result_channels = outputs;
  p.inputs = x.size(1) / groups;
  p.outputs = outputs / groups;
  p.height = x.size(2);
  p.width = x.size(3);
  p.by_pixel = format != MemoryFormat::Contiguous && p.inputs % kPixelVector == 0 && p.outputs % kPixelVector == 0;
  const MemoryFormat inside = p.by_pixel ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor image = densified(torch::stable::to(x, type), inside), taps = torch::stable::to(weight, type);
  std::optional<Tensor> shift;
  if (bias) shift = torch::stable::contiguous(torch::stable::to(*bias, type));
  Tensor y = empty({p.batch, outputs, p.result_height(), p.result_width()}, x, type, inside);
  if (y.numel()) {
    p.block = block_of(p);
    const int64_t panels = kernels.panels(p), width = kernels.panel_width(p), item = p.wide ? 8 : 4;
    Tensor transformed = empty({frequencies_of(doubled), panels, p.inputs, width}, x, type);
    Conv3x3Weight w{p.wide, p.by_pixel, doubled, transposed, p.inputs, p.outputs, nullptr, taps.stride(transposed ? 1 : 0),
                    taps.stride(transposed ? 0 : 1), taps.stride(2), taps.stride(3), transformed.mutable_data_ptr()};
    p.weight = transformed.const_data_ptr();
    for (int64_t group = 0; group < groups; group++) {
      const int64_t pixels = p.by_pixel ? 1 : p.height * p.width, results = p.by_pixel ? 1 : p.result_height() * p.result_width();
      w.weight = (const char*)taps.const_data_ptr() + group * p.outputs * w.of_output * item;
      p.image = (const char*)image.const_data_ptr() + group * p.inputs * pixels * item;
      p.bias = shift ? (const char*)shift->const_data_ptr() + group * p.outputs * item : nullptr;
      p.result = (char*)y.mutable_data_ptr() + group * p.outputs * results * item;
      run_items(kernels.weight, w, panels, (double)(p.inputs * width * 100));
      run_items(kernels.convolve, p, p.blocks(), (double)(p.block * p.inputs) * (double)p.outputs);
    }
  }
  return torch::stable::to(inside == format ? y : torch::stable::contiguous(y, format), x.scalar_type());
}

}  // namespace genmod
