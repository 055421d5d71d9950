// The family norm_act's tensors: what is normalised and over what, its parameters, and the way through its blocks.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "activation_name.h"
#include "cpu/norm_statistics.h"
#include "tensors.h"

namespace genmod {
namespace {

// Parameters and statistics are short: plain loops here, and the dispatcher's conversion for half precision only.
std::vector<double> in_double(const std::optional<Tensor>& t, const Dims& sizes) {
  if (!t) return {};
  STD_TORCH_CHECK(has_sizes(*t, sizes), "genmod: expected a parameter or statistic of rank ", sizes.size(), ", one number per channel or group (and sample), got one of rank ", t->dim(), " and ", t->numel(), " numbers");
  const ScalarType type = t->scalar_type();
  const bool full = type == ScalarType::Float || type == ScalarType::Double;
  const Tensor dense = densified(full ? *t : torch::stable::to(*t, ScalarType::Float), MemoryFormat::Contiguous);
  std::vector<double> out((size_t)dense.numel());
  const void* data = dense.const_data_ptr();
  for (size_t i = 0; i < out.size(); i++) out[i] = type == ScalarType::Double ? ((const double*)data)[i] : (double)((const float*)data)[i];
  return out;
}

Tensor from_double(const std::vector<double>& values, const Dims& sizes, const Tensor& like, ScalarType type) {
  const bool wide = type == ScalarType::Double;
  Tensor out = empty(sizes, like, wide ? type : ScalarType::Float);
  void* data = out.mutable_data_ptr();
  for (size_t i = 0; i < values.size(); i++) {
    if (wide) ((double*)data)[i] = values[i];
    else ((float*)data)[i] = (float)values[i];
  }
  return wide || type == ScalarType::Float ? out : torch::stable::to(out, type);
}

// What statistics are taken over.
enum class Over { group, batch, nothing };

// Below this many elements to a channel of a sample, its row is too short for a loop of its own.
constexpr int64_t kShortRow = 64, kShortRowOfGroup = 16;
// Elements of a group's channels that are summed up together, since each sum has its price at the end.
constexpr int64_t kBundle = 2048;

// A dense input, and how the work on it is cut.
struct NormInput {
  Dtype dtype;
  MemoryFormat format;
  Tensor x;
  Dims sizes;
  NormCut cut{};

  NormInput(const Tensor& given, Over over, int64_t groups) : dtype(dtype_of(given)), format(format_of(View(given))), x(densified(given, format)), sizes(given.sizes()) {
    STD_TORCH_CHECK(sizes.size() >= 2, "genmod: expected a tensor [N, C, ...]");
    const int64_t samples = sizes[0], channels = sizes[1];
    STD_TORCH_CHECK(groups > 0 && channels % groups == 0, "genmod: the number of groups must divide that of the channels");
    int64_t space = 1;
    for (size_t d = 2; d < sizes.size(); d++) space *= sizes[d];
    const bool last = format != MemoryFormat::Contiguous, group = over == Over::group;
    cut.channels = channels;
    cut.space = space;
    cut.over_batch = over == Over::batch;
    cut.in_rows = last || space < (group ? kShortRowOfGroup : kShortRow);
    if (cut.in_rows) {
      cut.blocks = group ? samples : 1;
      cut.statistics = group ? groups : channels;
      cut.statistic_channels = group ? channels / groups : 1;
      cut.spread = last ? 1 : space;
      cut.lanes = channels * cut.spread;
      cut.rows = (last ? space : 1) * (group ? 1 : samples);
      cut.piece_rows = cut.lanes > 0 ? std::max(kPiece / cut.lanes, rows_at_least(cut.lanes)) : 1;
      cut.pieces = cut.lanes > 0 ? (cut.rows + cut.piece_rows - 1) / cut.piece_rows : 0;
    } else {
      cut.statistics = 1;
      cut.statistic_channels = group ? channels / groups : 1;
      cut.channel_pieces = (space + kPiece - 1) / kPiece;
      cut.blocks = group ? samples * groups : over == Over::batch ? channels : samples * channels;
      cut.pieces = cut.channel_pieces * (group ? cut.statistic_channels : over == Over::batch ? samples : 1);
      if (group && space < kBundle) cut.bundle = kBundle / space;
    }
  }

