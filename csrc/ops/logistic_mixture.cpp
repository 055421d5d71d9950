// Tensors in, raw pointers to the kernels, tensors out: the family's dispatcher ops on the CPU.
// Schemas, fakes and autograd are in genmod/ops/logistic_mixture.py; arguments were checked there too.
#include "cpu/logistic_mixture.h"

#include "tensors.h"

#include <tuple>

namespace genmod {
namespace {

// The tensor itself when its pixels lie at equal distances, else a copy.
Tensor even(const Tensor& t, MemoryFormat f) {
  const bool is_even = t.size(2) == 1 || t.size(3) == 1 || t.stride(2) == t.stride(3) * t.size(3);
  return is_even ? t : torch::stable::contiguous(t, f);
}

const Tensor& image(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 4, "genmod: expected an image tensor [B, C, H, W]");
  return t;
}

// Of a tensor that the caller keeps alive.
Planes planes(const Tensor& t) {
  const int64_t step = t.size(3) == 1 ? t.stride(2) : t.stride(3);
  return {const_cast<void*>(t.const_data_ptr()), dtype_of(t), t.stride(0), t.stride(1), step};
}

// The inputs of either op; keeps alive whatever had to be copied.
struct Inputs {
  MemoryFormat format;
  Tensor output, target;
  std::optional<Tensor> weight;
  ScalarType type;  // of the loss

  template <class Params>
  Inputs(Params& p, const Tensor& o, const Tensor& t, const std::optional<Tensor>& w, int64_t bins, double min_log_scale)
      : format(format_of(View(image(o)))), output(even(o, format)), target(even(image(t), MemoryFormat::Contiguous)), type(accumulate_type(dtype_of(o))) {
    STD_TORCH_CHECK(bins > 1, "genmod: bins must be at least 2");
    const int64_t channels = t.size(1), each = channels == 3 ? 10 : 3;
    STD_TORCH_CHECK((channels == 1 || channels == 3) && o.size(1) > 0 && o.size(1) % each == 0, "genmod: output must have 10 K channels for RGB, 3 K for grey");
    STD_TORCH_CHECK(t.size(0) == o.size(0) && t.size(2) == o.size(2) && t.size(3) == o.size(3), "genmod: output and target must have one batch and size");
    if (dtype_of(t) == Dtype::f64 && type == ScalarType::Float) target = torch::stable::to(target, ScalarType::Float);
    p.rgb = channels == 3;
    p.components = o.size(1) / each;
    p.batch = o.size(0);
    p.pixels = o.size(2) * o.size(3);
    p.half_bin = 1. / (double)(bins - 1);
    p.min_log_scale = min_log_scale;
    p.output = planes(output);
    p.target = planes(target);
    if (w) {
      STD_TORCH_CHECK(w->scalar_type() == type && w->numel() == p.batch * p.pixels, "genmod: weight must be one float32 (float64 for float64) per pixel");
      weight = torch::stable::contiguous(*w);
      p.weight = weight->const_data_ptr();
    }
  }
};

int64_t tile_count(const LogisticMixture& p) { return p.batch * tiles_per_sample(p.pixels); }

template <class Params> void run_tiles(void (*kernel)(const Params&, int64_t, int64_t), const Params& p) {
  const int64_t tiles = tile_count(p), grain = 1 + 64 / p.components;
  if (tiles <= grain) return kernel(p, 0, tiles);
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t first, int64_t last) { kernel(p, first, last); });
}

// The loss, from its sums per tile.
Tensor reduced(const std::vector<double>& sums, const Reduction& how, const LogisticMixture& p, ScalarType type, const Tensor& like) {
  const int64_t samples = how.per_sample ? p.batch : 1, share = how.per_sample ? tiles_per_sample(p.pixels) : tile_count(p);
  Tensor nll = empty(how.per_sample ? Dims{samples} : Dims{}, like, type);
  void* data = nll.mutable_data_ptr();
  for (int64_t s = 0; s < samples; s++) {
    double total = 0;
    for (int64_t t = s * share; t < (s + 1) * share; t++) total += sums[(size_t)t];
    total *= how.scale;
    if (type == ScalarType::Double) ((double*)data)[s] = total;
    else ((float*)data)[s] = (float)total;
  }
  return nll;
}

