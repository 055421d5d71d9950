// The activations that kernels apply inside, on any device; see genmod/reference/activation.py.
#pragma once

namespace genmod {

enum class Activation : int { identity, relu, leaky_relu, silu, gelu, tanh, sigmoid };

}  // namespace genmod
