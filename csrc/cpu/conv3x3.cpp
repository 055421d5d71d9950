// 3x3 convolutions, also of a doubled image, by Winograd's minimal filtering: see conv3x3.h. The weight's gradient is in
// conv3x3_gradient.cpp.
#include "minimal_filtering.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// --- The weight: G w G'.

static int64_t width_of_panel(bool wide, bool by_pixel) { return !by_pixel ? kRows : wide ? kWide<double> : kWide<float>; }
static int64_t panels_of(bool wide, bool by_pixel, int64_t outputs) {
  const int64_t width = width_of_panel(wide, by_pixel);
  return (outputs + width - 1) / width;
}
static int64_t panel_width(const Conv3x3& p) { return width_of_panel(p.wide, p.by_pixel); }
static int64_t panels(const Conv3x3& p) { return panels_of(p.wide, p.by_pixel, p.outputs); }

// The nine taps of as many inputs and outputs as a vector has lanes, which are the outputs.
template <class A> struct Taps {
  alignas(64) A of[9][kLanes<A>][kLanes<A>];

  // Of `outputs` outputs and `inputs` inputs from `w` on; outputs that there are not are zero.
  void gather(const Conv3x3Weight& p, const A* w, int64_t outputs, int64_t inputs) {
    constexpr int L = kLanes<A>;
    const bool whole = outputs == L && inputs == L;
    if (whole && p.of_output == 1) {
      for (int t = 0; t < 9; t++)
        for (int i = 0; i < L; i++) store_lanes<A>(of[place(p, t)][i], load_lanes<A>(w + offset(p, t) + i * p.of_input));
    } else if (whole && (p.of_input == 1 || (p.of_input == 9 && p.of_row == 3 && p.of_column == 1))) {
      // Neighbours in memory are inputs of one tap, or the taps of one input after those of another.
      for (int block = 0; block < 9; block++) {
        Vector<A> rows[L];
        for (int o = 0; o < L; o++) rows[o] = load_lanes<A>(w + o * p.of_output + (p.of_input == 1 ? offset(p, block) : block * L));
        exchange<A, L / 2>(rows);
        for (int l = 0; l < L; l++) {
          const int element = block * L + l;
          A* to = p.of_input == 1 ? of[place(p, block)][l] : of[place(p, element % 9)][element / 9];
          store_lanes<A>(to, rows[l]);
        }
      }
    } else {
      for (int t = 0; t < 9; t++)
        for (int64_t i = 0; i < inputs; i++)
          for (int o = 0; o < L; o++) of[place(p, t)][i][o] = o < outputs ? w[o * p.of_output + i * p.of_input + offset(p, t)] : A(0);
    }
  }

 private:
  static int64_t offset(const Conv3x3Weight& p, int tap) { return tap / 3 * p.of_row + tap % 3 * p.of_column; }
  static int place(const Conv3x3Weight& p, int tap) { return p.flipped ? 8 - tap : tap; }
};

