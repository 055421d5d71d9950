// What the kernels of norm_act.h go through: pieces, tiles of them, and lanes of rows with their coefficients.
#pragma once
#include <algorithm>
#include <initializer_list>
#include <memory>
#include <vector>

#include "norm_act.h"
#include "tile.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

constexpr int64_t kTile = 2048;  // elements that are looked at several times while they are in level-1 cache

// Elements of dense memory as A, straight from there if they are A already.
template <class A, class S> GENMOD_INLINE const A* read(const void* data, int64_t begin, int64_t n, A* buffer) {
  return load<A, S>({data, 0}, begin + n, begin, n, buffer);
}
template <class A, class S> GENMOD_INLINE A* target(void* data, int64_t begin, A* buffer) {
  if constexpr (same<A, S>) return (A*)data + begin;
  return buffer;
}
template <class A, class S> GENMOD_INLINE void write(const A* __restrict buffer, void* data, int64_t begin, int64_t n) {
  if constexpr (!same<A, S>)
    for (int64_t i = 0; i < n; i++) narrow(buffer[i], ((S*)data)[begin + i]);
}

// Coefficients C: one value for a stretch of a plane, an array along the lanes of rows.
template <class A> GENMOD_INLINE A pick(A value, int64_t) { return value; }
template <class A> GENMOD_INLINE A pick(const A* __restrict values, int64_t i) { return values[i]; }

template <class A> static double sum_of_products(const A* __restrict dz, const A* __restrict x, A mean, int64_t n) {
  return sum_of<A>(n, [=](int64_t i) __attribute__((always_inline)) { return dz[i] * (x[i] - mean); });
}

// Room for a tile that is not A in memory.
template <class A, class S> static std::unique_ptr<A[]> room(int64_t n) { return std::unique_ptr<A[]>(same<A, S> ? nullptr : new A[(size_t)n]); }

// Rows: sums along the lanes. Where there are few lanes, several rows are taken as one, so that there is a vector's worth.
struct Lanes {
  int64_t count, width;
  explicit Lanes(int64_t lanes) : count(lanes), width(lanes * (lanes < 64 ? 64 / lanes : 1)) {}
  // Adds the sums of the rows that were taken together to those of `together` neighbouring lanes each, and clears them.
  template <class A> void fold(A* __restrict sums, int64_t together, double* __restrict out) const {
    for (int64_t w = 0; w < width; w += count) {
      if (together == 1)
        for (int64_t l = 0; l < count; l++) out[l] += (double)sums[w + l];
      else
        for (int64_t g = 0; g < count / together; g++) out[g] += sum(sums + w + g * together, together);
    }
    std::fill_n(sums, width, A(0));
  }
  // f(position in memory, lane, elements) for each stretch along the lanes: of many lanes some through all the rows, then
  // the next, since what is kept per lane should stay in level-1 cache.
  static constexpr int64_t kAtOnce = 512;
  template <class Call> void stretches(int64_t n, Call&& f) const {
    for (int64_t lane = 0; lane < width; lane += kAtOnce)
      for (int64_t i = lane; i < n; i += width) {
        const int64_t most = width - lane < kAtOnce ? width - lane : kAtOnce;
        f(i, lane, n - i < most ? n - i : most);
      }
  }
  // Elements of a tile: whole rows, and several of long ones, since what a tile sums up is folded at its end.
  int64_t tile() const {
    const int64_t rows = kTile * 2 / width;
    return width * (rows < rows_at_least(width) ? rows_at_least(width) : rows);
  }
};

// The coefficients of a block, along its lanes.
template <class A> class LaneCoefficients {
 public:
  LaneCoefficients(const NormCut& cut, std::initializer_list<const double*> all) : cut_(cut), lanes_(cut.lanes), all_(all), values_(all.size() * (size_t)lanes_.width) {}
  void set(int64_t block) {
    if (block == block_) return;  // a thread's pieces are neighbours
    block_ = block;
    A* out = values_.data();
    for (const double* v : all_)
      for (int64_t w = 0; w < lanes_.width; w += lanes_.count)
        for (int64_t c = 0; c < cut_.block_channels(); c++, out += cut_.spread) std::fill_n(out, cut_.spread, (A)v[block * cut_.block_channels() + c]);
  }
  const A* at(int which, int64_t lane) const { return values_.data() + which * lanes_.width + lane; }

 private:
  const NormCut& cut_;
  Lanes lanes_;
  std::vector<const double*> all_;
  std::vector<A> values_;
  int64_t block_ = -1;
};

// Pieces [first, last) of all blocks, one after another. Where they stand is counted, since small planes take no longer
// than the divisions that would tell.
template <class P, class Call> static void each_piece(const P& p, int64_t first, int64_t last, Call&& f) {
  if (first >= last) return;
  NormPlace at(p.cut, first);
  for (int64_t t = first; t < last; t++, at.next(p.cut)) f(t, at.block, at, at.offset(p.cut), at.length(p.cut));
}

// f(begin, elements) for each tile of a piece.
template <class Call> static void tiles(int64_t offset, int64_t length, int64_t tile, Call&& f) {
  for (int64_t begin = 0; begin < length; begin += tile) f(offset + begin, length - begin < tile ? length - begin : tile);
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
