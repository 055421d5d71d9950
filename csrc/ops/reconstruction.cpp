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

// Floating point as everywhere, and masks besides.
Dtype stored_as(const Tensor& t) { return t.scalar_type() == ScalarType::Bool ? Dtype::u8 : dtype_of(t); }

// The inputs, cut into common rows; keeps alive whatever had to be copied for that.
struct Inputs {
  View view;  // of the output, or of the half of a packed one that is the mean
  bool packed;
  MemoryFormat format;
  bool per_element;  // whether there is a log-scale for each element
  std::optional<CommonRows> rows;

  // `further` tensors that lie as the output do follow in the rows, from `input(rows->views.size() - further.size())` on.
  Inputs(Reconstruction& p, const Tensor& output, const Tensor& target, const std::optional<Tensor>& log_scale, const std::optional<Tensor>& weight,
         const std::string& kind, bool packed, double fixed, std::optional<double> min_log_scale, int64_t bins, const std::vector<View>& further = {})
      : view(packed ? View::half(output, 0) : View(output)), packed(packed), format(format_of(view)), per_element(packed || (log_scale && log_scale->dim() > 0)) {
    STD_TORCH_CHECK(!(packed && log_scale), "genmod: a packed output holds its log-scale");
    std::vector<View> views{view, View(target)};
    if (per_element) views.push_back(packed ? View::half(output, 1) : View(*log_scale));
    if (weight) views.push_back(View(*weight));
    views.insert(views.end(), further.begin(), further.end());
    for (const View& v : views) STD_TORCH_CHECK(v.sizes == view.sizes, "genmod: target, log_scale, weight and their gradients must have the output's shape");
    p.kind = parse_kind(kind);
    p.wide = dtype_of(output) == Dtype::f64;
    p.numel = view.numel();
    rows.emplace(std::move(views), format, p.numel);
    p.cols = rows->cols;
    p.output = input(0);
    p.target = input(1);
    p.log_scale = per_element ? input(2) : log_scale ? Input{dtype_of(*log_scale), {log_scale->const_data_ptr(), 0}} : Input{};
    p.weight = weight ? input(per_element ? 3 : 2) : Input{};
    p.one_log_scale = !per_element;
    p.fixed = fixed;
    p.min_log_scale = min_log_scale.value_or(-std::numeric_limits<double>::infinity());
    if (!has_scale(p.kind)) STD_TORCH_CHECK(!packed && !log_scale, "genmod: this kind of reconstruction loss has no scale");
    p.half = bins > 1 ? 1. / (double)(bins - 1) : 0;
  }

  Input input(size_t i) const { return {stored_as(rows->views[i].tensor), rows->rows[i]}; }
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

// Where the gradients of output and log-scale are written; one that is not wanted is an empty tensor.
struct Gradients {
  Tensor output, log_scale;
  bool want_sum;
  std::vector<double> sums;  // per chunk, of a single log-scale's gradient

  Gradients(ReconstructionBackward& p, const Inputs& in, const Tensor& like, const std::optional<Tensor>& scale, int64_t wanted)
      : output(make(like, wanted & 1, in.format)),
        log_scale(scale && (wanted & 2) ? make(*scale, true, in.format) : make(like, false, in.format)),
        want_sum((wanted & 2) && scale && !scale->dim()) {
    const Dtype dtype = dtype_of(like);
    p.out_cols = p.numel;
    if (wanted & 1) p.d_output = {dtype, output.mutable_data_ptr(), p.numel};
    if ((wanted & 1) && in.packed) {
      const View half = View::half(output, 1);
      const Cut cut = collapse(half, in.format);
      p.out_cols = cut.cols;
      p.d_output.stride = cut.stride;
      p.d_log_scale = {dtype, (char*)p.d_output.data + half.offset() * item_size(dtype), cut.stride};
    }
    if (want_sum) {
      sums.assign((size_t)chunk_count(p.numel), 0.0);
      p.log_scale_sums = sums.data();
    } else if ((wanted & 2) && scale) {
      p.d_log_scale = {dtype_of(*scale), log_scale.mutable_data_ptr(), p.numel};
    }
  }

  void finish() {
    if (!want_sum) return;
    double total = 0;
    for (double s : sums) total += s;
    torch::stable::fill_(log_scale, total);
  }

