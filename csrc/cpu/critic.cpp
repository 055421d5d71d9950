// Leaky ReLU by its mask. The formulas are those of genmod/reference/critic.py.
#include "critic.h"

#include "tile.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// A slope times infinity or NaN is worked out on both sides and used on one: a select, so that the loop vectorises.
template <class A> static void mask_tile(const A* __restrict x, A* __restrict y, uint8_t* __restrict mask, A slope, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const A scaled = slope * x[i];
    mask[i] = x[i] > 0;
    y[i] = x[i] > 0 ? x[i] : scaled;
  }
}

template <class A> static void apply_tile(const A* __restrict x, A* __restrict y, const uint8_t* __restrict mask, A slope, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const A scaled = slope * x[i];
    y[i] = mask[i] ? x[i] : scaled;
  }
}

template <bool MASK, class S> static void chunks(const LeakyRelu& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  alignas(64) A xb[kChunk], yb[kChunk];
  for (int64_t chunk = first; chunk < last; chunk++) {
    const int64_t begin = chunk * kChunk, n = p.numel - begin < kChunk ? p.numel - begin : kChunk;
    const A* x = load<A, S>(p.x, p.cols, begin, n, xb);
    A* y = place<A, S>(p.y, 0, p.numel, begin, n, yb);
    if (MASK) mask_tile(x, y, p.mask + begin, (A)p.slope, n);
    else apply_tile(x, y, p.mask + begin, (A)p.slope, n);
    store<A, S>(yb, y, p.y, 0, p.numel, begin, n);
  }
}

template <bool MASK> static void any(const LeakyRelu& p, int64_t first, int64_t last) {
  switch (p.dtype) {
    case Dtype::f32: return chunks<MASK, float>(p, first, last);
    case Dtype::f64: return chunks<MASK, double>(p, first, last);
    case Dtype::bf16: return chunks<MASK, bf16>(p, first, last);
    case Dtype::f16: return chunks<MASK, f16>(p, first, last);
  }
}

}  // namespace

extern const CriticKernels critic_kernels{any<true>, any<false>};

}  // namespace GENMOD_ISA
}  // namespace genmod
