// 4x4 convolutions with stride 2, and their transposes, by minimal filtering: see conv4x4.h. The weight's gradient is in
// conv4x4_gradient.cpp.
#include "phases.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

constexpr int kShared = 5;  // elements of a row of a patch that is all phases'

static int64_t panel_width(bool wide) { return wide ? kWide<double> : kWide<float>; }
static int64_t panels(bool wide, int64_t outputs) {
  const int64_t width = panel_width(wide);
  return (outputs + width - 1) / width;
}

// --- The weight: G w G' of each phase.

// The sixteen taps of as many inputs and outputs as a vector has lanes, which are the outputs.
template <class A> struct SquareOfTaps {
  alignas(64) A of[16][kLanes<A>][kLanes<A>];

  // Of `outputs` outputs and `inputs` inputs from `w` on; those that there are not are zero.
  void gather(const Conv4x4Weight& p, const A* w, int64_t outputs, int64_t inputs) {
    constexpr int L = kLanes<A>;
    const bool whole = outputs == L && inputs == L;
    if (whole && p.of_output == 1) {
      for (int t = 0; t < 16; t++)
        for (int i = 0; i < L; i++) store_lanes<A>(of[t][i], load_lanes<A>(w + offset(p, t) + i * p.of_input));
    } else if (whole && p.of_input == 1) {
      for (int t = 0; t < 16; t++) turn(w + offset(p, t), p.of_output, [&](int l) { return of[t][l]; });
    } else if (whole && p.of_row == 4 && p.of_column == 1) {
      for (int i = 0; i < L; i++)
        for (int t = 0; t < 16; t += L) turn(w + i * p.of_input + t, p.of_output, [&](int l) { return of[t + l][i]; });
    } else {
      for (int t = 0; t < 16; t++)
        for (int i = 0; i < L; i++)
          for (int o = 0; o < L; o++) of[t][i][o] = o < outputs && i < inputs ? w[o * p.of_output + i * p.of_input + offset(p, t)] : A(0);
    }
  }

 private:
  static int64_t offset(const Conv4x4Weight& p, int tap) { return tap / 4 * p.of_row + tap % 4 * p.of_column; }
  template <class Place> static void turn(const A* from, int64_t of_output, const Place& place) {
    constexpr int L = kLanes<A>;
    Vector<A> rows[L];
    for (int o = 0; o < L; o++) rows[o] = load_lanes<A>(from + o * of_output);
    exchange<A, L / 2>(rows);
    for (int l = 0; l < L; l++) store_lanes<A>(place(l), rows[l]);
  }
};

// Which two taps of a row a phase has. A row y of the larger map and i of the smaller meet at tap y - 2 i + 1: those of
// even rows are 1 and 3, of odd ones 0 and 2. From the larger to the smaller, taps follow the larger map's rows; the other
// way they follow the smaller's, whose order is the opposite.
static int tap(bool transposed, int odd, int which) {
  const int first = odd ? 0 : 1;
  return first + 2 * (transposed ? 1 - which : which);
}

template <class A> static void transform_phase(const A (*taps)[kLanes<A>][kLanes<A>], int64_t input, bool transposed, int phase, Vector<A> (&out)[kPairFrequencies]) {
  using V = Vector<A>;
  V columns[3][2];
  for (int b = 0; b < 2; b++) {
    const int column = tap(transposed, phase % 2, b);
    const V first = load_lanes<A>(taps[4 * tap(transposed, phase / 2, 0) + column][input]), second = load_lanes<A>(taps[4 * tap(transposed, phase / 2, 1) + column][input]);
    columns[0][b] = first;
    columns[1][b] = first + second;
    columns[2][b] = second;
  }
  for (int a = 0; a < 3; a++) {
    out[3 * a] = columns[a][0];
    out[3 * a + 1] = columns[a][0] + columns[a][1];
    out[3 * a + 2] = columns[a][1];
  }
}

template <class A> static void weight_panels(const Conv4x4Weight& p, int64_t first, int64_t last) {
  constexpr int L = kLanes<A>;
  constexpr int64_t width = kWide<A>;
  const int64_t count = panels(p.wide, p.padded_outputs);
  SquareOfTaps<A> taps;
  Vector<A> results[kPairFrequencies];
  for (int64_t panel = first; panel < last; panel++)
    for (int64_t begin = 0; begin < width; begin += L)
      for (int64_t i0 = 0; i0 < p.padded_inputs; i0 += L) {
        const int64_t output = panel * width + begin;
        const int64_t outputs = p.outputs - output < L ? p.outputs - output : L, inputs = p.inputs - i0 < L ? p.inputs - i0 : L;
        taps.gather(p, (const A*)p.weight + output * p.of_output + i0 * p.of_input, outputs > 0 ? outputs : 0, inputs > 0 ? inputs : 0);
        for (int64_t i = 0; i < L; i++)
          for (int phase = 0; phase < kPhases; phase++) {
            transform_phase<A>(taps.of, i, p.transposed, phase, results);
            for (int f = 0; f < kPairFrequencies; f++) {
              const int64_t row = p.transposed ? ((phase * kPairFrequencies + f) * count + panel) * p.padded_inputs : ((f * count + panel) * kPhases + phase) * p.padded_inputs;
              store_lanes<A>((A*)p.transformed + (row + i0 + i) * width + begin, results[f]);
            }
          }
      }
}

