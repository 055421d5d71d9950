// Tensors in, raw pointers to the kernels, tensors out: 4x4 convolutions with stride 2 on the CPU. Schemas, fakes and
// autograd are in genmod/ops/conv4x4.py; arguments were checked there too.
#include "cpu/conv4x4.h"
#include "cpu/conv4x4_few.h"

#include "tile_sums.h"

namespace genmod {
namespace {

const Conv4x4Kernels& kernels() { return GENMOD_SELECT(conv4x4_kernels); }
const Conv4x4GradientKernels& gradient_kernels() { return GENMOD_SELECT(conv4x4_gradient_kernels); }

// Blocks of whole register tiles that fall evenly on the threads. What of them is transformed stays near: a few hundred
// thousand elements.
int64_t block_of(const Conv4x4& p) {
  const int64_t of_tile = kPairFrequencies * (kPhases * p.inputs + p.outputs), threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t most = std::max(kPixelTiles, std::min(kMostTiles, (int64_t(384) << 10) / of_tile) / kPixelTiles * kPixelTiles);
  const int64_t of_thread = (p.tiles() + threads - 1) / threads, blocks = std::max<int64_t>(1, (of_thread + most - 1) / most), even = (of_thread + blocks - 1) / blocks;
  return (even + kPixelTiles - 1) / kPixelTiles * kPixelTiles;
}

constexpr int64_t kCopyBytes = 4 << 20;

// With zeros behind it.
Tensor padded(const Tensor& bias, int64_t size) {
  Tensor out = empty({size}, bias, bias.scalar_type());
  torch::stable::zero_(out);
  Tensor given = torch::stable::narrow(out, 0, 0, bias.size(0));
  torch::stable::copy_(given, bias);
  return out;
}

// Between a map of whole vectors of channels, dense in either order, and one of a few in any strides.
FewChannels few_channels(const Tensor& small, const Tensor& large) {
  FewChannels p{};
  p.wide = dtype_of(small) == Dtype::f64;
  p.by_pixel = format_of(View(small)) != MemoryFormat::Contiguous;
  p.batch = small.size(0);
  p.channels = small.size(1);
  p.few = large.size(1);
  p.height = small.size(2);
  p.width = small.size(3);
  p.small = small.mutable_data_ptr();
  p.large = large.mutable_data_ptr();
  p.of_image = large.stride(0);
  p.of_channel = large.stride(1);
  p.of_row = large.stride(2);
  p.of_column = large.stride(3);
  return p;
}
bool are_few(int64_t small, int64_t large) { return large <= kFewChannels && small % kPixelVector == 0; }
const FewChannelsKernels& few_kernels() { return GENMOD_SELECT(few_channels_kernels); }

Tensor conv4x4_few(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed) {
  const ScalarType type = accumulate_type(dtype_of(x));
  const MemoryFormat format = format_of(View(x));
  const int64_t height = transposed ? 2 * x.size(2) : x.size(2) / 2, width = transposed ? 2 * x.size(3) : x.size(3) / 2;
  Tensor y = empty({x.size(0), weight.size(transposed ? 1 : 0), height, width}, x, type, format);
  if (!y.numel()) return torch::stable::to(y, x.scalar_type());
  const Tensor image = torch::stable::to(x, type), given = transposed ? densified(image, format) : image, taps = torch::stable::contiguous(torch::stable::to(weight, type));
  FewChannels p = transposed ? few_channels(given, y) : few_channels(y, given);
  std::optional<Tensor> shift;
  if (bias) shift = torch::stable::contiguous(torch::stable::to(*bias, type));
  p.by_pixel = format != MemoryFormat::Contiguous;
  p.weight = taps.const_data_ptr();
  p.bias = shift ? shift->const_data_ptr() : nullptr;
  const double of_row = (double)(p.width * p.channels * p.taps());
  if (transposed) run_items(few_kernels().to_large, p, p.batch, (double)p.height * of_row);
  else run_items(few_kernels().to_small, p, p.batch * p.bands(), (double)p.rows() * of_row);
  return torch::stable::to(y, x.scalar_type());
}

template <class A> void add_parts(const FewChannels& p, void* result) {
  const int64_t n = p.channels * p.taps();
  for (int64_t i = 0; i < n; i++) {
    A sum = 0;
    for (int64_t part = 0; part < p.parts(); part++) sum += ((const A*)p.sums)[part * n + i];
    ((A*)result)[i] = sum;
  }
}

// Into `result`, contiguous; images are of its dtype.
void few_weight_gradient(const Tensor& grad, const Tensor& x, Tensor& result) {
  const Tensor dense = densified(grad, format_of(View(grad)));
  FewChannels p = few_channels(dense, x);
  Tensor sums = empty({p.parts(), p.channels * p.taps()}, x, x.scalar_type());
  p.sums = sums.mutable_data_ptr();
  run_items(few_kernels().to_weight, p, p.parts(), (double)(p.batch * p.pixels() / p.parts() * p.channels) * (double)p.taps());
  p.wide ? add_parts<double>(p, result.mutable_data_ptr()) : add_parts<float>(p, result.mutable_data_ptr());
}

Tensor conv4x4(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(2) == 4 && weight.size(3) == 4 && x.size(1) == weight.size(transposed ? 0 : 1),
                  "genmod: expected x [N, C, H, W] and a weight [Cout, C, 4, 4], or [C, Cout, 4, 4] of a transposed convolution");
  STD_TORCH_CHECK(transposed || (x.size(2) % 2 == 0 && x.size(3) % 2 == 0), "genmod: expected an even height and width");
  const int64_t outputs = weight.size(transposed ? 1 : 0);
  STD_TORCH_CHECK(dtype_of(weight) == dtype_of(x) && (!bias || dtype_of(*bias) == dtype_of(x)), "genmod: x, weight and bias must have one dtype");
  STD_TORCH_CHECK(!bias || has_sizes(*bias, {outputs}), "genmod: bias must have as many elements as there are output channels");
  if (are_few(weight.size(0), weight.size(1))) return conv4x4_few(x, weight, bias, transposed);
  const ScalarType type = accumulate_type(dtype_of(x));
  const MemoryFormat format = format_of(View(x));
  Conv4x4 p{};
  p.wide = dtype_of(x) == Dtype::f64;
  p.transposed = transposed;
  p.batch = x.size(0);
  p.inputs = padded_channels(x.size(1));
  p.outputs = padded_channels(outputs);
  p.height = transposed ? x.size(2) : x.size(2) / 2;
  p.width = transposed ? x.size(3) : x.size(3) / 2;
  const int64_t height = transposed ? 2 * p.height : p.height, width = transposed ? 2 * p.width : p.width, batch = p.batch;
  const Tensor image = torch::stable::to(x, type), taps = torch::stable::to(weight, type);
  // In another order, or with channels to be padded, some images at a time are copied there and back: few enough for the
  // cache, and for memory that the allocator has at hand.
  const bool image_fits = is_pixel_by_pixel(x), result_fits = format != MemoryFormat::Contiguous && outputs == p.outputs;
  const MemoryFormat inside = result_fits ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  Tensor y = empty({batch, outputs, height, width}, x, type, inside);
  if (y.numel()) {
    const int64_t item = p.wide ? 8 : 4, of_image = p.inputs * x.size(2) * x.size(3) * item, of_result = p.outputs * height * width * item;
    const int64_t chunk = image_fits && result_fits ? batch : std::min(batch, std::max<int64_t>(1, kCopyBytes / std::max(of_image, of_result)));
    const Tensor source = image_fits ? densified(image, MemoryFormat::ChannelsLast) : empty({chunk, of_image / item}, x, type);
    Tensor target = result_fits ? y : empty({chunk, of_result / item}, x, type);
    const Tensor shift = bias ? padded(torch::stable::to(*bias, type), p.outputs) : Tensor();
    p.batch = chunk;
    p.block = block_of(p);
    p.bias = bias ? shift.const_data_ptr() : nullptr;
    const int64_t panels = kernels().panels(p.wide, p.outputs), panel_width = kernels().panel_width(p.wide);
    Conv4x4Weight w{p.wide, transposed, x.size(1), outputs, p.inputs, p.outputs, taps.const_data_ptr(), taps.stride(transposed ? 1 : 0),
                    taps.stride(transposed ? 0 : 1), taps.stride(2), taps.stride(3), nullptr};
    const bool by_panels = p.outputs >= p.tiles();
    Tensor transformed = empty({by_panels ? kernels().patch_elements(p) : kProducts4x4 * panels * p.inputs * panel_width}, x, type);
    if (by_panels) {
      p.patches = transformed.mutable_data_ptr();
    } else {
      w.transformed = transformed.mutable_data_ptr();
      p.weight = w.transformed;
      run_items(kernels().weight, w, panels, (double)(p.inputs * panel_width * 100));
    }
    for (int64_t first = 0; first < batch; first += chunk) {
      const int64_t last = std::min(batch, first + chunk);
      if (!image_fits) copy_pixels(image, first, last, p.wide, source.mutable_data_ptr());
      p.batch = last - first;
      p.image = (const char*)source.const_data_ptr() + (image_fits ? first * of_image : 0);
      p.result = (char*)target.mutable_data_ptr() + (result_fits ? first * of_result : 0);
      if (by_panels) {
        run_items(kernels().patches, p, p.blocks(), (double)(p.block * p.inputs * 60));
        run_items(kernels().by_panels, Conv4x4Panels{p.wide, p, w}, panels, (double)(p.tiles() * p.inputs) * (double)panel_width);
      } else {
        run_items(kernels().convolve, p, p.blocks(), (double)(p.block * p.inputs) * (double)p.outputs);
      }
      if (!result_fits) copy_planes(p.result, first, last, p.wide, y);
    }
  }
  return torch::stable::to(inside == format ? y : torch::stable::contiguous(y, format), x.scalar_type());
}

Tensor conv4x4_weight_gradient(const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && grad.dim() == 4 && x.size(0) == grad.size(0) && x.size(2) == 2 * grad.size(2) && x.size(3) == 2 * grad.size(3),
                  "genmod: expected images [N, C, H, W] of one batch, the second twice as high and wide as the first");
  const Dtype dtype = dtype_of(x);
  STD_TORCH_CHECK(dtype_of(grad) == dtype, "genmod: both images must have one dtype");
  const ScalarType type = accumulate_type(dtype);
  const MemoryFormat format = format_of(View(x));
  const bool few = are_few(grad.size(1), x.size(1));
  Tensor result = empty({grad.size(1), x.size(1), 4, 4}, x, type, few ? MemoryFormat::Contiguous : format);
  if (!x.numel() || !grad.numel()) {
    torch::stable::zero_(result);
    return torch::stable::to(few ? torch::stable::contiguous(result, format) : result, x.scalar_type());
  }
  if (few) {
    few_weight_gradient(torch::stable::to(grad, type), torch::stable::to(x, type), result);
    return torch::stable::to(torch::stable::contiguous(result, format), x.scalar_type());
  }
  Conv4x4Gradient p{};
  p.wide = dtype == Dtype::f64;
  const Tensor image = pixel_by_pixel(torch::stable::to(x, type), p.wide), gradient = pixel_by_pixel(torch::stable::to(grad, type), p.wide);
  p.batch = x.size(0);
  p.inputs = padded_channels(x.size(1));
  p.outputs = padded_channels(grad.size(1));
  p.height = grad.size(2);
  p.width = grad.size(3);
  p.image = image.const_data_ptr();
  p.grad = gradient.const_data_ptr();
  p.last = format != MemoryFormat::Contiguous;
  p.result = result.mutable_data_ptr();
  p.result_inputs = x.size(1);
  p.result_outputs = grad.size(1);
  const TileSums sums(p, gradient_kernels());
  if (sums.in_one_stretch()) {
    Tensor scratch = empty({sums.scratch_elements()}, x, type);
    const Conv4x4Gradient q = sums.transformed(scratch.mutable_data_ptr());
    run_items(gradient_kernels().finish, q, gradient_kernels().groups(q), (double)(q.count * q.inputs) * 36);
    return torch::stable::to(result, x.scalar_type());
  }
  Tensor products = empty({sums.parts(), p.sums()}, x, type);
  void* total = products.mutable_data_ptr();
  sums.add(total);
  const Conv4x4WeightResult w{p.wide, x.size(1), grad.size(1), sums.parts(), total, p.image_pitch(), p.grad_pitch() * p.image_pitch(), p.sums(), p.last, p.result};
  run_items(gradient_kernels().weight_result, w, grad.size(1), (double)(x.size(1) * 60));
  return torch::stable::to(result, x.scalar_type());
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("conv4x4", GENMOD_BOX(&genmod::conv4x4));
  m.impl("conv4x4_weight_gradient", GENMOD_BOX(&genmod::conv4x4_weight_gradient));
}
