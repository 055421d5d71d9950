// What an adversarial kernel is told besides, on any device.
#pragma once
#include "types.h"

namespace genmod {

// The function of a logit that a loss averages; see genmod/reference/adversarial.py.
enum class Curve : int { softplus, relu, square, linear };

}  // namespace genmod
