// Tensors in, raw pointers to the kernels, tensors out: the family's dispatcher ops on the CPU.
// Schemas, fakes and autograd are in genmod/ops/norm_act.py; arguments were checked there too.
#include "cpu/norm_act.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/norm_statistics.h"
#include "norm_double_backward.h"
#include "norm_input.h"

namespace genmod {
namespace {

struct Forward {
  Tensor y, sum;
  std::vector<double> mean, variance;  // of the blocks' statistics, where they are computed
};

// Statistics given (`running`: one per channel) or taken from x; then the activation.
Forward forward(const NormInput& in, const std::optional<Tensor>& residual, const NormParameters& given, const std::vector<double>* running_mean,
                const std::vector<double>* running_var, double eps, const std::string& activation, double negative_slope) {
  const NormCut& cut = in.cut;
  const NormKernels& kernels = GENMOD_SELECT(norm_kernels);
  NormCoefficients k(cut);
  NormForward p{};
  set_shared(p, in, k, activation, negative_slope);
  Forward out{in.like_x(), in.like_x(residual.has_value()), {}, {}};
  p.y = out.y.mutable_data_ptr();
  std::optional<Tensor> r;
  NormForward sum = p;
  if (residual) {
    r = in.alike(*residual);
    sum.residual = r->const_data_ptr();
    sum.sum = out.sum.mutable_data_ptr();
    p.x = sum.sum;
  }
  std::vector<double> moments;
  if (!running_mean) {
    moments.resize((size_t)(2 * cut.blocks * cut.pieces * cut.statistics));
    out.mean.resize((size_t)(cut.blocks * cut.statistics));
    out.variance.resize(out.mean.size());
    p.moments = moments.data();
  }
  const auto first = [&](int64_t begin, int64_t end) {
    if (!residual) return running_mean ? void() : kernels.moments(p, begin, end);
    for (int64_t t = begin; t < end;) {  // one after the other, while a bundle is in cache
      const int64_t left = cut.pieces - t % cut.pieces, next = t + (left < cut.bundle ? left : cut.bundle);
      kernels.add(sum, t, next);
      if (!running_mean) kernels.moments(p, t, next);
      t = next;
    }
  };
  const auto finish = [&](int64_t block) {
    if (!running_mean) join_moments(cut, block, moments.data(), out.mean.data(), out.variance.data());
    int64_t c = cut.channels ? block * cut.block_channels() % cut.channels : 0;
    for (int64_t g = block * cut.statistics; g < (block + 1) * cut.statistics; g++) {
      double rstd = running_mean ? 0. : 1 / std::sqrt(out.variance[(size_t)g] + eps);
      for (int64_t q = g * cut.statistic_channels; q < (g + 1) * cut.statistic_channels; q++) {
        if (running_mean) rstd = 1 / std::sqrt((*running_var)[(size_t)c] + eps);
        set_coefficients(k, given, in.dtype, q, c, running_mean ? (*running_mean)[(size_t)c] : out.mean[(size_t)g], rstd);
        c = c + 1 == cut.channels ? 0 : c + 1;
      }
    }
  };
  through_blocks(cut, in.numel(), first, finish, [&](int64_t begin, int64_t end) { kernels.apply(p, begin, end); });
  return out;
}

// Sums and input gradient, whatever the statistics; `k` holds the coefficients, `rstd` a value per statistic if they
// depend on x and is null if they do not.
struct Backward {
  Tensor dx;
  NormSums sums;
  Backward(const NormInput& in, NormBackward& p, NormCoefficients& k, const Tensor& grad, const std::optional<Tensor>& grad_sum, const double* rstd, bool want_dx, bool want_sums)
      : dx(in.like_x(want_dx)), sums(in.cut) {
    const NormCut& cut = in.cut;
    const NormKernels& kernels = GENMOD_SELECT(norm_kernels);
    const Tensor g = in.alike(grad);
    std::optional<Tensor> gs;
    if (grad_sum) gs = in.alike(*grad_sum);
    p.grad = g.const_data_ptr();
    p.grad_sum = gs ? gs->const_data_ptr() : nullptr;
    p.tilt = k.tilt.data();
    p.level = k.level.data();
    p.dx = want_dx ? dx.mutable_data_ptr() : nullptr;
    // Worth it while a block stays in level-2 cache between the two: else writing dz costs more than computing it again.
    constexpr int64_t kCached = 1 << 17;
    p.keep_dz = rstd && want_dx && !cut.in_rows && item_size(in.dtype) >= 4 && in.numel() <= cut.blocks * kCached;
    std::vector<double> partial;
    if (rstd || want_sums) partial.resize((size_t)(2 * cut.blocks * cut.pieces * cut.width()));
    p.sums = partial.data();
    const auto nothing = [](int64_t, int64_t) {};
    const auto collect = [&](int64_t block) {
      if (!partial.empty()) sums.collect(cut, block, partial.data());
      if (rstd) set_tilt_and_level(k, sums, cut, block, rstd);
    };
    const auto kernel = [&](auto which) { return [&p, which](int64_t begin, int64_t end) { which(p, begin, end); }; };
    if (rstd && want_dx) through_blocks(cut, in.numel(), kernel(kernels.sums), collect, kernel(kernels.gradient));
    else if (want_dx && want_sums) through_blocks(cut, in.numel(), kernel(kernels.both), collect, nothing);
    else if (want_dx) through_blocks(cut, in.numel(), kernel(kernels.gradient), collect, nothing);
    else if (!partial.empty()) through_blocks(cut, in.numel(), kernel(kernels.sums), collect, nothing);
  }
};

// The gradients of weight, bias, scale and shift from the sums over their channels: with a the sum of dz and b that of
// dz h, they are b (1 + scale), a (1 + scale), b weight + a bias, and a.
struct ParameterGradients {
  std::vector<double> weight, bias, scale, shift;
  template <class Rstd> ParameterGradients(const NormInput& in, const NormSums& sums, const NormParameters& given, Rstd&& rstd) : weight((size_t)in.cut.channels), bias(weight.size()), scale(sums.dz.size()), shift(sums.dz.size()) {
    for (size_t q = 0; q < sums.dz.size(); q++) {
      const int64_t c = (int64_t)q % in.cut.channels;
      const double a = sums.dz[q], b = in.numel() ? sums.product[q] * rstd((int64_t)q) : 0.;
      weight[(size_t)c] += b * given.growth_of((int64_t)q);
      bias[(size_t)c] += a * given.growth_of((int64_t)q);
      scale[q] = b * given.weight_of(c) + a * given.bias_of(c);
      shift[q] = a;
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_act(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& weight,
                                                          const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                                          int64_t num_groups, double eps, const std::string& activation, double negative_slope) {
  const NormInput in(x, Over::group, num_groups);
  Forward f = forward(in, residual, parameters(in, weight, bias, scale, shift), nullptr, nullptr, eps, activation, negative_slope);
  const Dims sizes{in.sizes[0], num_groups};
  return {f.y, f.sum, from_double(f.mean, sizes, x, in.wide()), from_double(rstd_of(f.variance, eps), sizes, x, in.wide())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_act_backward(const Tensor& grad, const std::optional<Tensor>& grad_sum, const Tensor& x,
                                                                           const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                                                           const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, const Tensor& mean,
                                                                           const Tensor& rstd, int64_t num_groups, double, const std::string& activation,
                                                                           double negative_slope, int64_t wanted) {
  const NormInput in(x, Over::group, num_groups);
  const NormParameters given = parameters(in, weight, bias, scale, shift);
  const Dims statistics{in.sizes[0], num_groups};
  const std::vector<double> means = in_double(mean, statistics), rstds = in_double(rstd, statistics);
  const int64_t together = in.cut.statistic_channels;
  NormCoefficients k(in.cut);
  NormBackward p{};
  set_shared(p, in, k, activation, negative_slope);
  int64_t q = 0;
  for (size_t g = 0; g < means.size(); g++)
    for (int64_t i = 0; i < together; i++, q++) set_coefficients(k, given, in.dtype, q, q % in.cut.channels, means[g], rstds[g]);
  const Backward b(in, p, k, grad, grad_sum, rstds.data(), wanted & 1, wanted & 30);
  const ParameterGradients d(in, b.sums, given, [&](int64_t q) { return rstds[(size_t)(q / together)]; });
  return {b.dx, gradient(d.weight, weight, x, wanted & 2), gradient(d.bias, bias, x, wanted & 4), gradient(d.scale, scale, x, wanted & 8), gradient(d.shift, shift, x, wanted & 16)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act(const Tensor& x, const std::optional<Tensor>& residual, const std::optional<Tensor>& running_mean,
                                                          const std::optional<Tensor>& running_var, const std::optional<Tensor>& weight,
                                                          const std::optional<Tensor>& bias, bool training, double eps, const std::string& activation,
                                                          double negative_slope) {
  const NormInput in(x, training ? Over::batch : Over::nothing, 1);
  if (training) {
    Forward f = forward(in, residual, parameters(in, weight, bias), nullptr, nullptr, eps, activation, negative_slope);
    return {f.y, f.sum, from_double(f.mean, {in.cut.channels}, x, in.wide()), from_double(f.variance, {in.cut.channels}, x, in.wide())};
  }
  STD_TORCH_CHECK(running_mean && running_var, "genmod: evaluation uses the running statistics");
  const std::vector<double> mean = in_double(running_mean, {in.cut.channels}), var = in_double(running_var, {in.cut.channels});
  Forward f = forward(in, residual, parameters(in, weight, bias), &mean, &var, eps, activation, negative_slope);
  return {f.y, f.sum, empty({0}, x, in.wide()), empty({0}, x, in.wide())};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_backward(const Tensor& grad, const std::optional<Tensor>& grad_sum, const Tensor& x, const std::optional<Tensor>& weight,
                                                           const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var, bool training, double eps,
                                                           const std::string& activation, double negative_slope, int64_t wanted) {
  const NormInput in(x, training ? Over::batch : Over::nothing, 1);
  const NormParameters given = parameters(in, weight, bias);
  const std::vector<double> means = in_double(mean, {in.cut.channels}), rstds = rstd_of(in_double(var, {in.cut.channels}), eps);
  NormCoefficients k(in.cut);
  NormBackward p{};
  set_shared(p, in, k, activation, negative_slope);
  for (size_t q = 0; q < k.mean.size(); q++) {
    const size_t c = q % (size_t)in.cut.channels;
    set_coefficients(k, given, in.dtype, (int64_t)q, (int64_t)c, means[c], rstds[c]);
  }
  const Backward b(in, p, k, grad, grad_sum, training ? rstds.data() : nullptr, wanted & 1, wanted & 6);
  const ParameterGradients d(in, b.sums, given, [&](int64_t q) { return rstds[(size_t)(q % in.cut.channels)]; });
  return {b.dx, gradient(d.weight, weight, x, wanted & 2), gradient(d.bias, bias, x, wanted & 4)};
}

// A bias is an offset to a mean of zero and a slope of one.
template <class Params> void set_bias(Params& p, const NormInput& in, NormCoefficients& k, const NormParameters& given, const std::string& activation, double negative_slope, double gain, double clamp) {
  set_shared(p, in, k, activation, negative_slope);
  for (size_t q = 0; q < k.mean.size(); q++) {
    k.slope[q] = 1;
    k.offset[q] = given.bias_of((int64_t)q % in.cut.channels);
  }
  p.bounded = gain != 1 || !std::isinf(clamp);
  p.gain = gain;
  p.clamp = clamp;
}

Tensor bias_act(const Tensor& x, const std::optional<Tensor>& bias, const std::string& activation, double negative_slope, double gain, double clamp) {
  const NormInput in(x, Over::nothing, 1);
  NormCoefficients k(in.cut);
  NormForward p{};
  set_bias(p, in, k, parameters(in, std::nullopt, bias), activation, negative_slope, gain, clamp);
  Tensor y = in.like_x();
  p.y = y.mutable_data_ptr();
  const NormKernels& kernels = GENMOD_SELECT(norm_kernels);
  through_blocks(in.cut, in.numel(), [&](int64_t begin, int64_t end) { kernels.apply(p, begin, end); }, [](int64_t) {}, [](int64_t, int64_t) {});
  return y;
}

// The bias of what made x first, in a pass of its own: on a CPU a convolution adds it by itself, and nobody asks.
std::tuple<Tensor, Tensor, Tensor, Tensor> group_norm_act_biased(const Tensor& x, const Tensor& x_bias, const std::optional<Tensor>& residual, const std::optional<Tensor>& weight,
                                                                 const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                                                 int64_t num_groups, double eps, const std::string& activation, double negative_slope, bool keep_sum) {
  const Tensor biased = bias_act(x, x_bias, "identity", 0, 1, std::numeric_limits<double>::infinity());
  auto [y, sum, mean, rstd] = group_norm_act(biased, residual, weight, bias, scale, shift, num_groups, eps, activation, negative_slope);
  const Tensor kept = keep_sum ? (residual ? sum : biased) : empty({0}, x, x.scalar_type());
  return {y, kept, mean, rstd};
}

std::tuple<Tensor, Tensor> bias_act_backward(const Tensor& grad, const Tensor& x, const std::optional<Tensor>& bias, const std::string& activation, double negative_slope,
                                             double gain, double clamp, int64_t wanted) {
  const NormInput in(x, Over::nothing, 1);
  const NormParameters given = parameters(in, std::nullopt, bias);
  NormCoefficients k(in.cut);
  NormBackward p{};
  set_bias(p, in, k, given, activation, negative_slope, gain, clamp);
  const Backward b(in, p, k, grad, std::nullopt, nullptr, wanted & 1, wanted & 2);
  const ParameterGradients d(in, b.sums, given, [](int64_t) { return 1.; });
  return {b.dx, gradient(d.bias, bias, x, wanted & 2)};
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("group_norm_act", GENMOD_BOX(&genmod::group_norm_act));
  m.impl("group_norm_act_biased", GENMOD_BOX(&genmod::group_norm_act_biased));
  m.impl("group_norm_act_backward", GENMOD_BOX(&genmod::group_norm_act_backward));
  m.impl("batch_norm_act", GENMOD_BOX(&genmod::batch_norm_act));
  m.impl("batch_norm_act_backward", GENMOD_BOX(&genmod::batch_norm_act_backward));
  m.impl("norm_act_double_backward", GENMOD_BOX(&genmod::norm_act_double_backward));
  m.impl("bias_act", GENMOD_BOX(&genmod::bias_act));
  m.impl("bias_act_backward", GENMOD_BOX(&genmod::bias_act_backward));
}