Tensor logistic_mixture_nll(const Tensor& output, const Tensor& target, const std::optional<Tensor>& weight, const std::string& reduction,
                            int64_t bins, double min_log_scale) {
  LogisticMixtureForward p{};
  const Inputs inputs(p, output, target, weight, bins, min_log_scale);
  const Reduction how(reduction, p.batch, p.batch * p.pixels);
  if (how.per_element) {
    Tensor nll = empty({p.batch, output.size(2), output.size(3)}, output, inputs.type);
    p.nll = nll.mutable_data_ptr();
    run_tiles(GENMOD_SELECT(logistic_mixture_kernels).forward, p);
    return nll;
  }
  std::vector<double> sums((size_t)tile_count(p));
  p.sums = sums.data();
  run_tiles(GENMOD_SELECT(logistic_mixture_kernels).forward, p);
  return reduced(sums, how, p, inputs.type, output);
}

Tensor logistic_mixture_nll_backward(const Tensor& grad, const Tensor& output, const Tensor& target, const std::optional<Tensor>& weight,
                                     const std::string& reduction, int64_t bins, double min_log_scale) {
  LogisticMixtureBackward p{};
  const Inputs inputs(p, output, target, weight, bins, min_log_scale);
  const Reduction how(reduction, p.batch, p.batch * p.pixels);
  STD_TORCH_CHECK(grad.scalar_type() == inputs.type, "genmod: the gradient of a loss is float32 (float64 for float64 inputs)");
  STD_TORCH_CHECK(how.per_element ? has_sizes(grad, {p.batch, output.size(2), output.size(3)}) : grad.numel() == (how.per_sample ? p.batch : 1),
                  "genmod: the gradient of a loss must have its shape");
  const Tensor dense = torch::stable::contiguous(grad);
  p.grad = dense.const_data_ptr();
  p.grad_batch = how.per_element ? p.pixels : how.per_sample ? 1 : 0;
  p.grad_pixel = how.per_element ? 1 : 0;
  p.scale = how.scale;
  Tensor d_output = empty(output.sizes(), output, output.scalar_type(), inputs.format);
  p.d_output = planes(d_output);
  run_tiles(GENMOD_SELECT(logistic_mixture_kernels).backward, p);
  return d_output;
}

std::tuple<Tensor, Tensor> logistic_mixture_nll_with_gradient(const Tensor& output, const Tensor& target, const std::optional<Tensor>& weight,
                                                              const std::string& reduction, int64_t bins, double min_log_scale) {
  LogisticMixtureBackward p{};
  const Inputs inputs(p, output, target, weight, bins, min_log_scale);
  const Reduction how(reduction, p.batch, p.batch * p.pixels);
  STD_TORCH_CHECK(!how.per_element && !how.per_sample, "genmod: one pass for loss and gradient needs a loss that is one number");
  const float one = 1;
  const double one_wide = 1;
  p.grad = inputs.type == ScalarType::Double ? (const void*)&one_wide : &one;
  p.scale = how.scale;
  std::vector<double> sums((size_t)tile_count(p));
  p.sums = sums.data();
  Tensor d_output = empty(output.sizes(), output, output.scalar_type(), inputs.format);
  p.d_output = planes(d_output);
  run_tiles(GENMOD_SELECT(logistic_mixture_kernels).backward, p);
  return {reduced(sums, how, p, inputs.type, output), d_output};
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("logistic_mixture_nll", GENMOD_BOX(&genmod::logistic_mixture_nll));
  m.impl("logistic_mixture_nll_backward", GENMOD_BOX(&genmod::logistic_mixture_nll_backward));
  m.impl("logistic_mixture_nll_with_gradient", GENMOD_BOX(&genmod::logistic_mixture_nll_with_gradient));
}