  int64_t numel() const { return cut.channels * cut.space * sizes[0]; }
  Tensor like_x(bool wanted = true) const { return wanted ? empty(sizes, x, x.scalar_type(), format) : empty({0}, x, x.scalar_type()); }
  ScalarType wide() const { return accumulate_type(dtype); }

  // Another tensor of x's shape and dtype, as dense as x.
  Tensor alike(const Tensor& t) const {
    STD_TORCH_CHECK(has_sizes(t, sizes) && dtype_of(t) == dtype, "genmod: tensors that go together must have one shape and dtype");
    return densified(t, format);
  }
};

// Goes through all blocks by steps that alternate: over pieces [first, last), then over a block that these have made, and so
// on. A thread takes whole blocks, which stay in its cache, unless there are too few of them to keep all threads busy.
template <class... Steps> void through_blocks(const NormCut& cut, int64_t numel, Steps&&... steps) {
  constexpr int64_t kGrain = 2 * kPiece;  // elements a thread takes at least
  const int64_t threads = torch::stable::get_num_threads(), bundles = cut.blocks * cut.bundles();
  const auto each = [&](auto&& pieces, auto&& block) {
    const auto take = [&](auto& f) {
      if constexpr (std::is_invocable_v<decltype(f), int64_t, int64_t>) pieces(f);
      else block(f);
    };
    (take(steps), ...);
  };
  const auto whole = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++)
      each([&](auto& f) { f(b * cut.pieces, (b + 1) * cut.pieces); }, [&](auto& f) { f(b); });
  };
  const auto all_blocks = [&](auto& f) {
    for (int64_t b = 0; b < cut.blocks; b++) f(b);
  };
  const auto grain = [&](int64_t items) { return 1 + kGrain * items / numel; };
  if (numel == 0) return each([](auto&) {}, all_blocks);
  if (numel <= kGrain || threads == 1) return whole(0, cut.blocks);
  if (cut.blocks >= 8 * threads || cut.blocks % threads == 0) return torch::stable::parallel_for(0, cut.blocks, grain(cut.blocks), whole);
  each([&](auto& f) { torch::stable::parallel_for(0, bundles, grain(bundles), [&](int64_t begin, int64_t end) { f(cut.first_piece(begin), cut.first_piece(end)); }); },
       all_blocks);
}

NormParameters parameters(const NormInput& in, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& scale = std::nullopt, const std::optional<Tensor>& shift = std::nullopt) {
  const Dims channels{in.cut.channels}, each{in.sizes[0], in.cut.channels};
  return {in_double(weight, channels), in_double(bias, channels), in_double(scale, each), in_double(shift, each)};
}

template <class Params> void set_shared(Params& p, const NormInput& in, NormCoefficients& k, const std::string& activation, double negative_slope) {
  p.dtype = in.dtype;
  p.cut = in.cut;
  p.activation = parse_activation(activation);
  p.negative_slope = negative_slope;
  p.gain = 1;
  p.clamp = std::numeric_limits<double>::infinity();
  p.x = in.x.const_data_ptr();
  k.lend(p);
}

std::vector<double> rstd_of(const std::vector<double>& variance, double eps) {
  std::vector<double> rstd;
  for (double v : variance) rstd.push_back(1 / std::sqrt(v + eps));
  return rstd;
}

Tensor gradient(const std::vector<double>& values, const std::optional<Tensor>& like, const Tensor& x, bool wanted) {
  if (!like || !wanted) return empty({0}, x, x.scalar_type());
  return from_double(values, like->sizes(), x, like->scalar_type());
}

}  // namespace
}  // namespace genmod
