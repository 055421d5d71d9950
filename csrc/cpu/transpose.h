// A square of numbers in registers, turned.
#pragma once
#include "vector.h"

#include <type_traits>

namespace genmod {
namespace GENMOD_ISA {
namespace {

// Transposes a square of as many vectors as each has lanes: halves, quarters, ... change places.
template <class A, int WIDTH> static inline void exchange(Vector<A>* rows) {
  constexpr int L = kLanes<A>;
  using Lane = std::conditional_t<sizeof(A) == 4, VectorI, VectorL>;
  Lane low{}, high{};
  for (int l = 0; l < L; l++) {
    low[l] = l & WIDTH ? l - WIDTH + L : l;
    high[l] = l & WIDTH ? l + L : l + WIDTH;
  }
  for (int i = 0; i < L; i++) {
    if (i & WIDTH) continue;
    const Vector<A> a = rows[i], b = rows[i + WIDTH];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + WIDTH] = __builtin_shuffle(a, b, high);
  }
  if constexpr (WIDTH > 1) exchange<A, WIDTH / 2>(rows);
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