// Vectors of outputs, of one input after another.
template <class A> static void weight_panels(const Conv3x3Weight& p, int64_t first, int64_t last) {
  using V = Vector<A>;
  constexpr int L = kLanes<A>;
  const int64_t width = width_of_panel(p.wide, p.by_pixel), count = panels_of(p.wide, p.by_pixel, p.outputs);
  Taps<A> taps;
  for (int64_t panel = first; panel < last; panel++)
    for (int64_t begin = 0; begin < width; begin += L)
      for (int64_t i0 = 0; i0 < p.inputs; i0 += L) {
        const int64_t wide = width - begin < L ? width - begin : L, output = panel * width + begin;
        const int64_t outputs = p.outputs - output < wide ? p.outputs - output : wide, inputs = p.inputs - i0 < L ? p.inputs - i0 : L;
        taps.gather(p, (const A*)p.weight + output * p.of_output + i0 * p.of_input, outputs > 0 ? outputs : 0, inputs);
        for (int64_t i = 0; i < inputs; i++) {
          V rows[4][3];
          for (int b = 0; b < 3; b++) {
            const V top = load_lanes<A>(taps.of[b][i]), middle = load_lanes<A>(taps.of[3 + b][i]), bottom = load_lanes<A>(taps.of[6 + b][i]);
            const V ends = A(0.5) * (top + bottom), half = A(0.5) * middle;
            rows[0][b] = top;
            rows[1][b] = p.doubled ? top + middle + bottom : ends + half;  // the factor of two is the patch's
            rows[2][b] = ends - half;
            rows[3][b] = bottom;
          }
          int64_t frequency = 0;
          for (int a = 0; a < 4; a++) {
            const V ends = A(0.5) * (rows[a][0] + rows[a][2]), half = A(0.5) * rows[a][1];
            const V sum = p.doubled ? rows[a][0] + rows[a][1] + rows[a][2] : ends + half;
            const V results[4] = {rows[a][0], sum, ends - half, rows[a][2]};
            for (int b = 0; b < 4; b++) {
              if (p.doubled && (a == 2 || b == 2)) continue;
              A* out = (A*)p.transformed + ((frequency++ * count + panel) * p.inputs + i0 + i) * width + begin;
              if (wide == L) store_lanes<A>(out, results[b]);
              else for (int64_t o = 0; o < wide; o++) out[o] = results[b][o];
            }
          }
        }
      }
}

// --- Images that lie plane by plane: a vector is of tiles, and neighbouring tiles' columns are two apart.

// Three neighbours of each pixel: padded[i] = line[column + i - 1], zero outside.
template <class A> static void pad(const A* __restrict line, int64_t width, int64_t column, int64_t length, A* __restrict padded) {
  for (int64_t i = 0; i < length + 2; i++) padded[i] = 0;
  if (!line) return;
  const int64_t first = column ? 0 : 1, last = column + length < width ? length + 2 : length + 1;
  for (int64_t i = first; i < last; i++) padded[i] = line[column + i - 1];
}

template <class A> static void doubled_plane_patches(const Conv3x3& p, int64_t tile, int64_t count, A* patches, int64_t frequency) {
  constexpr int L = kLanes<A>;
  A padded[3][kMostTiles + 2 * L] = {};
  for (int64_t c = 0; c < p.inputs; c++)
    for (int64_t at = 0; at < count;) {
      const Run run(p, tile + at, count - at);
      const A* plane = (const A*)p.image + (run.image * p.image_channels + c) * p.height * p.width;
      for (int a = 0; a < 3; a++) {
        const int64_t y = run.row - 1 + a;
        pad(y < 0 || y >= p.height ? nullptr : plane + y * p.width, p.width, run.column, run.length, padded[a]);
      }
      for (int64_t i = 0; i < run.length; i += L) {
        PairPatch<A> patch;
        for (int a = 0; a < 3; a++) patch.row(a, load_lanes<A>(padded[a] + i), load_lanes<A>(padded[a] + i + 1), load_lanes<A>(padded[a] + i + 2));
        patch.store(patches + c * p.block + at + i, frequency);
      }
      at += run.length;
    }
}

template <class A> static void plane_patches(const Conv3x3& p, int64_t tile, int64_t count, A* patches, int64_t frequency) {
  constexpr int L = kLanes<A>;
  A even[4][kMostTiles + 2 * L] = {}, odd[4][kMostTiles + 2 * L] = {};
  for (int64_t c = 0; c < p.inputs; c++)
    for (int64_t at = 0; at < count;) {
      const Run run(p, tile + at, count - at);
      const A* plane = (const A*)p.image + (run.image * p.image_channels + c) * p.height * p.width;
      for (int a = 0; a < 4; a++) {
        const int64_t y = 2 * run.row - 1 + a;
        split(y < 0 || y >= p.height ? nullptr : plane + y * p.width, p.width, run.column, run.length, even[a], odd[a]);
      }
      // A vector that reaches beyond the run is overwritten there by the next run's.
      for (int64_t i = 0; i < run.length; i += L) {
        Patch<A> patch;
        for (int a = 0; a < 4; a++)
          patch.row(a, load_lanes<A>(odd[a] + i), load_lanes<A>(even[a] + i), load_lanes<A>(odd[a] + i + 1), load_lanes<A>(even[a] + i + 1));
        patch.store(patches + c * p.block + at + i, frequency);
      }
      at += run.length;
    }
}

