// A reduced loss: its output with the sums behind it, and the gradient that comes back to it.
#pragma once
#include "cpu/chunks.h"
#include "tensors.h"

namespace genmod {

// The output of a loss over elements laid out as `like`. A kernel writes `elements`, or adds to `sums` (see
// cpu/reduce.h) in samples of `sample` elements.
struct Loss {
  Reduction reduction;
  Tensor out;
  std::vector<double> sums;
  int64_t numel, samples, sample = 0;
  Dtype dtype;
  void* elements = nullptr;

  Loss(const View& like, MemoryFormat format, const std::string& name)
      : reduction(name, like.sizes[0], like.numel()), numel(like.numel()), samples(reduction.per_sample ? like.sizes[0] : 1), dtype(dtype_of(like.tensor)) {
    const ScalarType type = accumulate_type(dtype);
    if (reduction.per_element) {
      out = empty(like.sizes, like.tensor, type, format);
      elements = out.mutable_data_ptr();
      return;
    }
    out = empty(reduction.per_sample ? Dims{samples} : Dims{}, like.tensor, type);
    sample = samples ? numel / samples : 0;
    sums.assign((size_t)(chunk_count(numel) + samples), 0.0);
  }

  double* sums_or_null() { return reduction.per_element ? nullptr : sums.data(); }

  // Adds each sample's shares in chunk order.
  void finish() {
    if (reduction.per_element) return;
    void* data = out.mutable_data_ptr();
    for (int64_t s = 0; s < samples; s++) {
      double total = 0;
      if (numel > 0)
        for (int64_t c = s * sample / kChunk; c <= ((s + 1) * sample - 1) / kChunk; c++) total += sums[(size_t)(c + s)];
      total *= reduction.scale;
      if (dtype == Dtype::f64) ((double*)data)[s] = total;
      else ((float*)data)[s] = (float)total;
    }
  }
};

// The incoming gradient of such a loss, in the layout and type that kernels read.
struct LossGrad {
  Reduction reduction;
  Tensor dense;
  int64_t sample;

  LossGrad(const Tensor& grad, const View& like, MemoryFormat format, const std::string& name)
      : reduction(name, like.sizes[0], like.numel()), dense(densified(grad, reduction.per_element ? format : MemoryFormat::Contiguous)) {
    STD_TORCH_CHECK(reduction.per_element ? has_sizes(grad, like.sizes) : grad.numel() == (reduction.per_sample ? like.sizes[0] : 1),
                    "genmod: the gradient of a loss must have its shape");
    STD_TORCH_CHECK(grad.scalar_type() == accumulate_type(dtype_of(like.tensor)), "genmod: the gradient of a loss is float32 (float64 for float64 inputs)");
    sample = reduction.per_sample && like.sizes[0] ? like.numel() / like.sizes[0] : like.numel();
  }
};

}  // namespace genmod
