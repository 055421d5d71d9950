// Sums of taps: the part of an upsampling convolution that is not a matrix product.
#include "upsample_conv.h"

#include "tile.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

constexpr int64_t kLine = 512;  // channels, or columns, that are worked on together: three lines of them fit level 1

// What lies beyond the border.
template <class T> constexpr T zeros[2 * kLine + 2]{};

// The input row (or column) whose tap k goes into output row 2 m + parity, relative to m.
constexpr int64_t source(int parity, int k) { return parity == 0 ? (k == 0 ? -1 : 0) : (k == 2 ? 1 : 0); }

GENMOD_INLINE int64_t at_most(int64_t n, int64_t limit) { return n < limit ? n : limit; }

template <class A, class S>
static void sum_nine(const A* const p[9], const A* __restrict bias, S* __restrict out, int64_t n) {
  const A *__restrict a = p[0], *__restrict b = p[1], *__restrict c = p[2], *__restrict d = p[3], *__restrict e = p[4],
          *__restrict f = p[5], *__restrict g = p[6], *__restrict h = p[7], *__restrict i = p[8];
  for (int64_t k = 0; k < n; k++) narrow(((a[k] + b[k] + c[k]) + (d[k] + e[k] + f[k])) + ((g[k] + h[k] + i[k]) + bias[k]), out[k]);
}

// Output rows 2 m and 2 m + 1 of a sample, all channels of a pixel together.
template <class A, class S> static void combine_pixels(const UpsampleTile& t, int64_t n, int64_t m) {
  const A* taps = (const A*)t.taps.data + n * t.taps.sample + (m - t.first) * t.taps.row;
  S* image = (S*)t.image.data + n * t.image.sample + 2 * m * t.image.row;
  for (int64_t l = 0; l < t.width; l++)
    for (int r = 0; r < 2; r++)
      for (int s = 0; s < 2; s++)
        for (int64_t c = 0; c < t.channels; c += kLine) {
          const A* p[9];
          for (int a = 0; a < 3; a++)
            for (int b = 0; b < 3; b++) {
              const int64_t i = source(r, a), j = l + source(s, b);
              const bool inside = m + i >= 0 && m + i < t.height && j >= 0 && j < t.width;
              p[3 * a + b] = inside ? taps + i * t.taps.row + j * t.taps.col + (3 * a + b) * t.tap + c : zeros<A>;
            }
          const A* bias = t.bias ? (const A*)t.bias + c : zeros<A>;
          sum_nine(p, bias, image + r * t.image.row + (2 * l + s) * t.image.col + c, at_most(t.channels - c, kLine));
        }
}

// The same rows of one channel.
template <class A, class S> static void combine_row(const UpsampleTile& t, int64_t n, int64_t c, int64_t m) {
  alignas(64) A lines[3][kLine + 2];
  const A bias = t.bias ? ((const A*)t.bias)[c] : A(0);
  const A* taps = (const A*)t.taps.data + n * t.taps.sample + c * t.taps.channel + (m - t.first) * t.taps.row;
  for (int64_t begin = 0; begin < t.width; begin += kLine) {
    const int64_t length = at_most(t.width - begin, kLine);
    const int64_t low = begin > 0 ? -1 : 0, high = begin + length < t.width ? length + 1 : length;  // with neighbours
    for (int r = 0; r < 2; r++) {
      for (int b = 0; b < 3; b++) {  // sums of each column of taps
        const A* p[3];
        for (int a = 0; a < 3; a++) {
          const int64_t i = source(r, a);
          p[a] = m + i >= 0 && m + i < t.height ? taps + i * t.taps.row + (3 * a + b) * t.tap + begin + low : zeros<A>;
        }
        const A *__restrict p0 = p[0], *__restrict p1 = p[1], *__restrict p2 = p[2];
        A* __restrict sum = lines[b];
        sum[0] = sum[length + 1] = 0;
        sum += 1 + low;
        for (int64_t l = 0; l < high - low; l++) sum[l] = p0[l] + p1[l] + p2[l];
      }
      const A *__restrict s0 = lines[0], *__restrict s1 = lines[1] + 1, *__restrict s2 = lines[2] + 1;
      S* __restrict out = (S*)t.image.data + n * t.image.sample + c * t.image.channel + (2 * m + r) * t.image.row + 2 * begin;
      for (int64_t l = 0; l < length; l++) {
        narrow((s0[l] + s1[l]) + (s2[l] + bias), out[2 * l]);
        narrow((s0[l + 1] + s1[l]) + (s2[l + 1] + bias), out[2 * l + 1]);
      }
    }
  }
}

template <class A, class S> static void sum_four(const S* const p[4], A* __restrict out, int64_t n) {
  const S *__restrict a = p[0], *__restrict b = p[1], *__restrict c = p[2], *__restrict d = p[3];
  for (int64_t k = 0; k < n; k++) out[k] = (widen(a[k]) + widen(b[k])) + (widen(c[k]) + widen(d[k]));
}