template <class A, bool DOUBLED> static void plane_results(const Conv3x3& p, int64_t tile, int64_t count, const A* products, int64_t frequency) {
  constexpr int L = kLanes<A>;
  A pixels[2][2][kMostTiles];
  for (int64_t o = 0; o < p.outputs; o++) {
    const Vector<A> bias = all<A>(p.bias ? ((const A*)p.bias)[o] : A(0));
    for (int64_t i = 0; i < count; i += L) {
      const Result<A, DOUBLED> result(products + o * p.block + i, frequency, bias);
      for (int a = 0; a < 2; a++)
        for (int b = 0; b < 2; b++) store_lanes<A>(pixels[a][b] + i, result.pixels[a][b]);
    }
    for (int64_t at = 0; at < count;) {
      const Run run(p, tile + at, count - at);
      const int64_t height = p.result_height(), width = p.result_width(), whole = (width - 2 * run.column) / 2, inside = whole < run.length ? whole : run.length;
      for (int64_t a = 0; a < 2 && 2 * run.row + a < height; a++) {
        A* __restrict line = (A*)p.result + ((run.image * p.result_channels + o) * height + 2 * run.row + a) * width + 2 * run.column;
        const A *__restrict even = pixels[a][0] + at, *__restrict odd = pixels[a][1] + at;
        for (int64_t i = 0; i < inside; i++) {
          line[2 * i] = even[i];
          line[2 * i + 1] = odd[i];
        }
        if (inside < run.length) line[2 * inside] = even[inside];
      }
      at += run.length;
    }
  }
}

template <class A, bool DOUBLED> static void convolve_planes(const Conv3x3& p, int64_t first, int64_t last) {
  constexpr int L = kLanes<A>;
  // Sixteen streams a power of two apart would compete for a few lines of level-1 cache: one line more than that.
  const int64_t count_of_panels = panels(p), of_patches = p.inputs * p.block + 16, of_products = count_of_panels * kRows * p.block + 16;
  const int64_t frequencies = frequencies_of(DOUBLED);
  Workspace<A> patches(frequencies * of_patches + L), products(frequencies * of_products);
  if (last * p.block > p.tiles()) patches.clear();  // tiles that are none: see Workspace
  for (int64_t block = first; block < last; block++) {
    const int64_t tile = block * p.block, count = p.tiles() - tile < p.block ? p.tiles() - tile : p.block;
    if constexpr (DOUBLED) doubled_plane_patches<A>(p, tile, count, patches.data(), of_patches);
    else plane_patches<A>(p, tile, count, patches.data(), of_patches);
    for (int64_t f = 0; f < frequencies; f++)
      for (int64_t panel = 0; panel < count_of_panels; panel++)
        for (int64_t t = 0; t < count; t += kWide<A>)
          multiply<kRows, false>((const A*)p.weight + (f * count_of_panels + panel) * p.inputs * kRows, kRows, patches.data() + f * of_patches + t, p.block, p.inputs,
                         products.data() + f * of_products + panel * kRows * p.block + t, p.block);
    plane_results<A, DOUBLED>(p, tile, count, products.data(), of_products);
  }
}

// --- Images that lie pixel by pixel: a vector is of channels.

