// The activation of a name.
#pragma once
#include <torch/csrc/stable/library.h>

#include <string>

#include "activation_types.h"

namespace genmod {

inline Activation parse_activation(const std::string& name) {
  const char* names[] = {"identity", "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"};
  for (int i = 0; i < 7; i++)
    if (name == names[i]) return (Activation)i;
  STD_TORCH_CHECK(false, "genmod: unknown activation '", name, "'");
}

}  // namespace genmod
