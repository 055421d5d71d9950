// What minimal filtering is made of: transformed patches, products of them that stay in registers, and where tiles lie.
#pragma once
#include "conv3x3.h"
#include "products.h"
#include "transpose.h"

#include <memory>

namespace genmod {
namespace GENMOD_ISA {
namespace {

// Rows of a register tile of products.
#if defined(__AVX512F__)
constexpr int kRows = 12;
#else
constexpr int kRows = 6;
#endif
static_assert(12 % kRows == 0 && 32 % kWide<float> == 0 && kPlaneTiles % kWide<float> == 0 && kMostTiles % kPlaneTiles == 0 && kPixelTiles % kRows == 0 && kPixelVector % kLanes<float> == 0, "blocks are whole register tiles");

// Memory aligned to whole vectors. What is not written before it is multiplied has to be cleared, also where nobody looks at
// the product: numbers too small to be normal ones, as old addresses are, take a processor a hundred times as long.
template <class A> class Workspace {
 public:
  explicit Workspace(int64_t n) : size_(n), memory_(new A[(size_t)(n + kLanes<A>)]) {
    constexpr uintptr_t whole = sizeof(Vector<A>);
    data_ = (A*)(((uintptr_t)memory_.get() + whole - 1) / whole * whole);
  }
  A* data() { return data_; }
  void clear() {
    for (int64_t i = 0; i < size_; i++) data_[i] = 0;
  }

 private:
  int64_t size_;
  std::unique_ptr<A[]> memory_;
  A* data_;
};

// --- Patches: B' d B, from the horizontal part of each of four rows.

template <class A> struct Patch {
  using V = Vector<A>;
  V rows[4][4];
  void row(int a, V d0, V d1, V d2, V d3) {
    rows[a][0] = d0 - d2;
    rows[a][1] = d1 + d2;
    rows[a][2] = d2 - d1;
    rows[a][3] = d1 - d3;
  }
  void store(A* out, int64_t frequency) const {
    for (int b = 0; b < 4; b++) {
      store_lanes<A>(out + b * frequency, rows[0][b] - rows[2][b]);
      store_lanes<A>(out + (4 + b) * frequency, rows[1][b] + rows[2][b]);
      store_lanes<A>(out + (8 + b) * frequency, rows[2][b] - rows[1][b]);
      store_lanes<A>(out + (12 + b) * frequency, rows[1][b] - rows[3][b]);
    }
  }
};

// The same for a kernel of two taps a row: from three pixels of each of three rows. A kernel of three over a doubled image,
// whose neighbours are equal, is one.
template <class A> struct PairPatch {
  using V = Vector<A>;
  V rows[3][3];
  void row(int a, V before, V middle, V after) {
    rows[a][0] = before - middle;
    rows[a][1] = middle;
    rows[a][2] = middle - after;
  }
  void store(A* out, int64_t frequency) const {
    for (int b = 0; b < 3; b++) {
      store_lanes<A>(out + b * frequency, rows[0][b] - rows[1][b]);
      store_lanes<A>(out + (3 + b) * frequency, rows[1][b]);
      store_lanes<A>(out + (6 + b) * frequency, rows[1][b] - rows[2][b]);
    }
  }
};

// --- Results: A' m A, 2x2 of them. PAIRS: of a kernel of two taps a row.

template <class A, bool PAIRS> struct Result {
  using V = Vector<A>;
  V pixels[2][2];
  Result(const A* in, int64_t frequency, V bias) {
    constexpr int N = PAIRS ? 3 : 4;
    V rows[N][2];
    for (int a = 0; a < N; a++) {
      V m[N];
      for (int b = 0; b < N; b++) m[b] = load_lanes<A>(in + (N * a + b) * frequency);
      sum(m, rows[a][0], rows[a][1]);
    }
    for (int b = 0; b < 2; b++) {
      V column[N];
      for (int a = 0; a < N; a++) column[a] = rows[a][b];
      sum(column, pixels[0][b], pixels[1][b]);
      pixels[0][b] += bias;
      pixels[1][b] += bias;
    }
  }

 private:
  static void sum(const V* m, V& first, V& second) {
    if constexpr (PAIRS) {
      first = m[0] + m[1];
      second = m[1] - m[2];
    } else {
      first = m[0] + m[1] + m[2];
      second = m[1] - m[2] - m[3];
    }
  }
};

// Consecutive tiles of one row of tiles.
struct Run {
  int64_t image, row, column, length;
  template <class Problem> Run(const Problem& p, int64_t tile, int64_t most) {
    const int64_t of_image = p.tile_rows() * p.tile_columns(), inside = tile % of_image;
    image = tile / of_image;
    row = inside / p.tile_columns();
    column = inside % p.tile_columns();
    length = p.tile_columns() - column < most ? p.tile_columns() - column : most;
  }
};

// even[i] = line[2 (column + i)] and odd[i] = line[2 (column + i) - 1], zero outside; `line` is null if it is outside.
template <class A> static void split(const A* __restrict line, int64_t width, int64_t column, int64_t length, A* __restrict even, A* __restrict odd) {
  if (!line) {
    for (int64_t i = 0; i <= length; i++) even[i] = odd[i] = 0;
    return;
  }
  const int64_t begin = 2 * column, whole = (width - begin) / 2, inside = whole < length ? whole : length;
  const A* __restrict from = line + begin;
  odd[0] = begin ? from[-1] : A(0);
  for (int64_t i = 0; i < inside; i++) {
    even[i] = from[2 * i];
    odd[i + 1] = from[2 * i + 1];
  }
  for (int64_t i = inside; i <= length; i++) {
    even[i] = begin + 2 * i < width ? from[2 * i] : A(0);
    if (i < length) odd[i + 1] = begin + 2 * i + 1 < width ? from[2 * i + 1] : A(0);
  }
}

// Transformed patches of an image with as many channels as `zeros` has zeros, `pitch` apart. PROBLEM: whose tiles they are.
template <class A, class Problem>
static void pixel_patches(const Problem& p, const A* image, int64_t channels, int64_t tile, int64_t count, const A* zeros, A* patches, int64_t frequency, int64_t pitch) {
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    const A* pixels[4][4];
    for (int a = 0; a < 4; a++)
      for (int b = 0; b < 4; b++) {
        const int64_t y = 2 * run.row - 1 + a, x = 2 * run.column - 1 + b;
        const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
        pixels[a][b] = inside ? image + ((run.image * p.height + y) * p.width + x) * channels : zeros;
      }
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      Patch<A> patch;
      for (int a = 0; a < 4; a++)
        patch.row(a, load_lanes<A>(pixels[a][0] + c), load_lanes<A>(pixels[a][1] + c), load_lanes<A>(pixels[a][2] + c), load_lanes<A>(pixels[a][3] + c));
      patch.store(patches + t * pitch + c, frequency);
    }
  }
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
