// Tensors in, kernels on the current stream, tensors out: group norm in CUDA C++. The family's other ops have no
// kernels of this kind.
//
// They go to a library of their own, genmod_cuda, with the signatures of genmod's: which of Triton and these kernels
// serves a CUDA tensor is decided in genmod/backends.py.
#include <climits>
#include <tuple>
#include <vector>

#include "activation_name.h"
#include "cuda/norm_act.h"
#include "cuda_launch.h"
#include "tensors.h"

namespace genmod {
namespace cuda {
namespace {

using Result4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Maybe = std::optional<Tensor>;

// A parameter of `rows` x `channels` numbers as the kernel reads it. Returns what must stay alive.
Maybe set_parameter(NormParameter& p, const Maybe& given, const Dims& sizes, const Tensor& x,
                    const char* name) {
  if (!given) return std::nullopt;
  STD_TORCH_CHECK(given->is_cuda() && given->get_device_index() == x.get_device_index(), "genmod: ", name,
                  " must be on the device of x");
  STD_TORCH_CHECK(has_sizes(*given, sizes), "genmod: ", name, " must have a number for each channel",
                  sizes.size() > 1 ? " of each sample" : "");
  const View v(*given);
  const bool in_rows = sizes.back() < 2 || v.strides.back() == 1;
  Tensor dense = in_rows ? *given : torch::stable::contiguous(*given);
  p = {dense.const_data_ptr(), dtype_of(dense), sizes.size() > 1 ? (in_rows ? v.strides[0] : sizes[1]) : 0};
  return dense;
}

// `cluster` and `together` are those of cuda/norm_act.h: 0, or what a measurement wants.
Result4 group_norm_act_cut(const Tensor& x, const Maybe& residual, const Maybe& weight, const Maybe& bias,
                           const Maybe& scale, const Maybe& shift, int64_t num_groups, double eps,
                           const std::string& activation, double negative_slope, int64_t cluster, int64_t together) {
  STD_TORCH_CHECK(x.is_cuda(), "genmod: x must be on the GPU, as the other tensors are");
  const View view(x);
  STD_TORCH_CHECK(view.dim() >= 2, "genmod: expected a tensor [N, C, ...]");
  const int64_t samples = view.sizes[0], channels = view.sizes[1];
  STD_TORCH_CHECK(channels <= INT_MAX && num_groups > 0 && channels % num_groups == 0,
                  "genmod: the number of groups must divide that of the channels");
  STD_TORCH_CHECK(cluster >= -1 && cluster <= 16 && (cluster & (cluster - 1)) <= 0 && together >= 0 &&
                      together <= num_groups,
                  "genmod: a cluster is 1, 2, 4, 8 or 16 blocks");
  const MemoryFormat format = format_of(view);
  GroupNorm p{};
  p.dtype = dtype_of(x);
  p.activation = parse_activation(activation);
  p.eps = eps;
  p.negative_slope = negative_slope;
  p.samples = samples;
  p.channels = channels;
  p.space = 1;
  for (int64_t d = 2; d < view.dim(); d++) p.space *= view.sizes[d];
  p.groups = num_groups;
  p.channels_last = format != MemoryFormat::Contiguous || p.space == 1;
  p.cluster = (int)cluster;
  p.together = (int)together;

  const Tensor source = densified(x, format);
  p.x = source.const_data_ptr();
  Maybe r;
  const Tensor y = empty(view.sizes, x, x.scalar_type(), format);
  p.y = y.mutable_data_ptr();
  Tensor total = empty({0}, x, x.scalar_type());
  if (residual) {
    STD_TORCH_CHECK(has_sizes(*residual, view.sizes) && residual->scalar_type() == x.scalar_type() &&
                        residual->is_cuda() && residual->get_device_index() == x.get_device_index(),
                    "genmod: the residual must have the shape, dtype and device of x");
    r = densified(*residual, format);
    p.residual = r->const_data_ptr();
    total = empty(view.sizes, x, x.scalar_type(), format);
    p.total = total.mutable_data_ptr();
  }
  const Maybe alive[] = {
      set_parameter(p.weight, weight, {channels}, x, "weight"),
      set_parameter(p.bias, bias, {channels}, x, "bias"),
      set_parameter(p.scale, scale, {samples, channels}, x, "scale"),
      set_parameter(p.shift, shift, {samples, channels}, x, "shift"),
  };
  const ScalarType wide = accumulate_type(p.dtype);
  const Tensor mean = empty({samples, num_groups}, x, wide), rstd = empty({samples, num_groups}, x, wide);
  p.mean = mean.mutable_data_ptr();
  p.rstd = rstd.mutable_data_ptr();
  Maybe workspace;
  {
    const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
    if (const int64_t size = group_norm_workspace(p)) {
      workspace = empty({size}, x, wide);
      p.workspace = workspace->mutable_data_ptr();
    }
  }
  run(group_norm, p, x);
  return {y, total, mean, rstd};
}

Result4 group_norm_act(const Tensor& x, const Maybe& residual, const Maybe& weight, const Maybe& bias,
                       const Maybe& scale, const Maybe& shift, int64_t num_groups, double eps,
                       const std::string& activation, double negative_slope) {
  return group_norm_act_cut(x, residual, weight, bias, scale, shift, num_groups, eps, activation, negative_slope, 0, 0);
}

}  // namespace
}  // namespace cuda
}  // namespace genmod

STABLE_TORCH_LIBRARY_FRAGMENT(genmod_cuda, m) {
  m.def(
      "group_norm_act(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "int num_groups, float eps, str activation, float negative_slope) -> (Tensor, Tensor, Tensor, Tensor)");
  // The same for measurements, cut as they want it.
  m.def(
      "group_norm_act_cut(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "int num_groups, float eps, str activation, float negative_slope, int cluster, int together) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(genmod_cuda, CUDA, m) {
  m.impl("group_norm_act", GENMOD_BOX(&genmod::cuda::group_norm_act));
  m.impl("group_norm_act_cut", GENMOD_BOX(&genmod::cuda::group_norm_act_cut));
}
