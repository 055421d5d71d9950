// Tensors in, raw pointers to the kernels, tensors out: the family's dispatcher ops on the CPU.
// Schemas, fakes and autograd are in genmod/ops/reconstruction.py; arguments were checked there too.
#include "cpu/reconstruction.h"

#include "chunks.h"
#include "loss.h"

#include <limits>
#include <tuple>

namespace genmod {
namespace {

Kind parse_kind(const std::string& name) {
  if (name == "bernoulli") return Kind::bernoulli;
  if (name == "gaussian") return Kind::gaussian;
  if (name == "laplace") return Kind::laplace;
  if (name == "discretized_logistic") return Kind::discretized_logistic;
  if (name == "mse") return Kind::mse;
  STD_TORCH_CHECK(name == "l1", "genmod: unknown kind of reconstruction loss '", name, "'");
  return Kind::l1;
}

bool has_scale(Kind kind) { return kind == Kind::gaussian || kind == Kind::laplace || kind == Kind::discretized_logistic; }

// Floating point as everywhere, and masks besides.
Dtype stored_as(const Tensor& t) { return t.scalar_type() == ScalarType::Bool ? Dtype::u8 : dtype_of(t); }

// The inputs, cut into common rows; keeps alive whatever had to be copied for that.
struct Inputs {
  View view;  // of the output, or of the half of a packed one that is the mean
  bool packed;
  MemoryFormat format;
  std::optional<CommonRows> rows;

  Inputs(Reconstruction& p, const Tensor& output, const Tensor& target, const std::optional<Tensor>& log_scale, const std::optional<Tensor>& weight,
         const std::string& kind, bool packed, double fixed, std::optional<double> min_log_scale, int64_t bins)
      : view(packed ? View::half(output, 0) : View(output)), packed(packed), format(format_of(view)) {
    const bool per_element = packed || (log_scale && log_scale->dim() > 0);
    std::vector<View> views{view, View(target)};
    if (per_element) views.push_back(packed ? View::half(output, 1) : View(*log_scale));
    if (weight) views.push_back(View(*weight));
    for (const View& v : views) STD_TORCH_CHECK(v.sizes == view.sizes, "genmod: target, log_scale and weight must have the output's shape");
    p.kind = parse_kind(kind);
    p.wide = dtype_of(output) == Dtype::f64;
    p.numel = view.numel();
    rows.emplace(std::move(views), format, p.numel);
    p.cols = rows->cols;
    const auto input = [&](size_t i) { return Input{stored_as(rows->views[i].tensor), rows->rows[i]}; };
    p.output = input(0);
    p.target = input(1);
    p.log_scale = per_element ? input(2) : log_scale ? Input{dtype_of(*log_scale), {log_scale->const_data_ptr(), 0}} : Input{};
    p.weight = weight ? input(rows->views.size() - 1) : Input{};
    p.one_log_scale = !per_element;
    p.fixed = fixed;
    p.min_log_scale = min_log_scale.value_or(-std::numeric_limits<double>::infinity());
    if (!has_scale(p.kind)) STD_TORCH_CHECK(!packed && !log_scale, "genmod: this kind of reconstruction loss has no scale");
    p.half = bins > 1 ? 1. / (double)(bins - 1) : 0;
  }
};

Tensor reconstruction(const Tensor& output, const Tensor& target, const std::optional<Tensor>& log_scale, const std::optional<Tensor>& weight, const std::string& kind,
                      bool packed, double fixed, std::optional<double> min_log_scale, int64_t bins, const std::string& reduction) {
  ReconstructionForward p{};
  const Inputs in(p, output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins);
  Loss loss(in.view, in.format, reduction);
  p.values = loss.elements;
  p.sums = loss.sums_or_null();
  p.sample = loss.sample;
  run(GENMOD_SELECT(reconstruction_kernels).forward, p);
  loss.finish();
  return loss.out;
}

std::tuple<Tensor, Tensor> reconstruction_backward(const Tensor& grad, const Tensor& output, const Tensor& target, const std::optional<Tensor>& log_scale,
                                                   const std::optional<Tensor>& weight, const std::string& kind, bool packed, double fixed,
                                                   std::optional<double> min_log_scale, int64_t bins, const std::string& reduction, int64_t wanted) {
  ReconstructionBackward p{};
  const Inputs in(p, output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins);
  const LossGrad incoming(grad, in.view, in.format, reduction);
  p.grad = incoming.dense.const_data_ptr();
  p.grad_per_element = incoming.reduction.per_element;
  p.sample = incoming.sample;
  p.scale = incoming.reduction.scale;

  const bool want_output = wanted & 1, want_log_scale = (wanted & 2) && log_scale;
  const std::vector<int64_t> none{0};
  Tensor d_output = empty(want_output ? output.sizes().vec() : none, output, output.scalar_type(), want_output ? in.format : MemoryFormat::Contiguous);
  Tensor d_log_scale = want_log_scale ? empty(log_scale->sizes().vec(), *log_scale, log_scale->scalar_type(), log_scale->dim() ? in.format : MemoryFormat::Contiguous)
                                      : empty(none, output, output.scalar_type());
  p.out_cols = p.numel;
  const Dtype dtype = dtype_of(output);
  std::vector<double> sums;
  if (want_output) {
    p.d_output = {dtype, d_output.mutable_data_ptr(), p.numel};
    if (packed) {
      const View half = View::half(d_output, 1);
      const Cut cut = collapse(half, in.format);
      p.out_cols = cut.cols;
      p.d_output.stride = cut.stride;
      p.d_log_scale = {dtype, (char*)p.d_output.data + half.offset() * item_size(dtype), cut.stride};
    }
  }
  const bool want_sum = want_log_scale && !log_scale->dim();
  if (want_log_scale && !want_sum) p.d_log_scale = {dtype_of(*log_scale), d_log_scale.mutable_data_ptr(), p.numel};
  if (want_sum) {
    sums.assign((size_t)chunk_count(p.numel), 0.0);
    p.log_scale_sums = sums.data();
  }
  run(GENMOD_SELECT(reconstruction_kernels).backward, p);
  if (want_sum) {
    double total = 0;
    for (double s : sums) total += s;
    torch::stable::fill_(d_log_scale, total);
  }
  return {d_output, d_log_scale};
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("reconstruction", TORCH_BOX(&genmod::reconstruction));
  m.impl("reconstruction_backward", TORCH_BOX(&genmod::reconstruction_backward));
}
