// Tensors in, raw pointers to the kernels, tensors out: the family's dispatcher ops on the CPU.
// Schemas, fakes and autograd are in genmod/ops/adversarial.py; arguments were checked there too.
#include "cpu/adversarial.h"

#include <tuple>

#include "chunks.h"
#include "tensors.h"

namespace genmod {
namespace {

Curve parse_curve(const std::string& name) {
  if (name == "softplus") return Curve::softplus;
  if (name == "relu") return Curve::relu;
  if (name == "square") return Curve::square;
  STD_TORCH_CHECK(name == "linear", "genmod: curve must be 'softplus', 'relu', 'square' or 'linear', got '", name, "'");
  return Curve::linear;
}

double number(const Tensor& t) {
  const bool wide = t.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(t.numel() == 1 && (wide || t.scalar_type() == ScalarType::Float), "genmod: a center is one float32 or float64 number");
  return wide ? *(const double*)t.const_data_ptr() : (double)*(const float*)t.const_data_ptr();
}

// Both sides as the kernel reads them. Keeps alive the dense copies of what does not lie densely in its format.
struct Logits {
  std::optional<Tensor> real;
  Tensor fake;
  Dims real_sizes, fake_sizes;
  MemoryFormat real_format, fake_format;
  ScalarType accumulate;
  Adversarial p{};

  Logits(const std::optional<Tensor>& r, const Tensor& f, const std::optional<Tensor>& real_center, const std::optional<Tensor>& fake_center,
         const std::string& curve, const std::vector<double>& terms, bool paired, const std::string& reduction)
      : fake(f) {
    const View view(f);
    fake_sizes = view.sizes;
    fake_format = format_of(view);
    p.dtype = dtype_of(f);
    accumulate = accumulate_type(p.dtype);
    p.curve = parse_curve(curve);
    p.paired = paired;
    STD_TORCH_CHECK(terms.size() == 6, "genmod: terms are sign, shift and weight of either side");
    if (r) {
      const View first(*r);
      real_sizes = first.sizes;
      real_format = format_of(first);
      if (real_sizes == fake_sizes) fake_format = real_format;
      STD_TORCH_CHECK(dtype_of(*r) == p.dtype, "genmod: real and fake must have one dtype");
      real = densified(*r, real_format);
      set(p.real, *real, terms.data(), reduction);
      if (real_center) p.real.shift -= number(*real_center);
    }
    fake = densified(f, fake_format);
    set(p.fake, fake, terms.data() + 3, reduction);
    if (fake_center) p.fake.shift -= number(*fake_center);
    STD_TORCH_CHECK(!(paired || (r && reduction == "none")) || real_sizes == fake_sizes, "genmod: real and fake must have one shape");
    STD_TORCH_CHECK(reduction == "none" || reduction == "mean" || reduction == "sum", "genmod: reduction must be 'none', 'mean' or 'sum', got '", reduction, "'");
    p.numel = p.real.numel > p.fake.numel ? p.real.numel : p.fake.numel;
  }

  static void set(AdversarialSide& side, const Tensor& x, const double* terms, const std::string& reduction) {
    side.x = x.const_data_ptr();
    side.numel = x.numel();
    side.sign = terms[0];
    side.shift = terms[1];
    side.weight = terms[2];
    side.scale = Reduction(reduction, 0, side.numel).scale;
  }

  // Makes the derivatives that are wanted, bit 0 for real and bit 1 for fake, to be written in that type.
  std::tuple<Tensor, Tensor> derivatives(ScalarType type, int64_t wanted) {
    Tensor first = real && (wanted & 1) ? empty(real_sizes, fake, type, real_format) : empty({0}, fake, type);
    Tensor second = wanted & 2 ? empty(fake_sizes, fake, type, fake_format) : empty({0}, fake, type);
    if (real && (wanted & 1)) p.real.d = first.mutable_data_ptr();
    if (wanted & 2) p.fake.d = second.mutable_data_ptr();
    p.narrow = type != accumulate;
    return {first, second};
  }

  // Runs the kernel for the loss, and for the derivatives that were made before.
  Tensor loss(bool per_element) {
    if (per_element) {
      Tensor out = empty(real ? real_sizes : fake_sizes, fake, accumulate, real ? real_format : fake_format);
      p.loss = out.mutable_data_ptr();
      run(GENMOD_SELECT(adversarial_kernels).run, p);
      return out;
    }
    Tensor out = empty({}, fake, accumulate);
    double few[2 * kGrain] = {};
    std::vector<double> many;
    const int64_t chunks = chunk_count(p.numel);
    if (chunks > kGrain) many.assign((size_t)(2 * chunks), 0.0);
    p.sums = chunks > kGrain ? many.data() : few;
    run(GENMOD_SELECT(adversarial_kernels).run, p);
    double real_sum = 0, fake_sum = 0;
    for (int64_t c = 0; c < chunks; c++) {
      real_sum += p.sums[2 * c];
      fake_sum += p.sums[2 * c + 1];
    }
    const double total = real_sum * p.real.scale + fake_sum * p.fake.scale;
    if (p.dtype == Dtype::f64) *(double*)out.mutable_data_ptr() = total;
    else *(float*)out.mutable_data_ptr() = (float)total;
    return out;
  }
};

Tensor adversarial(const std::optional<Tensor>& real, const Tensor& fake, const std::optional<Tensor>& real_center, const std::optional<Tensor>& fake_center,
                   const std::string& curve, const std::vector<double>& terms, bool paired, const std::string& reduction) {
  return Logits(real, fake, real_center, fake_center, curve, terms, paired, reduction).loss(reduction == "none");
}

std::tuple<Tensor, Tensor, Tensor> adversarial_with_gradients(const std::optional<Tensor>& real, const Tensor& fake,
                                                              const std::optional<Tensor>& real_center, const std::optional<Tensor>& fake_center,
                                                              const std::string& curve, const std::vector<double>& terms, bool paired,
                                                              const std::string& reduction, int64_t wanted) {
  Logits logits(real, fake, real_center, fake_center, curve, terms, paired, reduction);
  const auto [first, second] = logits.derivatives(logits.accumulate, wanted);
  return {logits.loss(reduction == "none"), first, second};
}

std::tuple<Tensor, Tensor> adversarial_backward(const Tensor& grad, const std::optional<Tensor>& real, const Tensor& fake,
                                                const std::optional<Tensor>& real_center, const std::optional<Tensor>& fake_center,
                                                const std::string& curve, const std::vector<double>& terms, bool paired, const std::string& reduction,
                                                int64_t wanted) {
  Logits logits(real, fake, real_center, fake_center, curve, terms, paired, reduction);
  STD_TORCH_CHECK(grad.scalar_type() == logits.accumulate, "genmod: the gradient of a loss is float32 (float64 for float64 logits)");
  STD_TORCH_CHECK(reduction == "none" ? has_sizes(grad, logits.fake_sizes) : grad.numel() == 1, "genmod: the gradient of a loss must have its shape");
  const auto result = logits.derivatives(fake.scalar_type(), wanted);
  const Tensor dense = densified(grad, logits.real ? logits.real_format : logits.fake_format);
  logits.p.grad = dense.const_data_ptr();
  logits.p.grad_per_element = reduction == "none";
  run(GENMOD_SELECT(adversarial_kernels).run, logits.p);
  return result;
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("adversarial", GENMOD_BOX(&genmod::adversarial));
  m.impl("adversarial_with_gradients", GENMOD_BOX(&genmod::adversarial_with_gradients));
  m.impl("adversarial_backward", GENMOD_BOX(&genmod::adversarial_backward));
}
