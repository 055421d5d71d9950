// Convolutions between an image of a few channels and a map of many: see conv4x4_few.h.
#include "conv4x4_few.h"

#include "minimal_filtering.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// out[r][c] = sum over k < n of left(k, r) right[k][c], and what is there added to it: any number of rows, and columns that
// are whole vectors.
template <bool ROWS, int R, class A>
static void add_rows(const A* left, int64_t left_step, const A* right, int64_t right_step, int64_t n, int64_t rows, int64_t columns, A* out, int64_t out_row) {
  constexpr int L = kLanes<A>;
  int64_t r = 0;
  for (; r + R <= rows; r += R) {
    const A* of_rows = left + (ROWS ? r * left_step : r);
    int64_t c = 0;
    for (; c + kWide<A> <= columns; c += kWide<A>) multiply<R, ROWS>(of_rows, left_step, right + c, right_step, n, out + r * out_row + c, out_row, true);
    for (; c < columns; c += L) multiply<R, ROWS, 1>(of_rows, left_step, right + c, right_step, n, out + r * out_row + c, out_row, true);
  }
  if constexpr (R > 1)
    if (r < rows) add_rows<ROWS, (R > 4 ? 4 : 1)>(left + (ROWS ? r * left_step : r), left_step, right, right_step, n, rows - r, columns, out + r * out_row, out_row);
}

template <class A> static int64_t whole_vectors(int64_t n) { return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>; }

// The larger map's rows around some of the smaller one's, with zeros around the image: column x of the image is x + 1 here.
template <class A> struct Lines {
  int64_t pitch, rows;
  Workspace<A> memory;
  Lines(const FewChannels& p, int64_t rows) : pitch(2 * p.width + 2), rows(rows), memory(p.few * rows * pitch) {}
  A* line(int64_t c, int64_t row) { return memory.data() + (c * rows + row) * pitch; }

  void read(const FewChannels& p, int64_t image, int64_t top) {
    for (int64_t c = 0; c < p.few; c++)
      for (int64_t row = 0; row < rows; row++) {
        A* __restrict to = line(c, row);
        const int64_t y = top + row;
        const bool inside = y >= 0 && y < 2 * p.height;
        const A* __restrict from = (const A*)p.large + image * p.of_image + c * p.of_channel + (inside ? y : 0) * p.of_row;
        to[0] = to[pitch - 1] = 0;
        if (!inside) for (int64_t x = 0; x < 2 * p.width; x++) to[x + 1] = 0;
        else if (p.of_column == 1) memcpy(to + 1, from, (size_t)(2 * p.width) * sizeof(A));
        else for (int64_t x = 0; x < 2 * p.width; x++) to[x + 1] = from[x * p.of_column];
      }
  }
};

// The bands of one image after another.
struct Band {
  int64_t image, row, rows, pixels;
  Band(const FewChannels& p, int64_t item) : image(item / p.bands()), row(item % p.bands() * p.rows()), rows(p.height - row < p.rows() ? p.height - row : p.rows()), pixels(rows * p.width) {}
};

// What each tap of the kernel sees, of a band: [pixels][taps], where a row of the kernel is four neighbours.
template <class A> static void patches_of(const FewChannels& p, const Band& band, Lines<A>& lines, A* patches) {
  lines.read(p, band.image, 2 * band.row - 1);
  for (int64_t i = 0; i < band.rows; i++)
    for (int64_t row = 0; row < 4 * p.few; row++) {
      const A* line = lines.line(row / 4, 2 * i + row % 4);
      A* to = patches + i * p.width * p.taps() + 4 * row;
      for (int64_t j = 0; j < p.width; j++) memcpy(to + j * p.taps(), line + 2 * j, 4 * sizeof(A));
    }
}

// The same, turned: [taps][padded].
template <class A> static void turned_patches_of(const FewChannels& p, const Band& band, Lines<A>& lines, A* patches, int64_t padded) {
  lines.read(p, band.image, 2 * band.row - 1);
  for (int64_t i = 0; i < band.rows; i++)
    for (int64_t t = 0; t < p.taps(); t++) {
      const A* __restrict line = lines.line(t / 16, 2 * i + t / 4 % 4) + t % 4;
      A* __restrict to = patches + t * padded + i * p.width;
      for (int64_t j = 0; j < p.width; j++) to[j] = line[2 * j];
    }
}

