// Tensors in, kernels on the current stream, tensors out: the family's dispatcher ops in CUDA C++.
//
// They go to a library of their own, genmod_cuda, with the signatures of genmod's: which of Triton and these kernels
// serves a CUDA tensor is decided in genmod/backends.py.
#include <tuple>
#include <vector>

#include "cuda/gaussian.h"
#include "cuda_launch.h"
#include "gaussian_tensors.h"

namespace genmod {
namespace cuda {
namespace {

using Result2 = std::tuple<Tensor, Tensor>;
using Result4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Maybe = std::optional<Tensor>;

// The dispatcher comes here as soon as one tensor is on a GPU.
void check_devices(const Tensor& mean, std::initializer_list<const Maybe*> others) {
  STD_TORCH_CHECK(mean.is_cuda(), "genmod: mean must be on the GPU, as the other tensors are");
  for (const Maybe* t : others)
    STD_TORCH_CHECK(!*t || ((*t)->is_cuda() && (*t)->get_device_index() == mean.get_device_index()),
                    "genmod: all tensors must be on the device of the mean");
}

// A tensor like z (noise, or a gradient), in its memory order.
Tensor dense_like(const Tensor& t, const Gaussian& g, const char* name) {
  STD_TORCH_CHECK(t.numel() == g.numel && dtype_of(t) == g.dtype, "genmod: ", name, " must have the mean's shape and dtype");
  return densified(t, g.format);
}

// Noise given as a tensor, or the key to draw it from, which only the device reads. Returns what must stay alive.
template <class Params> Maybe set_noise(Params& p, const Maybe& noise, const Maybe& seed, const Gaussian& g) {
  STD_TORCH_CHECK(noise.has_value() != seed.has_value(), "genmod: give exactly one of noise and seed");
  if (seed) {
    STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long && seed->numel() == 1, "genmod: seed must be one int64");
    p.seed = (const int64_t*)seed->const_data_ptr();
    return std::nullopt;
  }
  Tensor dense = dense_like(*noise, g, "noise");
  p.noise = dense.const_data_ptr();
  return dense;
}

// The KL's output, and the workspace behind its sums.
struct Kl {
  Tensor out;
  Maybe workspace;

