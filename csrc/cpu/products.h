// A tile of a matrix product, in registers.
#pragma once
#include "vector.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

constexpr int kVectors = 2;  // of columns
template <class A> constexpr int kWide = kVectors * kLanes<A>;

// Terms that are summed in one go: sums of sums round less than one long sum does.
constexpr int64_t kTerms = 64;

// out[r][c] = sum over k < n of left(k, r) * right[k * right_step + c], R rows of N vectors of columns, and what is there
// added to it with `more`. left(k, r) is
// left[k * left_step + r], or left[k + r * left_step] if its rows are what is contiguous.
template <int R, bool ROWS, int N = kVectors, class A>
static inline void multiply(const A* __restrict left, int64_t left_step, const A* __restrict right, int64_t right_step, int64_t n, A* __restrict out, int64_t out_row, bool more = false) {
  using V = Vector<A>;
  constexpr int L = kLanes<A>;
  for (int64_t first = 0; first < n; first += kTerms) {
    const int64_t last = n - first < kTerms ? n : first + kTerms;
    V sums[R][N] = {};
    for (int64_t k = first; k < last; k++) {
      V at[N];
      for (int v = 0; v < N; v++) at[v] = load_lanes<A>(right + k * right_step + v * L);
      for (int r = 0; r < R; r++)
        for (int v = 0; v < N; v++) sums[r][v] += (ROWS ? left[k + r * left_step] : left[k * left_step + r]) * at[v];
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < N; v++) {
        A* place = out + r * out_row + v * L;
        store_lanes<A>(place, first || more ? load_lanes<A>(place) + sums[r][v] : sums[r][v]);
      }
  }
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
