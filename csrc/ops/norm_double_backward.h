// The family norm_act's second derivative, which csrc/ops/norm_act.cpp registers with its other ops.
#pragma once
#include <optional>
#include <string>
#include <tuple>

#include "tensors.h"

namespace genmod {

// `eps` is for the reference, which computes the statistics again.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_act_double_backward(
    const std::optional<Tensor>& to_x, const std::optional<Tensor>& to_weight, const std::optional<Tensor>& to_bias, const std::optional<Tensor>& to_scale,
    const std::optional<Tensor>& to_shift, const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, const Tensor& mean, const Tensor& rstd, const std::string& over, int64_t num_groups, double eps,
    const std::string& activation, double negative_slope, int64_t wanted);

}  // namespace genmod
