// What a gaussian kernel is told besides, on any device.
#pragma once
#include "types.h"

namespace genmod {

// How logvar is bounded before use; see ops.reparameterize.
enum class Clamp : int { none, hard, soft };

}  // namespace genmod
