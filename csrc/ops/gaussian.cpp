// Tensors in, raw pointers to the kernels, tensors out: the family's dispatcher ops on the CPU.
// Schemas, fakes and autograd are in genmod/ops/gaussian.py; arguments were checked there too.
#include "cpu/gaussian.h"

#include "chunks.h"
#include "gaussian_tensors.h"
#include "loss.h"

#include <tuple>
#include <vector>

namespace genmod {
namespace {

// Noise given as a tensor, or the key to draw it from. Keeps a dense copy alive if one had to be made.
struct Noise {
  std::optional<Tensor> dense;
  Noise(const std::optional<Tensor>& noise, const Gaussian& g) {
    if (noise) {
      STD_TORCH_CHECK(has_sizes(*noise, g.mean.sizes) && dtype_of(*noise) == g.dtype, "genmod: noise must have the mean's shape and dtype");
      dense = densified(*noise, g.format);
    }
  }
  template <class Params> void set(Params& p, const std::optional<Tensor>& seed) const {
    STD_TORCH_CHECK(dense.has_value() != seed.has_value(), "genmod: give exactly one of noise and seed");
    p.noise = dense ? dense->const_data_ptr() : nullptr;
    p.draw = !dense;
    if (seed) STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "genmod: seed must be one int64");
    p.key = seed ? *(const uint64_t*)seed->const_data_ptr() : 0;
  }
};

// The KL's output, handed to the kernel.
Loss set_kl(GaussianForward& p, const Gaussian& g, const std::string& reduction) {
  Loss kl(g.mean, g.format, reduction);
  p.kl = kl.elements;
  p.sums = kl.sums_or_null();
  p.sample = kl.sample;
  return kl;
}

// The incoming gradient of the KL, handed to the kernel; the result keeps it alive.
LossGrad set_grad_kl(GaussianBackward& p, const Tensor& grad, const std::string& reduction, const Gaussian& g) {
  LossGrad kl(grad, g.mean, g.format, reduction);
  p.grad_kl = kl.dense.const_data_ptr();
  p.grad_kl_per_element = kl.reduction.per_element;
  p.sample = kl.sample;
  p.scale = kl.reduction.scale;
  return kl;
}

Tensor reparameterize(const Tensor& mean, const std::optional<Tensor>& logvar, const std::optional<Tensor>& noise,
                      const std::optional<Tensor>& seed, const std::string& clamp) {
  const Gaussian g(mean, logvar);
  const Noise eps(noise, g);
  GaussianForward p{};
  const CommonRows rows = set_inputs(p, g);
  p.clamp = parse_clamp(clamp);
  eps.set(p, seed);
  Tensor z = empty(g.mean.sizes, mean, mean.scalar_type(), g.format);
  p.z = z.mutable_data_ptr();
  run(GENMOD_SELECT(gaussian_kernels).forward, p);
  return z;
}

std::tuple<Tensor, Tensor> sample_kl(const Tensor& mean, const std::optional<Tensor>& logvar, const std::optional<Tensor>& noise,
                                     const std::optional<Tensor>& seed, double free_bits, const std::string& reduction, const std::string& clamp) {
  const Gaussian g(mean, logvar);
  const Noise eps(noise, g);
  GaussianForward p{};
  const CommonRows rows = set_inputs(p, g);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  eps.set(p, seed);
  Tensor z = empty(g.mean.sizes, mean, mean.scalar_type(), g.format);
  p.z = z.mutable_data_ptr();
  Loss kl = set_kl(p, g, reduction);
  run(GENMOD_SELECT(gaussian_kernels).forward, p);
  kl.finish();
  return {z, kl.out};
}

// The gradients that came in, handed to a kernel, with the noise that belongs to the sample's; keeps what had to be copied.
struct Incoming {
  std::optional<Tensor> z;
  std::optional<LossGrad> kl;
  Incoming(GaussianBackward& p, const Gaussian& g, const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl, const Noise& eps,
           const std::optional<Tensor>& seed, const std::string& reduction) {
    STD_TORCH_CHECK(grad_z || grad_kl, "genmod: backward without a gradient");
    if (grad_z) {
      eps.set(p, seed);
      STD_TORCH_CHECK(has_sizes(*grad_z, g.mean.sizes) && dtype_of(*grad_z) == g.dtype, "genmod: the gradient of z must have its shape and dtype");
      z = densified(*grad_z, g.format);
      p.grad_z = z->const_data_ptr();
    }
    if (grad_kl) kl = set_grad_kl(p, *grad_kl, reduction, g);
  }
};

// Where the gradients of a Gaussian go.
void set_outputs(GaussianBackward& p, const GaussianGrad& grad) {
  p.d_mean = {grad.mean, grad.stride};
  p.d_logvar = {grad.logvar, grad.stride};
  p.out_cols = grad.cols;
}

std::tuple<Tensor, Tensor> sample_kl_backward(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl, const Tensor& mean,
                                              const std::optional<Tensor>& logvar, const std::optional<Tensor>& noise, const std::optional<Tensor>& seed,
                                              double free_bits, const std::string& reduction, const std::string& clamp, int64_t wanted) {
  const Gaussian g(mean, logvar);
  const Noise eps(noise, g);
  GaussianBackward p{};
  const CommonRows rows = set_inputs(p, g);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  const Incoming incoming(p, g, grad_z, grad_kl, eps, seed, reduction);
  const GaussianGrad grad(g, wanted & 1, wanted & 2);
  set_outputs(p, grad);
  run(GENMOD_SELECT(gaussian_kernels).backward, p);
  return {grad.first, grad.second};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_kl_double_backward(const Tensor& to_mean, const std::optional<Tensor>& to_logvar, const std::optional<Tensor>& grad_z,
                                                                     const std::optional<Tensor>& grad_kl, const Tensor& mean, const std::optional<Tensor>& logvar,
                                                                     const std::optional<Tensor>& noise, const std::optional<Tensor>& seed, double free_bits,
                                                                     const std::string& reduction, const std::string& clamp, int64_t wanted) {
  const Gaussian g(mean, logvar);
  const std::optional<Gaussian> arriving = second_gaussian(g, to_mean, to_logvar);
  const Noise eps(noise, g);
  GaussianDoubleBackward p{};
  const CommonRows rows = set_inputs(p, g, arriving);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  const Incoming incoming(p, g, grad_z, grad_kl, eps, seed, reduction);
  const GaussianGrad grad(g, wanted & 4, wanted & 8);
  set_outputs(p, grad);
  const ScalarType type = mean.scalar_type();
  const bool wants_grad_z = wanted & 1 && grad_z, wants_grad_kl = wanted & 2 && grad_kl;
  Tensor d_grad_z = wants_grad_z ? empty(g.mean.sizes, mean, type, g.format) : empty({0}, mean, type);
  if (wants_grad_z) p.d_grad_z = d_grad_z.mutable_data_ptr();
  std::optional<Loss> of_kl;
  if (wants_grad_kl) {
    of_kl.emplace(g.mean, g.format, reduction);
    p.d_grad_kl = of_kl->elements;
    p.sums = of_kl->sums_or_null();
  }
  run(GENMOD_SELECT(gaussian_kernels).double_backward, p);
  if (of_kl) of_kl->finish();
  return {d_grad_z, of_kl ? of_kl->out : empty({0}, mean, type), grad.first, grad.second};
}

std::tuple<Tensor, Tensor> reparameterize_backward(const Tensor& grad, const Tensor& mean, const std::optional<Tensor>& logvar,
                                                   const std::optional<Tensor>& noise, const std::optional<Tensor>& seed, const std::string& clamp, int64_t wanted) {
  return sample_kl_backward(grad, std::nullopt, mean, logvar, noise, seed, 0.0, "sum", clamp, wanted);
}

Tensor gaussian_kl(const Tensor& mean, const std::optional<Tensor>& logvar, const std::optional<Tensor>& other_mean,
                   const std::optional<Tensor>& other_logvar, double free_bits, const std::string& reduction, const std::string& clamp) {
  const Gaussian g(mean, logvar);
  const std::optional<Gaussian> other = second_gaussian(g, other_mean, other_logvar);
  GaussianForward p{};
  const CommonRows rows = set_inputs(p, g, other);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  Loss kl = set_kl(p, g, reduction);
  run(other ? GENMOD_SELECT(gaussian_kernels).kl_pair : GENMOD_SELECT(gaussian_kernels).forward, p);
  kl.finish();
  return kl.out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(const Tensor& grad, const Tensor& mean, const std::optional<Tensor>& logvar,
                                                                const std::optional<Tensor>& other_mean, const std::optional<Tensor>& other_logvar, double free_bits,
                                                                const std::string& reduction, const std::string& clamp, int64_t wanted) {
  const Gaussian g(mean, logvar);
  const std::optional<Gaussian> other = second_gaussian(g, other_mean, other_logvar);
  GaussianBackward p{};
  const CommonRows rows = set_inputs(p, g, other);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  const LossGrad incoming = set_grad_kl(p, grad, reduction, g);
  const GaussianGrad first(g, wanted & 1, wanted & 2), second(other ? *other : g, other && (wanted & 4), other && (wanted & 8));
  set_outputs(p, first);
  p.d_other_mean = {second.mean, second.stride};
  p.d_other_logvar = {second.logvar, second.stride};
  p.other_out_cols = second.cols;
  run(other ? GENMOD_SELECT(gaussian_kernels).kl_pair_backward : GENMOD_SELECT(gaussian_kernels).backward, p);
  return {first.first, first.second, second.first, second.second};
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("reparameterize", GENMOD_BOX(&genmod::reparameterize));
  m.impl("reparameterize_backward", GENMOD_BOX(&genmod::reparameterize_backward));
  m.impl("gaussian_kl", GENMOD_BOX(&genmod::gaussian_kl));
  m.impl("gaussian_kl_backward", GENMOD_BOX(&genmod::gaussian_kl_backward));
  m.impl("sample_kl", GENMOD_BOX(&genmod::sample_kl));
  m.impl("sample_kl_backward", GENMOD_BOX(&genmod::sample_kl_backward));
  m.impl("sample_kl_double_backward", GENMOD_BOX(&genmod::sample_kl_double_backward));
}