  Kl(GaussianForward& p, const Gaussian& g, const std::string& name) {
    const Reduction reduction(name, g.batch(), g.numel);
    const Tensor& like = g.mean.tensor;
    const ScalarType type = accumulate_type(g.dtype);
    if (reduction.per_element) {
      out = empty(g.mean.sizes, like, type, g.format);
      p.kl = out.mutable_data_ptr();
      return;
    }
    p.samples = reduction.per_sample ? g.batch() : 1;
    p.sample = reduction.per_sample ? g.event() : g.numel;
    p.scale = reduction.scale;
    out = empty(reduction.per_sample ? Dims{p.samples} : Dims{}, like, type);
    p.sums = out.mutable_data_ptr();
    if (const int64_t size = gaussian_workspace(g.numel, p.samples)) {
      workspace = empty({size}, like, type);
      p.workspace = workspace->mutable_data_ptr();
    }
  }
};

// The incoming gradient of the KL, in the layout and type that the kernel reads. Returns what must stay alive.
Tensor set_grad_kl(GaussianBackward& p, const Tensor& grad, const Gaussian& g, const std::string& name) {
  const Reduction reduction(name, g.batch(), g.numel);
  STD_TORCH_CHECK(grad.scalar_type() == accumulate_type(g.dtype),
                  "genmod: the gradient of a KL is float32 (float64 for float64 inputs)");
  Tensor dense = densified(grad, reduction.per_element ? g.format : MemoryFormat::Contiguous);
  p.grad_kl = dense.const_data_ptr();
  p.grad_kl_per_element = reduction.per_element;
  p.sample = reduction.per_sample ? g.event() : g.numel;
  p.scale = reduction.scale;
  return dense;
}

Tensor reparameterize(const Tensor& mean, const Maybe& logvar, const Maybe& noise, const Maybe& seed, const std::string& clamp) {
  check_devices(mean, {&logvar, &noise, &seed});
  const Gaussian g(mean, logvar);
  GaussianForward p{};
  const CommonRows rows = set_inputs(p, g, std::nullopt);
  const Maybe eps = set_noise(p, noise, seed, g);
  p.clamp = parse_clamp(clamp);
  Tensor z = empty(g.mean.sizes, mean, mean.scalar_type(), g.format);
  p.z = z.mutable_data_ptr();
  run(gaussian_forward, p, mean);
  return z;
}

Result2 sample_kl(const Tensor& mean, const Maybe& logvar, const Maybe& noise, const Maybe& seed, double free_bits,
                  const std::string& reduction, const std::string& clamp) {
  check_devices(mean, {&logvar, &noise, &seed});
  const Gaussian g(mean, logvar);
  GaussianForward p{};
  const CommonRows rows = set_inputs(p, g, std::nullopt);
  const Maybe eps = set_noise(p, noise, seed, g);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  Tensor z = empty(g.mean.sizes, mean, mean.scalar_type(), g.format);
  p.z = z.mutable_data_ptr();
  const Kl kl(p, g, reduction);
  run(gaussian_forward, p, mean);
  return {z, kl.out};
}

Tensor gaussian_kl(const Tensor& mean, const Maybe& logvar, const Maybe& other_mean, const Maybe& other_logvar, double free_bits,
                   const std::string& reduction, const std::string& clamp) {
  check_devices(mean, {&logvar, &other_mean, &other_logvar});
  const Gaussian g(mean, logvar);
  const std::optional<Gaussian> other = second_gaussian(g, other_mean, other_logvar);
  GaussianForward p{};
  const CommonRows rows = set_inputs(p, g, other);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  const Kl kl(p, g, reduction);
  run(gaussian_forward, p, mean);
  return kl.out;
}

Result2 sample_kl_backward(const Maybe& grad_z, const Maybe& grad_kl, const Tensor& mean, const Maybe& logvar, const Maybe& noise,
                           const Maybe& seed, double free_bits, const std::string& reduction, const std::string& clamp,
                           int64_t wanted) {
  check_devices(mean, {&grad_z, &grad_kl, &logvar, &noise, &seed});
  STD_TORCH_CHECK(grad_z || grad_kl, "genmod: backward without a gradient");
  const Gaussian g(mean, logvar);
  GaussianBackward p{};
  const CommonRows rows = set_inputs(p, g, std::nullopt);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  Maybe eps, gz, gkl;
  if (grad_z) {
    eps = set_noise(p, noise, seed, g);
    gz = dense_like(*grad_z, g, "the gradient of z");
    p.grad_z = gz->const_data_ptr();
  }
  if (grad_kl) gkl = set_grad_kl(p, *grad_kl, g, reduction);
  const GaussianGrad grad(g, wanted & 1, wanted & 2);
  p.d_mean = {grad.mean, grad.stride};
  p.d_logvar = {grad.logvar, grad.stride};
  p.out_cols = grad.cols;
  run(gaussian_backward, p, mean);
  return {grad.first, grad.second};
}

Result2 reparameterize_backward(const Tensor& grad, const Tensor& mean, const Maybe& logvar, const Maybe& noise,
                                const Maybe& seed, const std::string& clamp, int64_t wanted) {
  return sample_kl_backward(grad, std::nullopt, mean, logvar, noise, seed, 0.0, "sum", clamp, wanted);
}

Result4 gaussian_kl_backward(const Tensor& grad, const Tensor& mean, const Maybe& logvar, const Maybe& other_mean,
                             const Maybe& other_logvar, double free_bits, const std::string& reduction,
                             const std::string& clamp, int64_t wanted) {
  const Maybe incoming = grad;
  check_devices(mean, {&incoming, &logvar, &other_mean, &other_logvar});
  const Gaussian g(mean, logvar);
  const std::optional<Gaussian> other = second_gaussian(g, other_mean, other_logvar);
  GaussianBackward p{};
  const CommonRows rows = set_inputs(p, g, other);
  p.clamp = parse_clamp(clamp);
  p.free_bits = free_bits;
  const Tensor dense = set_grad_kl(p, grad, g, reduction);
  const GaussianGrad own(g, wanted & 1, wanted & 2), others(other ? *other : g, other && (wanted & 4), other && (wanted & 8));
  p.d_mean = {own.mean, own.stride};
  p.d_logvar = {own.logvar, own.stride};
  p.out_cols = own.cols;
  p.d_other_mean = {others.mean, others.stride};
  p.d_other_logvar = {others.logvar, others.stride};
  p.other_out_cols = others.cols;
  run(gaussian_backward, p, mean);
  return {own.first, own.second, others.first, others.second};
}

}  // namespace
}  // namespace cuda
}  // namespace genmod

STABLE_TORCH_LIBRARY_FRAGMENT(genmod_cuda, m) {
  m.def("reparameterize(Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, str clamp) -> Tensor");
  m.def(
      "reparameterize_backward(Tensor grad, Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, str clamp, "
      "int wanted) -> (Tensor, Tensor)");
  m.def(
      "gaussian_kl(Tensor mean, Tensor? logvar, Tensor? other_mean, Tensor? other_logvar, float free_bits, "
      "str reduction, str clamp) -> Tensor");
  m.def(
      "gaussian_kl_backward(Tensor grad, Tensor mean, Tensor? logvar, Tensor? other_mean, Tensor? other_logvar, "
      "float free_bits, str reduction, str clamp, int wanted) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "sample_kl(Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, float free_bits, str reduction, "
      "str clamp) -> (Tensor, Tensor)");
  m.def(
      "sample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mean, Tensor? logvar, Tensor? noise, Tensor? seed, "
      "float free_bits, str reduction, str clamp, int wanted) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(genmod_cuda, CUDA, m) {
  m.impl("reparameterize", GENMOD_BOX(&genmod::cuda::reparameterize));
  m.impl("reparameterize_backward", GENMOD_BOX(&genmod::cuda::reparameterize_backward));
  m.impl("gaussian_kl", GENMOD_BOX(&genmod::cuda::gaussian_kl));
  m.impl("gaussian_kl_backward", GENMOD_BOX(&genmod::cuda::gaussian_kl_backward));
  m.impl("sample_kl", GENMOD_BOX(&genmod::cuda::sample_kl));
  m.impl("sample_kl_backward", GENMOD_BOX(&genmod::cuda::sample_kl_backward));
}
