// Tensors in, raw pointers to the kernels, tensors out: 3x3 convolutions on the CPU. Schemas, fakes and autograd are in
// genmod/ops/conv3x3.py; arguments were checked there too.
#include "convolved_3x3.h"
#include "tile_sums.h"

namespace genmod {
namespace {

const Conv3x3GradientKernels& kernels() { return GENMOD_SELECT(conv3x3_gradient_kernels); }

// The image convolved with the weight, or `transposed`: what a convolution with that weight has as its input's gradient.
Tensor conv3x3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, bool transposed) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && x.size(1) == weight.size(transposed ? 0 : 1),
                  "genmod: expected x [N, C, H, W] and a weight [Cout, C, 3, 3], or [C, Cout, 3, 3] of a transposed convolution");
  STD_TORCH_CHECK(dtype_of(weight) == dtype_of(x) && (!bias || dtype_of(*bias) == dtype_of(x)), "genmod: x, weight and bias must have one dtype");
  STD_TORCH_CHECK(!bias || has_sizes(*bias, {weight.size(transposed ? 1 : 0)}), "genmod: bias must have as many elements as there are output channels");
  return convolved_3x3(x, weight, bias, 1, transposed, false);
}

constexpr int64_t kCopyBytes = 4 << 20;  // beyond that the allocator may have to ask the system for it at each call

// A tensor as the weight's gradient takes it, and its channels if that is plane by plane. Turning tiles costs more than
// turning the image, but needs no memory, so that it is for large ones.
Tensor side(const Tensor& t, bool wide, int64_t& planes) {
  const MemoryFormat format = format_of(View(t));
  planes = format == MemoryFormat::Contiguous && t.numel() * (wide ? 8 : 4) > kCopyBytes ? t.size(1) : 0;
  return planes ? densified(t, format) : pixel_by_pixel(t, wide);
}

Tensor conv3x3_weight_gradient(const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && grad.dim() == 4 && x.size(0) == grad.size(0) && x.size(2) == grad.size(2) && x.size(3) == grad.size(3),
                  "genmod: expected images [N, C, H, W] of one batch and size");
  const Dtype dtype = dtype_of(x);
  STD_TORCH_CHECK(dtype_of(grad) == dtype, "genmod: both images must have one dtype");
  const ScalarType type = accumulate_type(dtype);
  Tensor result = empty({grad.size(1), x.size(1), 3, 3}, x, type);
  const bool wide = dtype == Dtype::f64;
  if (!x.numel() || !grad.numel()) {
    torch::stable::zero_(result);
    return torch::stable::to(result, x.scalar_type());
  }
  Conv3x3Gradient p{};
  const Tensor image = side(torch::stable::to(x, type), wide, p.image_planes), gradient = side(torch::stable::to(grad, type), wide, p.grad_planes);
  p.wide = wide;
  p.batch = x.size(0);
  p.inputs = padded_channels(x.size(1));
  p.outputs = padded_channels(grad.size(1));
  p.height = x.size(2);
  p.width = x.size(3);
  p.image = image.const_data_ptr();
  p.grad = gradient.const_data_ptr();
  const TileSums sums(p, kernels());
  Tensor products = empty({sums.parts(), p.sums()}, x, type);
  void* total = products.mutable_data_ptr();
  sums.add(total);
  const Conv3x3WeightResult w{wide, x.size(1), grad.size(1), sums.parts(), total, p.image_pitch(), p.grad_pitch() * p.image_pitch(), p.sums(), result.mutable_data_ptr()};
  run_items(kernels().weight_result, w, grad.size(1), (double)(x.size(1) * 40));
  return torch::stable::to(result, x.scalar_type());
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("conv3x3", GENMOD_BOX(&genmod::conv3x3));
  m.impl("conv3x3_weight_gradient", GENMOD_BOX(&genmod::conv3x3_weight_gradient));
}