// --- From the larger map to the smaller: products sum over the phases too.

template <class A> static Vector<A> bias_at(const void* bias, int64_t o) { return bias ? load_lanes<A>((const A*)bias + o) : Vector<A>{}; }

// The outputs that products are of: all of them, or a panel.
struct Outputs { int64_t first, last; };

template <class A> static void small_results(const Conv4x4& p, int64_t tile, int64_t count, const Outputs& outputs, const A* products, int64_t frequency, int64_t pitch) {
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    A* place = (A*)p.result + ((run.image * p.height + 2 * run.row) * p.width + 2 * run.column) * p.outputs;
    for (int64_t o = outputs.first; o < outputs.last; o += kLanes<A>) {
      const Result<A, true> result(products + t * pitch + o - outputs.first, frequency, bias_at<A>(p.bias, o));
      for (int64_t a = 0; a < 2 && 2 * run.row + a < p.height; a++)
        for (int64_t b = 0; b < 2 && 2 * run.column + b < p.width; b++) store_lanes<A>(place + (a * p.width + b) * p.outputs + o, result.pixels[a][b]);
    }
  }
}

// Rows a power of two apart would compete for a few lines of level-1 cache: one line more than that.
template <class A> static int64_t apart(int64_t n) { return n + kLanes<A>; }

// How transformed patches lie, and what of a weight they are multiplied with.
template <class A> struct Patches {
  int64_t terms, of_tile, frequencies, frequency;
  Patches(const Conv4x4& p, int64_t tiles)
      : terms(p.transposed ? p.inputs : kPhases * p.inputs), of_tile(apart<A>(terms)), frequencies(p.transposed ? kShared * kShared : kPairFrequencies), frequency(apart<A>(tiles * of_tile)) {}
  int64_t elements() const { return frequencies * frequency; }
};

// --- From the smaller map to the larger: its four phases share what their patches have in common, 25 elements of 36.

template <class A> static void shared_patches(const Conv4x4& p, const Pixels<A>& image, int64_t tile, int64_t count, A* patches, int64_t frequency, int64_t pitch) {
  using V = Vector<A>;
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    const A* pixels[4][4];
    for (int a = 0; a < 4; a++)
      for (int b = 0; b < 4; b++) pixels[a][b] = image.at(run.image, 2 * run.row - 1 + a, 2 * run.column - 1 + b);
    for (int64_t c = 0; c < p.inputs; c += kLanes<A>) {
      V rows[4][kShared];
      for (int a = 0; a < 4; a++) {
        const V x[4] = {load_lanes<A>(pixels[a][0] + c), load_lanes<A>(pixels[a][1] + c), load_lanes<A>(pixels[a][2] + c), load_lanes<A>(pixels[a][3] + c)};
        rows[a][0] = x[0] - x[1];
        rows[a][1] = x[1];
        rows[a][2] = x[1] - x[2];
        rows[a][3] = x[2];
        rows[a][4] = x[2] - x[3];
      }
      A* out = patches + t * pitch + c;
      for (int b = 0; b < kShared; b++) {
        store_lanes<A>(out + b * frequency, rows[0][b] - rows[1][b]);
        store_lanes<A>(out + (kShared + b) * frequency, rows[1][b]);
        store_lanes<A>(out + (2 * kShared + b) * frequency, rows[1][b] - rows[2][b]);
        store_lanes<A>(out + (3 * kShared + b) * frequency, rows[2][b]);
        store_lanes<A>(out + (4 * kShared + b) * frequency, rows[2][b] - rows[3][b]);
      }
    }
  }
}

template <class A> static void large_results(const Conv4x4& p, int64_t tile, int64_t count, int phase, const Outputs& outputs, const A* products, int64_t frequency, int64_t pitch) {
  const int64_t of_line = 2 * p.width * p.outputs;
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    A* place = (A*)p.result + (run.image * 2 * p.height + 4 * run.row + phase / 2) * of_line + (4 * run.column + phase % 2) * p.outputs;
    for (int64_t o = outputs.first; o < outputs.last; o += kLanes<A>) {
      const Result<A, true> result(products + t * pitch + o - outputs.first, frequency, bias_at<A>(p.bias, o));
      for (int64_t a = 0; a < 2 && 2 * run.row + a < p.height; a++)
        for (int64_t b = 0; b < 2 && 2 * run.column + b < p.width; b++) store_lanes<A>(place + 2 * a * of_line + 2 * b * p.outputs + o, result.pixels[a][b]);
    }
  }
}

// --- Both ways: patches, products, results.

template <class A> static void make_patches(const Conv4x4& p, int64_t tile, int64_t count, const A* zeros, A* patches, const Patches<A>& lie) {
  const int64_t scale = p.transposed ? 1 : 2;
  const Pixels<A> image{(const A*)p.image, scale * p.height, scale * p.width, p.inputs, zeros};
  if (p.transposed) shared_patches(p, image, tile, count, patches, lie.frequency, lie.of_tile);
  else phase_patches(p, image, tile, count, patches, lie.frequency, lie.of_tile, p.inputs);
}

