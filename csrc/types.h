// What every kernel is told about memory, on any device: plain numbers and raw pointers, no tensors.
#pragma once
#include <stdint.h>

namespace genmod {

enum class Dtype : int { f32, f64, bf16, f16, u8 };  // u8: a mask, of zeros and ones

// Memory as rows: element i of the dense output sits at row i / cols, column i % cols of every input.
struct Rows {
  const void* data = nullptr;
  int64_t stride = 0;  // elements from one row to the next
};

}  // namespace genmod