// The taps of a row of a sample, all channels of a pixel together.
template <class A, class S> static void spread_pixels(const UpsampleTile& t, int64_t n, int64_t m) {
  A* taps = (A*)t.taps.data + n * t.taps.sample + (m - t.first) * t.taps.row;
  const S* image = (const S*)t.image.data + n * t.image.sample;
  for (int64_t l = 0; l < t.width; l++)
    for (int a = 0; a < 3; a++)
      for (int b = 0; b < 3; b++)
        for (int64_t c = 0; c < t.channels; c += kLine) {
          const S* p[4];
          for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++) {
              const int64_t row = 2 * m + 1 - a + i, col = 2 * l + 1 - b + j;
              const bool inside = row >= 0 && row < 2 * t.height && col >= 0 && col < 2 * t.width;
              p[2 * i + j] = inside ? image + row * t.image.row + col * t.image.col + c : zeros<S>;
            }
          sum_four(p, taps + l * t.taps.col + (3 * a + b) * t.tap + c, at_most(t.channels - c, kLine));
        }
}

// The taps of a row of one channel.
template <class A, class S> static void spread_row(const UpsampleTile& t, int64_t n, int64_t c, int64_t m) {
  alignas(64) A line[2 * kLine + 2];
  const S* image = (const S*)t.image.data + n * t.image.sample + c * t.image.channel;
  for (int64_t begin = 0; begin < t.width; begin += kLine) {
    const int64_t length = at_most(t.width - begin, kLine);
    const int64_t low = begin > 0 ? -1 : 0, high = begin + length < t.width ? 2 * length + 1 : 2 * length;
    for (int a = 0; a < 3; a++) {
      const int64_t row = 2 * m + 1 - a;
      const S* __restrict upper = row >= 0 ? image + row * t.image.row + 2 * begin + low : zeros<S>;
      const S* __restrict lower = row + 1 < 2 * t.height ? image + (row + 1) * t.image.row + 2 * begin + low : zeros<S>;
      line[0] = line[2 * length + 1] = 0;
      A* __restrict sum = line + 1 + low;
      for (int64_t q = 0; q < high - low; q++) sum[q] = widen(upper[q]) + widen(lower[q]);
      const A* __restrict s = line;
      A* __restrict t0 = (A*)t.taps.data + n * t.taps.sample + c * t.taps.channel + (m - t.first) * t.taps.row + begin + 3 * a * t.tap;
      A *__restrict t1 = t0 + t.tap, *__restrict t2 = t1 + t.tap;
      for (int64_t l = 0; l < length; l++) {
        t0[l] = s[2 * l + 2] + s[2 * l + 3];
        t1[l] = s[2 * l + 1] + s[2 * l + 2];
        t2[l] = s[2 * l] + s[2 * l + 1];
      }
    }
  }
}

template <class S> static void combine_items(const UpsampleTile& t, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const int64_t rows = t.end - t.begin;
  for (int64_t k = first; k < last; k++) {
    const int64_t m = t.begin + k % rows, plane = k / rows;
    if (t.channels_last) combine_pixels<A, S>(t, plane, m);
    else combine_row<A, S>(t, plane / t.channels, plane % t.channels, m);
  }
}

template <class S> static void spread_items(const UpsampleTile& t, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const int64_t rows = t.end - t.begin;
  for (int64_t k = first; k < last; k++) {
    const int64_t m = t.begin + k % rows, plane = k / rows;
    if (t.channels_last) spread_pixels<A, S>(t, plane, m);
    else spread_row<A, S>(t, plane / t.channels, plane % t.channels, m);
  }
}

template <class From, class To, class F> static void copy_slices(const StridedCopy& p, int64_t first, int64_t last, F&& set) {
  const int64_t from_step = p.from_strides[2], to_step = p.to_strides[2], n = p.sizes[2];
  for (int64_t i = first; i < last; i++)
    for (int64_t j = 0; j < p.sizes[1]; j++) {
      const From* __restrict from = (const From*)p.from + i * p.from_strides[0] + j * p.from_strides[1];
      To* __restrict to = (To*)p.to + i * p.to_strides[0] + j * p.to_strides[1];
      if (from_step == 1 && to_step == 1)
        for (int64_t k = 0; k < n; k++) set(from[k], to[k]);
      else
        for (int64_t k = 0; k < n; k++) set(from[k * from_step], to[k * to_step]);
    }
}

template <class S> static void copy_items(const StridedCopy& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  switch (p.kind) {
    case StridedCopy::widens: return copy_slices<S, A>(p, first, last, [](S from, A& to) { to = widen(from); });
    case StridedCopy::narrows: return copy_slices<A, S>(p, first, last, [](A from, S& to) { narrow(from, to); });
    case StridedCopy::moves: return copy_slices<A, A>(p, first, last, [](A from, A& to) { to = from; });
    case StridedCopy::adds: return copy_slices<A, A>(p, first, last, [](A from, A& to) { to += from; });
  }
}

// One entry point per job: picks the storage type.
#define GENMOD_BY_DTYPE(name, Params)                                   \
  static void name##_any(const Params& p, int64_t first, int64_t last) { \
    switch (p.dtype) {                                                  \
      case Dtype::f32: return name##_items<float>(p, first, last);      \
      case Dtype::f64: return name##_items<double>(p, first, last);     \
      case Dtype::bf16: return name##_items<bf16>(p, first, last);      \
      case Dtype::f16: return name##_items<f16>(p, first, last);        \
    }                                                                   \
  }
GENMOD_BY_DTYPE(combine, UpsampleTile)
GENMOD_BY_DTYPE(spread, UpsampleTile)
GENMOD_BY_DTYPE(copy, StridedCopy)

}  // namespace

extern const UpsampleKernels upsample_kernels{combine_any, spread_any, copy_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
