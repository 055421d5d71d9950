// Tiles of a loss and its samples: adding up what a tile holds, and spreading an incoming gradient over one.
#pragma once
#include "chunks.h"
#include "tile.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// Adds a tile's values to the sums of the samples it touches, of `sample` elements each: chunk c adds its share of
// sample s to sums[c + s]. The index never repeats, because the next share starts either a new chunk or a new sample.
template <class A>
static void add_to_samples(const A* values, int64_t begin, int64_t n, int64_t chunk, int64_t sample, double* sums) {
  for (int64_t i = 0; i < n;) {
    const int64_t which = (begin + i) / sample, left = (which + 1) * sample - begin - i;
    const int64_t length = left < n - i ? left : n - i;
    sums[chunk + which] = sum(values + i, length);
    i += length;
  }
}

// The incoming gradient of a loss, times `scale`, as tiles: of each element, or one per `sample` elements.
template <class A> struct Spread {
  const A* grad;
  bool per_element;
  int64_t sample;
  A scale;
  int64_t filled = -1;  // the sample that the whole buffer holds the gradient of
  alignas(64) A buffer[kChunk];

  Spread(const A* grad, bool per_element, int64_t sample, A scale) : grad(grad), per_element(per_element), sample(sample), scale(scale) {}

  const A* tile(int64_t begin, int64_t n) {
    if (per_element) {
      for (int64_t i = 0; i < n; i++) buffer[i] = grad[begin + i] * scale;
      return buffer;
    }
    const int64_t first = begin / sample;
    if (filled == first && begin + n <= (first + 1) * sample) return buffer;
    filled = begin + kChunk <= (first + 1) * sample ? first : -1;
    const int64_t end = filled < 0 ? n : kChunk;
    for (int64_t i = 0; i < end;) {
      const int64_t which = (begin + i) / sample, left = (which + 1) * sample - begin - i;
      const int64_t length = left < end - i ? left : end - i;
      const A value = grad[which] * scale;
      for (int64_t j = 0; j < length; j++) buffer[i + j] = value;
      i += length;
    }
    return buffer;
  }
};

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
