// One or two Gaussians, from tensors to rows of memory.
#pragma once
#include "gaussian_types.h"
#include "tensors.h"

namespace genmod {

inline Clamp parse_clamp(const std::string& name) {
  if (name == "none") return Clamp::none;
  if (name == "hard") return Clamp::hard;
  STD_TORCH_CHECK(name == "soft", "genmod: clamp must be 'none', 'hard' or 'soft', got '", name, "'");
  return Clamp::soft;
}

// A mean and a logvar, from two tensors or from the halves of one.
struct Gaussian {
  View mean, logvar;
  bool packed;
  Dtype dtype;
  MemoryFormat format;  // of everything made from it
  int64_t numel;

  Gaussian(const Tensor& m, const std::optional<Tensor>& lv)
      : mean(lv ? View(m) : View::half(m, 0)),
        logvar(lv ? View(*lv) : View::half(m, 1)),
        packed(!lv),
        dtype(dtype_of(m)),
        format(format_of(mean)),
        numel(mean.numel()) {
    STD_TORCH_CHECK(mean.sizes == logvar.sizes, "genmod: mean and logvar must have one shape");
    STD_TORCH_CHECK(dtype_of(logvar.tensor) == dtype, "genmod: mean and logvar must have one dtype");
  }

  int64_t batch() const { return mean.sizes[0]; }
  int64_t event() const { return batch() ? numel / batch() : 0; }
};

// The second Gaussian of a divergence, if there is one.
inline std::optional<Gaussian> second_gaussian(const Gaussian& first, const std::optional<Tensor>& mean,
                                               const std::optional<Tensor>& logvar) {
  if (!mean) return std::nullopt;
  Gaussian second(*mean, logvar);
  STD_TORCH_CHECK(second.mean.sizes == first.mean.sizes && second.dtype == first.dtype,
                  "genmod: both Gaussians must have one shape and dtype");
  second.format = first.format;  // one memory order for all that is read and written
  return second;
}

// Hands the inputs of one or two Gaussians, cut into common rows, to a kernel's parameters; the result keeps alive
// whatever had to be copied for that.
template <class Params>
CommonRows set_inputs(Params& p, const Gaussian& g, const std::optional<Gaussian>& other = std::nullopt) {
  std::vector<View> views{g.mean, g.logvar};
  if (other) {
    views.push_back(other->mean);
    views.push_back(other->logvar);
  }
  CommonRows rows(std::move(views), g.format, g.numel);
  p.dtype = g.dtype;
  p.numel = g.numel;
  p.cols = rows.cols;
  p.mean = rows.rows[0];
  p.logvar = rows.rows[1];
  if (other) {
    p.other_mean = rows.rows[2];
    p.other_logvar = rows.rows[3];
  }
  return rows;
}

// Where a gradient pair is written: two dense tensors, or the halves of one. A gradient not wanted is an empty tensor.
struct GaussianGrad {
  Tensor first, second;
  void *mean = nullptr, *logvar = nullptr;  // null: not wanted
  int64_t cols, stride;

  GaussianGrad(const Gaussian& g, bool want_mean, bool want_logvar) : cols(g.numel), stride(g.numel) {
    const Tensor& like = g.mean.tensor;
    const ScalarType type = like.scalar_type();
    const auto make = [&](bool want) { return want ? empty(g.mean.sizes, like, type, g.format) : empty({0}, like, type); };
    if (!g.packed) {
      first = make(want_mean);
      second = make(want_logvar);
      if (want_mean) mean = first.mutable_data_ptr();
      if (want_logvar) logvar = second.mutable_data_ptr();
      return;
    }
    first = want_mean ? empty(like.sizes(), like, type, g.format) : empty({0}, like, type);
    second = empty({0}, like, type);
    if (want_mean) {
      const View half = View::half(first, 1);
      const Cut cut = collapse(half, g.format);
      mean = first.mutable_data_ptr();
      logvar = (char*)mean + half.offset() * item_size(g.dtype);
      cols = cut.cols;
      stride = cut.stride;
    }
  }
};

}  // namespace genmod