  static Tensor make(const Tensor& like, bool wanted, MemoryFormat format) {
    if (!wanted) return empty({0}, like, like.scalar_type());
    return empty(like.sizes(), like, like.scalar_type(), like.dim() ? format : MemoryFormat::Contiguous);
  }
};

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
  Gradients gradients(p, in, output, log_scale, wanted);
  run(GENMOD_SELECT(reconstruction_kernels).backward, p);
  gradients.finish();
  return {gradients.output, gradients.log_scale};
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_with_gradient(const Tensor& output, const Tensor& target, const std::optional<Tensor>& log_scale,
                                                                const std::optional<Tensor>& weight, const std::string& kind, bool packed, double fixed,
                                                                std::optional<double> min_log_scale, int64_t bins, const std::string& reduction, int64_t wanted) {
  ReconstructionBackward p{};
  const Inputs in(p, output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins);
  Loss loss(in.view, in.format, reduction);
  STD_TORCH_CHECK(!loss.reduction.per_element && !loss.reduction.per_sample, "genmod: one pass for loss and gradient needs a loss that is one number");
  const float one = 1;
  const double one_wide = 1;
  p.grad = p.wide ? (const void*)&one_wide : &one;
  p.sample = loss.sample;
  p.scale = loss.reduction.scale;
  p.sums = loss.sums_or_null();
  Gradients gradients(p, in, output, log_scale, wanted);
  run(GENMOD_SELECT(reconstruction_kernels).backward, p);
  gradients.finish();
  loss.finish();
  return {loss.out, gradients.output, gradients.log_scale};
}

// What arrives at the gradient of a single log-scale, or nothing.
Input single(const std::optional<Tensor>& t) {
  if (!t) return {};
  STD_TORCH_CHECK(t->numel() == 1, "genmod: the gradient of a single log-scale is one number");
  return {dtype_of(*t), {t->const_data_ptr(), 0}};
}

std::tuple<Tensor, Tensor, Tensor> reconstruction_double_backward(const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_log_scale, const Tensor& grad,
                                                                  const Tensor& output, const Tensor& target, const std::optional<Tensor>& log_scale,
                                                                  const std::optional<Tensor>& weight, const std::string& kind, bool packed, double fixed,
                                                                  std::optional<double> min_log_scale, int64_t bins, const std::string& reduction, int64_t wanted) {
  ReconstructionDoubleBackward p{};
  const bool by_element = log_scale && log_scale->dim() > 0;
  std::vector<View> arriving;
  if (grad_output) arriving.push_back(packed ? View::half(*grad_output, 0) : View(*grad_output));
  if (packed && grad_output) arriving.push_back(View::half(*grad_output, 1));
  if (by_element && grad_log_scale) arriving.push_back(View(*grad_log_scale));
  const Inputs in(p, output, target, log_scale, weight, kind, packed, fixed, min_log_scale, bins, arriving);
  size_t next = in.rows->views.size() - arriving.size();
  if (grad_output) p.by_output = in.input(next++);
  if (next < in.rows->views.size()) p.by_log_scale = in.input(next);
  else if (!in.per_element && log_scale) p.by_log_scale = single(grad_log_scale);

  const LossGrad incoming(grad, in.view, in.format, reduction);
  p.grad = incoming.dense.const_data_ptr();
  p.grad_per_element = incoming.reduction.per_element;
  p.sample = incoming.sample;
  p.scale = incoming.reduction.scale;
  Gradients gradients(p, in, output, log_scale, wanted >> 1);
  std::optional<Loss> of_grad;
  if (wanted & 1) {
    of_grad.emplace(in.view, in.format, reduction);
    p.grad_values = of_grad->elements;
    p.sums = of_grad->sums_or_null();
  }
  run(GENMOD_SELECT(reconstruction_kernels).double_backward, p);
  gradients.finish();
  if (of_grad) of_grad->finish();
  return {of_grad ? of_grad->out : Gradients::make(grad, false, in.format), gradients.output, gradients.log_scale};
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("reconstruction", GENMOD_BOX(&genmod::reconstruction));
  m.impl("reconstruction_backward", GENMOD_BOX(&genmod::reconstruction_backward));
  m.impl("reconstruction_double_backward", GENMOD_BOX(&genmod::reconstruction_double_backward));
  m.impl("reconstruction_with_gradient", GENMOD_BOX(&genmod::reconstruction_with_gradient));
}