// Of `count` tiles from `tile` on, whose patches these are, and of the outputs of `panels` panels, whose weight this is.
template <class A>
static void finish(const Conv4x4& p, int64_t tile, int64_t count, const A* patches, const Patches<A>& lie, const A* weight, int64_t panels, const Outputs& outputs, A* products, int64_t frequency) {
  const int64_t pitch = panels * kWide<A>, of_panel = lie.terms * kWide<A>;
  for (int phase = 0; phase < (p.transposed ? kPhases : 1); phase++) {
    for (int f = 0; f < kPairFrequencies; f++) {
      const int64_t seen = p.transposed ? (f / 3 + phase / 2 * 2) * kShared + f % 3 + phase % 2 * 2 : f;
      const A* of_weight = weight + (phase * kPairFrequencies + f) * panels * of_panel;
      for (int64_t panel = 0; panel < panels; panel++)
        for (int64_t t = 0; t < count; t += kRows)
          multiply<kRows, true>(patches + seen * lie.frequency + t * lie.of_tile, lie.of_tile, of_weight + panel * of_panel, kWide<A>, lie.terms, products + f * frequency + t * pitch + panel * kWide<A>, pitch);
    }
    if (p.transposed) large_results(p, tile, count, phase, outputs, products, frequency, pitch);
    else small_results(p, tile, count, outputs, products, frequency, pitch);
  }
}

template <class A> static void convolve_blocks(const Conv4x4& p, int64_t first, int64_t last) {
  const int64_t count_of_panels = panels(p.wide, p.outputs), frequency = apart<A>(p.block * count_of_panels * kWide<A>);
  const Patches<A> lie(p, p.block);
  Workspace<A> patches(lie.elements()), products(kPairFrequencies * frequency), zeros(p.inputs);
  zeros.clear();
  if (last * p.block > p.tiles()) patches.clear();  // rows of a register tile that are no tiles
  for (int64_t block = first; block < last; block++) {
    const int64_t tile = block * p.block, count = p.tiles() - tile < p.block ? p.tiles() - tile : p.block;
    make_patches(p, tile, count, zeros.data(), patches.data(), lie);
    finish(p, tile, count, patches.data(), lie, (const A*)p.weight, count_of_panels, {0, p.outputs}, products.data(), frequency);
  }
}

static int64_t whole_tiles(const Conv4x4& p) { return (p.tiles() + kRows - 1) / kRows * kRows; }
static int64_t patch_elements(const Conv4x4& p) { return p.wide ? Patches<double>(p, whole_tiles(p)).elements() : Patches<float>(p, whole_tiles(p)).elements(); }

template <class A> static void patch_blocks(const Conv4x4& p, int64_t first, int64_t last) {
  const Patches<A> lie(p, whole_tiles(p));
  Workspace<A> zeros(p.inputs);
  zeros.clear();
  const int64_t begin = first * p.block, end = last * p.block < p.tiles() ? last * p.block : p.tiles();
  make_patches(p, begin, end - begin, zeros.data(), (A*)p.patches + begin * lie.of_tile, lie);
  for (int64_t f = 0; f < lie.frequencies && end == p.tiles(); f++)
    for (int64_t i = end * lie.of_tile; i < whole_tiles(p) * lie.of_tile; i++) ((A*)p.patches)[f * lie.frequency + i] = 0;
}

template <class A> static void result_panels(const Conv4x4Panels& both, int64_t first, int64_t last) {
  const Conv4x4& p = both.conv;
  const Patches<A> lie(p, whole_tiles(p));
  const int64_t frequency = apart<A>(whole_tiles(p) * kWide<A>);
  Workspace<A> weight(kProducts4x4 * p.inputs * kWide<A>), products(kPairFrequencies * frequency);
  for (int64_t panel = first; panel < last; panel++) {
    const int64_t output = panel * kWide<A>, end = output + kWide<A>;
    Conv4x4Weight w = both.weight;
    w.weight = (const A*)w.weight + output * w.of_output;
    w.outputs = w.outputs - output < kWide<A> ? w.outputs - output : kWide<A>;
    w.padded_outputs = kWide<A>;
    w.transformed = weight.data();
    weight_panels<A>(w, 0, 1);
    finish(p, 0, p.tiles(), (const A*)p.patches, lie, weight.data(), 1, {output, end < p.outputs ? end : p.outputs}, products.data(), frequency);
  }
}

GENMOD_BY_WIDTH(weight_panels, Conv4x4Weight)
GENMOD_BY_WIDTH(convolve_blocks, Conv4x4)
GENMOD_BY_WIDTH(patch_blocks, Conv4x4)
GENMOD_BY_WIDTH(result_panels, Conv4x4Panels)

}  // namespace

extern const Conv4x4Kernels conv4x4_kernels{panels, panel_width, weight_panels_any, convolve_blocks_any, patch_elements, patch_blocks_any, result_panels_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
