// Tensors in, raw pointers to the kernels, tensors out: 3x3 convolutions on the CPU. Schemas, fakes and autograd are in
// genmod/ops/conv3x3.py; arguments were checked there too.
#include "convolved_3x3.h"

#include <memory>

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
  if (planes || (format != MemoryFormat::Contiguous && t.size(1) % kPixelVector == 0)) return densified(t, format);
  const int64_t batch = t.size(0), height = t.size(2), width = t.size(3);
  Tensor out = empty({batch, height, width, padded_channels(t.size(1))}, t, t.scalar_type());
  const PixelCopy p{wide, t.size(1), height, width, t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3), out.mutable_data_ptr()};
  run_items(kernels().to_pixels, p, batch * height, (double)(width * t.size(1) * 4));
  return out;
}

// Sums over all tiles, of each frequency. Where the weight is small, parts of the tiles have sums of their own, and a part
// is one thread's: what it transforms stays in its cache. Else a part is all of them, and threads share its products.
constexpr int64_t kParts = 8;
constexpr int64_t kSmall = 512 << 10;                    // bytes of a part's sums
constexpr int64_t kNear = 192 << 10, kFar = 2 << 20;     // elements of transformed tiles at a time, of one thread or of all

struct Sums {
  int64_t tiles, parts, of_tile, of_part, item;

  explicit Sums(const Conv3x3Gradient& p)
      : tiles(p.batch * p.tile_rows() * p.tile_columns()), of_tile(kFrequencies * (p.image_pitch() + p.grad_pitch())), of_part(kFrequencies * p.image_pitch() * p.grad_pitch()), item(p.wide ? 8 : 4) {
    parts = of_part * item > kSmall ? 1 : std::max<int64_t>(1, std::min(kParts, tiles / (2 * most(kNear))));
  }
  int64_t most(int64_t elements) const { return std::min(tiles, std::max<int64_t>(64, elements / of_tile)); }
  int64_t scratch() const { return most(parts > 1 ? kNear : kFar) * of_tile * item; }

  // Adds up the tiles of a part, in stretches: those that `share` is called for may run on any thread.
  template <class Share> void add(Conv3x3Gradient p, int64_t part, char* scratch, void* products, const Share& share) const {
    const int64_t stretch = most(parts > 1 ? kNear : kFar), last = tiles * (part + 1) / parts;
    p.first = tiles * part / parts;
    p.of_image = scratch;
    p.of_grad = scratch + stretch * kFrequencies * p.image_pitch() * item;
    p.products = (char*)products + part * of_part * item;
    for (p.begin = p.first; p.begin < last; p.begin += stretch) {
      p.count = std::min(stretch, last - p.begin);
      share(kernels().transform, p, p.count, (double)(3 * of_tile));
      share(kernels().accumulate, p, kernels().bands(p), (double)(p.count * p.inputs));
    }
  }
};

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
  const Sums sums(p);
  Tensor products = empty({sums.parts, sums.of_part}, x, type);
  void* total = products.mutable_data_ptr();
  using Kernel = void (*)(const Conv3x3Gradient&, int64_t, int64_t);
  if (sums.parts == 1) {
    const std::unique_ptr<char[]> scratch(new char[(size_t)sums.scratch()]);
    sums.add(p, 0, scratch.get(), total, [](Kernel kernel, const Conv3x3Gradient& q, int64_t items, double work) { run_items(kernel, q, items, work); });
  } else {
    torch::stable::parallel_for(0, sums.parts, 1, [&](int64_t first, int64_t last) {
      const std::unique_ptr<char[]> scratch(new char[(size_t)sums.scratch()]);
      for (int64_t part = first; part < last; part++)
        sums.add(p, part, scratch.get(), total, [](Kernel kernel, const Conv3x3Gradient& q, int64_t items, double) { kernel(q, 0, items); });
    });
  }
  const Conv3x3WeightResult w{wide, x.size(1), grad.size(1), sums.parts, total, p.image_pitch(), p.grad_pitch() * p.image_pitch(), sums.of_part, result.mutable_data_ptr()};
  run_items(kernels().weight_result, w, grad.size(1), (double)(x.size(1) * 40));
  return torch::stable::to(result, x.scalar_type());
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("conv3x3", GENMOD_BOX(&genmod::conv3x3));
  m.impl("conv3x3_weight_gradient", GENMOD_BOX(&genmod::conv3x3_weight_gradient));
}
