// Tensors in, raw pointers to the kernels, tensors out: the family's dispatcher ops on the CPU.
// Schemas, fakes and autograd are in genmod/ops/critic.py; arguments were checked there too.
#include "cpu/critic.h"

#include <tuple>

#include "chunks.h"
#include "tensors.h"

namespace genmod {
namespace {

// What both ops do once it is known where the mask lies and in which memory format.
Tensor leaky_relu(const Tensor& x, const Tensor& mask, MemoryFormat format, double slope, void (*kernel)(const LeakyRelu&, int64_t, int64_t)) {
  const View view(x);
  LeakyRelu p{};
  p.dtype = dtype_of(x);
  p.slope = slope;
  p.numel = view.numel();
  const CommonRows rows({view}, format, p.numel);
  p.cols = rows.cols;
  p.x = rows.rows[0];
  p.mask = (uint8_t*)mask.const_data_ptr();  // written by the kernel only where it was made for that
  Tensor y = empty(view.sizes, x, x.scalar_type(), format);
  p.y = y.mutable_data_ptr();
  run(kernel, p);
  return y;
}

std::tuple<Tensor, Tensor> leaky_relu_mask(const Tensor& x, double negative_slope) {
  const View view(x);
  const MemoryFormat format = format_of(view);
  Tensor mask = empty(view.sizes, x, ScalarType::Bool, format);
  return {leaky_relu(x, mask, format, negative_slope, GENMOD_SELECT(critic_kernels).mask), mask};
}

Tensor leaky_relu_apply(const Tensor& x, const Tensor& mask, double negative_slope) {
  const View view(mask);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool && view.sizes == View(x).sizes, "genmod: mask must be a bool tensor of the shape of x");
  const MemoryFormat format = format_of(view);
  return leaky_relu(x, densified(mask, format), format, negative_slope, GENMOD_SELECT(critic_kernels).apply);
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("leaky_relu_mask", GENMOD_BOX(&genmod::leaky_relu_mask));
  m.impl("leaky_relu_apply", GENMOD_BOX(&genmod::leaky_relu_apply));
}
