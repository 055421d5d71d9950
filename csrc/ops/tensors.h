// From tensors to rows of memory, through LibTorch's stable ABI. Only this folder sees tensors.
// The rules are those of genmod/layout.py, where they are explained; opcheck holds the two together.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "box.h"
#include "dims.h"
#include "huge_pages.h"
#include "types.h"

namespace genmod {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::Double: return Dtype::f64;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, "genmod: expected a float32, float64, bfloat16 or float16 tensor");
  }
}

inline int64_t item_size(Dtype d) { return d == Dtype::f64 ? 8 : d == Dtype::f32 ? 4 : d == Dtype::u8 ? 1 : 2; }

// Sums are returned in float32, in float64 for float64 inputs.
inline ScalarType accumulate_type(Dtype d) { return d == Dtype::f64 ? ScalarType::Double : ScalarType::Float; }

inline bool has_sizes(const Tensor& t, const Dims& sizes) { return Dims(t.sizes()) == sizes; }

// A tensor's geometry, or one half of a packed [B, 2C, ...] tensor's, without making a view of it.
struct View {
  Tensor tensor;
  Dims sizes, strides;
  int64_t first_channel = 0;

  explicit View(const Tensor& t) : tensor(t), sizes(t.sizes()), strides(t.strides()) {
    STD_TORCH_CHECK(!sizes.empty(), "genmod: expected a tensor of at least one dimension");
  }
  static View half(const Tensor& packed, int index) {
    View v(packed);
    STD_TORCH_CHECK(packed.dim() >= 2 && packed.size(1) % 2 == 0, "genmod: a packed tensor is [B, 2C, ...], mean first");
    v.sizes[1] /= 2;
    v.first_channel = index * v.sizes[1];
    return v;
  }

  int64_t dim() const { return (int64_t)sizes.size(); }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : sizes) n *= s;
    return n;
  }
  int64_t offset() const { return first_channel ? first_channel * strides[1] : 0; }
  const void* data() const { return (const char*)tensor.const_data_ptr() + offset() * (int64_t)tensor.element_size(); }
};

// Element number i of the format's order lies at (i / cols) * stride + i % cols.
struct Cut {
  bool ok;
  int64_t cols, stride;
};

inline Cut collapse(const View& v, MemoryFormat f) {
  int64_t cols = 1, stride = 0, expected = 1;
  bool cut = false;
  const int64_t last = v.dim() - 1;
  for (int64_t k = last; k >= 0; k--) {
    // channels_last order is batch, space, channel; the loop runs it backwards
    const int64_t d = f == MemoryFormat::Contiguous || k == 0 ? k : k == last ? 1 : k + 1;
    const int64_t size = v.sizes[d], step = v.strides[d];
    if (step != expected && size != 1) {
      if (cut || (step == 0 && expected == 1)) return {false, 0, 0};
      cut = true;
      cols = expected;
      stride = expected = step;
    }
    // Strides of an empty tensor may be anything.
    if (__builtin_mul_overflow(expected, size, &expected)) return {false, 0, 0};
  }
  if (cut) return {true, cols, stride};
  return {true, expected, expected};
}

inline MemoryFormat format_of(const View& mean) {
  if (mean.dim() != 4 && mean.dim() != 5) return MemoryFormat::Contiguous;
  const MemoryFormat last = mean.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
  bool event_contiguous = true;
  int64_t expected = 1;
  for (int64_t d = mean.dim() - 1; d >= 1; d--) {
    event_contiguous = event_contiguous && (mean.sizes[d] == 1 || mean.strides[d] == expected);
    expected *= mean.sizes[d];
  }
  return event_contiguous || !collapse(mean, last).ok ? MemoryFormat::Contiguous : last;
}

// `t` itself when it lies densely in format `f`, else a copy that does.
inline Tensor densified(const Tensor& t, MemoryFormat f) {
  if (t.dim() == 0) return t;
  const View v(t);
  const Cut c = collapse(v, f);
  return c.ok && c.cols == v.numel() ? t : torch::stable::contiguous(t, f);
}

// The strides of a dense tensor in a memory format, as PyTorch sets them.
inline Dims strides_of(const Dims& sizes, MemoryFormat f) {
  Dims strides = sizes;
  const int64_t last = (int64_t)sizes.size() - 1;
  int64_t step = 1;
  if (f == MemoryFormat::Contiguous) {
    for (int64_t d = last; d >= 0; d--) {
      strides[d] = step;
      step *= std::max<int64_t>(sizes[d], 1);
    }
    return strides;
  }
  strides[1] = step;
  step *= sizes[1];
  for (int64_t d = last; d >= 0; d--) {
    if (d == 1) continue;
    strides[d] = step;
    step *= sizes[d];
  }
  return strides;
}

inline Tensor empty(const Dims& sizes, const Tensor& like, ScalarType type, MemoryFormat f = MemoryFormat::Contiguous) {
  // Not torch::stable::new_empty, which goes by way of the dispatcher, and that by the op's name: it takes longer than a
  // small kernel.
  int32_t device, index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided((int64_t)sizes.size(), sizes.data(), strides_of(sizes, f).data(), dtype, device, index, &made));
  Tensor out(made);
  if (device == aoti_torch_device_type_cpu()) {
    const int64_t size = type == ScalarType::Bool ? 1 : item_size(dtype_of(out));
    ask_for_huge_pages(out.mutable_data_ptr(), (size_t)(out.numel() * size));
  }
  return out;
}

// One common cut of several tensors into rows. The first that is not dense decides `cols`; one that does not fit is
// replaced by a dense copy.
struct CommonRows {
  int64_t cols;
  std::vector<View> views;
  std::vector<Rows> rows;

  CommonRows(std::vector<View> inputs, MemoryFormat f, int64_t numel) : cols(numel), views(std::move(inputs)) {
    std::vector<Cut> cuts;
    for (const View& v : views) {
      cuts.push_back(collapse(v, f));
      if (cols == numel && cuts.back().ok && cuts.back().cols != numel) cols = cuts.back().cols;
    }
    for (size_t i = 0; i < views.size(); i++) {
      if (numel == 0) cuts[i] = {true, 0, 0};
      if (!cuts[i].ok || (cuts[i].cols != cols && cuts[i].cols != numel)) {
        View& v = views[i];
        const bool half = v.sizes != Dims(v.tensor.sizes());
        v = View(torch::stable::contiguous(half ? torch::stable::narrow(v.tensor, 1, v.first_channel, v.sizes[1]) : v.tensor, f));
        cuts[i] = {true, numel, numel};
      }
      rows.push_back({views[i].data(), cuts[i].cols == numel ? cols : cuts[i].stride});
    }
  }
};

// How a loss is summed: into elements (`per_element`), one value per sample, or one value; `scale` is applied at the end.
struct Reduction {
  bool per_element, per_sample;
  double scale;

  Reduction(const std::string& name, int64_t batch, int64_t numel) : per_element(name == "none"), per_sample(name == "batch"), scale(1) {
    if (name == "batchmean") scale = 1. / (double)(batch > 0 ? batch : 1);
    else if (name == "mean") scale = 1. / (double)(numel > 0 ? numel : 1);
    else STD_TORCH_CHECK(per_element || per_sample || name == "sum", "genmod: reduction must be 'none', 'batch', 'batchmean', 'mean' or 'sum', got '", name, "'");
  }
};

}  // namespace genmod