template <class A, bool DOUBLED> static void pixel_results(const Conv3x3& p, int64_t tile, int64_t count, const A* products, int64_t frequency, int64_t pitch) {
  constexpr int L = kLanes<A>;
  const int64_t height = p.result_height(), width = p.result_width();
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    const int64_t rows = height - 2 * run.row < 2 ? 1 : 2, columns = width - 2 * run.column < 2 ? 1 : 2;
    A* place = (A*)p.result + ((run.image * height + 2 * run.row) * width + 2 * run.column) * p.result_channels;
    for (int64_t o = 0; o < p.outputs; o += L) {
      const Result<A, DOUBLED> result(products + t * pitch + o, frequency, p.bias ? load_lanes<A>((const A*)p.bias + o) : Vector<A>{});
      for (int64_t a = 0; a < rows; a++)
        for (int64_t b = 0; b < columns; b++) store_lanes<A>(place + (a * width + b) * p.result_channels + o, result.pixels[a][b]);
    }
  }
}

template <class A>
static void doubled_pixel_patches(const Conv3x3& p, int64_t tile, int64_t count, const A* zeros, A* patches, int64_t frequency) {
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    const A* pixels[3][3];
    for (int a = 0; a < 3; a++)
      for (int b = 0; b < 3; b++) {
        const int64_t y = run.row - 1 + a, x = run.column - 1 + b;
        const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
        pixels[a][b] = inside ? (const A*)p.image + ((run.image * p.height + y) * p.width + x) * p.image_channels : zeros;
      }
    for (int64_t c = 0; c < p.inputs; c += kLanes<A>) {
      PairPatch<A> patch;
      for (int a = 0; a < 3; a++) patch.row(a, load_lanes<A>(pixels[a][0] + c), load_lanes<A>(pixels[a][1] + c), load_lanes<A>(pixels[a][2] + c));
      patch.store(patches + t * p.inputs + c, frequency);
    }
  }
}

template <class A, bool DOUBLED> static void convolve_pixels(const Conv3x3& p, int64_t first, int64_t last) {
  const int64_t count_of_panels = panels(p), pitch = count_of_panels * kWide<A>;
  const int64_t of_patches = p.block * p.inputs + 16, of_products = p.block * pitch + 16;
  const int64_t frequencies = frequencies_of(DOUBLED);
  Workspace<A> patches(frequencies * of_patches), products(frequencies * of_products), zeros(p.inputs);
  zeros.clear();
  if (last * p.block > p.tiles()) patches.clear();  // rows of a register tile that are no tiles
  for (int64_t block = first; block < last; block++) {
    const int64_t tile = block * p.block, count = p.tiles() - tile < p.block ? p.tiles() - tile : p.block;
    if constexpr (DOUBLED) doubled_pixel_patches<A>(p, tile, count, zeros.data(), patches.data(), of_patches);
    else pixel_patches<A>(p, (const A*)p.image, p.inputs, tile, count, zeros.data(), patches.data(), of_patches, p.inputs);
    for (int64_t f = 0; f < frequencies; f++)
      for (int64_t panel = 0; panel < count_of_panels; panel++)
        for (int64_t t = 0; t < count; t += kRows)
          multiply<kRows, true>(patches.data() + f * of_patches + t * p.inputs, p.inputs, (const A*)p.weight + (f * count_of_panels + panel) * p.inputs * kWide<A>, kWide<A>, p.inputs,
                          products.data() + f * of_products + t * pitch + panel * kWide<A>, pitch);
    pixel_results<A, DOUBLED>(p, tile, count, products.data(), of_products, pitch);
  }
}

template <class A> static void convolve_blocks(const Conv3x3& p, int64_t first, int64_t last) {
  if (p.doubled) p.by_pixel ? convolve_pixels<A, true>(p, first, last) : convolve_planes<A, true>(p, first, last);
  else p.by_pixel ? convolve_pixels<A, false>(p, first, last) : convolve_planes<A, false>(p, first, last);
}

GENMOD_BY_WIDTH(weight_panels, Conv3x3Weight)
GENMOD_BY_WIDTH(convolve_blocks, Conv3x3)

}  // namespace

extern const Conv3x3Kernels conv3x3_kernels{panels, panel_width, weight_panels_any, convolve_blocks_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