template <class A> static void to_small(const FewChannels& p, int64_t first, int64_t last) {
  const int64_t taps = p.taps(), most = p.rows() * p.width, padded = whole_vectors<A>(most);
  Lines<A> lines(p, 2 * p.rows() + 2);
  Workspace<A> patches(taps * padded), turned(p.by_pixel ? taps * p.channels : 0), sums(p.by_pixel ? 0 : p.channels * padded);
  patches.clear();  // pixels that there are not
  const A *weight = (const A*)p.weight, *bias = (const A*)p.bias;
  if (p.by_pixel)
    for (int64_t o = 0; o < p.channels; o++)
      for (int64_t t = 0; t < taps; t++) turned.data()[t * p.channels + o] = weight[o * taps + t];
  for (int64_t item = first; item < last; item++) {
    const Band band(p, item);
    if (p.by_pixel) patches_of(p, band, lines, patches.data());
    else turned_patches_of(p, band, lines, patches.data(), padded);
    if (p.by_pixel) {
      A* out = (A*)p.small + (band.image * p.pixels() + band.row * p.width) * p.channels;
      for (int64_t j = 0; j < band.pixels; j++)
        for (int64_t o = 0; o < p.channels; o++) out[j * p.channels + o] = bias ? bias[o] : A(0);
      add_rows<true, kRows>(patches.data(), taps, turned.data(), p.channels, taps, band.pixels, p.channels, out, p.channels);
      continue;
    }
    for (int64_t o = 0; o < p.channels; o++)
      for (int64_t j = 0; j < padded; j++) sums.data()[o * padded + j] = bias ? bias[o] : A(0);
    add_rows<true, kRows>(weight, taps, patches.data(), padded, taps, p.channels, whole_vectors<A>(band.pixels), sums.data(), padded);
    for (int64_t o = 0; o < p.channels; o++) memcpy((A*)p.small + (band.image * p.channels + o) * p.pixels() + band.row * p.width, sums.data() + o * padded, (size_t)band.pixels * sizeof(A));
  }
}

template <class A> static void to_large(const FewChannels& p, int64_t first, int64_t last) {
  typedef A Four __attribute__((vector_size(4 * sizeof(A))));
  const int64_t taps = p.taps(), most = p.rows() * p.width;
  Lines<A> lines(p, 2 * p.height + 2);
  Workspace<A> columns(most * taps);
  const A* bias = (const A*)p.bias;
  for (int64_t image = first; image < last; image++) {
    lines.memory.clear();
    for (int64_t row = 0; row < p.height; row += p.rows()) {
      const int64_t rows = p.height - row < p.rows() ? p.height - row : p.rows(), pixels = rows * p.width;
      for (int64_t i = 0; i < pixels * taps; i++) columns.data()[i] = 0;
      const A* small = (const A*)p.small + image * p.pixels() * p.channels + row * p.width * (p.by_pixel ? p.channels : 1);
      if (p.by_pixel) add_rows<true, kRows>(small, p.channels, (const A*)p.weight, taps, p.channels, pixels, taps, columns.data(), taps);
      else add_rows<false, kRows>(small, p.pixels(), (const A*)p.weight, taps, p.channels, pixels, taps, columns.data(), taps);
      for (int64_t i = 0; i < rows; i++)
        for (int64_t line = 0; line < 4 * p.few; line++) {
          A* to = lines.line(line / 4, 2 * (row + i) + line % 4);
          const A* from = columns.data() + i * p.width * taps + line * 4;
          for (int64_t j = 0; j < p.width; j++) {
            Four sum, more;
            memcpy(&sum, to + 2 * j, sizeof(sum));
            memcpy(&more, from + j * taps, sizeof(more));
            sum += more;
            memcpy(to + 2 * j, &sum, sizeof(sum));
          }
        }
    }
    for (int64_t c = 0; c < p.few; c++)
      for (int64_t y = 0; y < 2 * p.height; y++) {
        A* __restrict to = (A*)p.large + image * p.of_image + c * p.of_channel + y * p.of_row;
        const A* __restrict from = lines.line(c, y + 1) + 1;
        const A shift = bias ? bias[c] : A(0);
        if (p.of_column == 1) for (int64_t x = 0; x < 2 * p.width; x++) to[x] = from[x] + shift;
        else for (int64_t x = 0; x < 2 * p.width; x++) to[x * p.of_column] = from[x] + shift;
      }
  }
}

template <class A> static void to_weight(const FewChannels& p, int64_t first, int64_t last) {
  const int64_t taps = p.taps(), bands = p.batch * p.bands();
  Lines<A> lines(p, 2 * p.rows() + 2);
  Workspace<A> patches(p.rows() * p.width * taps);
  for (int64_t part = first; part < last; part++) {
    A* sums = (A*)p.sums + part * p.channels * taps;
    for (int64_t i = 0; i < p.channels * taps; i++) sums[i] = 0;
    for (int64_t item = bands * part / p.parts(); item < bands * (part + 1) / p.parts(); item++) {
      const Band band(p, item);
      patches_of(p, band, lines, patches.data());
      const A* small = (const A*)p.small + band.image * p.pixels() * p.channels + band.row * p.width * (p.by_pixel ? p.channels : 1);
      if (p.by_pixel) add_rows<false, kRows>(small, p.channels, patches.data(), taps, band.pixels, p.channels, taps, sums, taps);
      else add_rows<true, kRows>(small, p.pixels(), patches.data(), taps, band.pixels, p.channels, taps, sums, taps);
    }
  }
}

GENMOD_BY_WIDTH(to_small, FewChannels)
GENMOD_BY_WIDTH(to_large, FewChannels)
GENMOD_BY_WIDTH(to_weight, FewChannels)

}  // namespace

extern const FewChannelsKernels few_channels_kernels{to_small_any, to_large_any, to_weight_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
