// What this build is, for `genmod doctor` and the choice of backends.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa.h"

namespace genmod {
namespace {

std::string instruction_set() { return isa_name(selected_isa()); }
bool cuda_built() {
#ifdef GENMOD_WITH_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY(genmod_native, m) {
  m.def("instruction_set() -> str");
  m.def("cuda_built() -> bool");
}
STABLE_TORCH_LIBRARY_IMPL(genmod_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&genmod::instruction_set));
  m.impl("cuda_built", TORCH_BOX(&genmod::cuda_built));
}
