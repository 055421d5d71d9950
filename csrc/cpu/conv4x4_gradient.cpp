// The gradient of a 4x4 convolution with stride 2 by its weight, by minimal filtering: see conv4x4.h.
#include "phases.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// A y A' of the 2x2 pixels of the smaller map's tiles.
template <class A> static void spread_tiles(const Conv4x4Gradient& p, const Pixels<A>& grad, int64_t tile, int64_t count, A* out, int64_t frequency, int64_t pitch) {
  using V = Vector<A>;
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    const A* pixels[2][2];
    for (int a = 0; a < 2; a++)
      for (int b = 0; b < 2; b++) pixels[a][b] = grad.at(run.image, 2 * run.row + a, 2 * run.column + b);
    for (int64_t o = 0; o < p.outputs; o += kLanes<A>) {
      V rows[2][3];
      for (int a = 0; a < 2; a++) {
        const V first = load_lanes<A>(pixels[a][0] + o), second = load_lanes<A>(pixels[a][1] + o);
        rows[a][0] = first;
        rows[a][1] = first + second;
        rows[a][2] = -second;
      }
      A* place = out + t * pitch + o;
      for (int b = 0; b < 3; b++) {
        store_lanes<A>(place + b * frequency, rows[0][b]);
        store_lanes<A>(place + (3 + b) * frequency, rows[0][b] + rows[1][b]);
        store_lanes<A>(place + (6 + b) * frequency, -rows[1][b]);
      }
    }
  }
}

// Channels that there are not: nobody looks at their products, but see Workspace.
template <class A> static void clear_rest(A* out, int64_t frequencies, int64_t frequency, int64_t count, int64_t channels, int64_t pitch) {
  if (channels == pitch) return;
  for (int64_t f = 0; f < frequencies; f++)
    for (int64_t t = 0; t < count; t++)
      for (int64_t c = channels; c < pitch; c++) out[f * frequency + t * pitch + c] = 0;
}

template <class A> static void transform_tiles(const Conv4x4Gradient& p, int64_t first, int64_t last) {
  const int64_t image_pitch = p.image_pitch(), grad_pitch = p.grad_pitch();
  Workspace<A> zeros(p.inputs > p.outputs ? p.inputs : p.outputs);
  zeros.clear();
  const int64_t tile = p.begin + first, count = last - first, of_image = p.count * image_pitch, of_grad = p.count * grad_pitch;
  A *images = (A*)p.of_image + first * image_pitch, *grads = (A*)p.of_grad + first * grad_pitch;
  const Pixels<A> image{(const A*)p.image, 2 * p.height, 2 * p.width, p.inputs, zeros.data()}, grad{(const A*)p.grad, p.height, p.width, p.outputs, zeros.data()};
  phase_patches(p, image, tile, count, images, of_image, image_pitch, kPairFrequencies * of_image);
  spread_tiles(p, grad, tile, count, grads, of_grad, grad_pitch);
  clear_rest(images, kProducts4x4, of_image, count, p.inputs, image_pitch);
  clear_rest(grads, kPairFrequencies, of_grad, count, p.outputs, grad_pitch);
}

static int64_t bands_of_product(const Conv4x4Gradient& p) { return (p.outputs + kRows - 1) / kRows; }
static int64_t bands(const Conv4x4Gradient& p) { return kProducts4x4 * bands_of_product(p); }

template <class A> static void accumulate_bands(const Conv4x4Gradient& p, int64_t first, int64_t last) {
  const int64_t count = bands_of_product(p), image_pitch = p.image_pitch(), grad_pitch = p.grad_pitch();
  for (int64_t band = first; band < last; band++) {
    const int64_t which = band / count, row = band % count * kRows;
    const A *left = (const A*)p.of_grad + which % kPairFrequencies * p.count * grad_pitch + row, *right = (const A*)p.of_image + which * p.count * image_pitch;
    A* out = (A*)p.products + (which * grad_pitch + row) * image_pitch;
    for (int64_t c = 0; c < p.inputs; c += kWide<A>) multiply<kRows, false>(left, grad_pitch, right + c, image_pitch, p.count, out + c, image_pitch, p.begin > p.first);
  }
}

// G' u G of each phase, for as many inputs as a vector has lanes.
template <class A> static void weight_results(const Conv4x4WeightResult& p, int64_t first, int64_t last) {
  using V = Vector<A>;
  constexpr int L = kLanes<A>;
  static_assert(16 % L == 0, "an input's taps are whole vectors");
  for (int64_t o = first; o < last; o++)
    for (int64_t i = 0; i < p.inputs; i += L) {
      const A* u = (const A*)p.products + o * p.row + i;
      V taps[16];
      for (int phase = 0; phase < kPhases; phase++) {
        V sums[kPairFrequencies] = {};
        for (int64_t part = 0; part < p.parts; part++)
          for (int f = 0; f < kPairFrequencies; f++) sums[f] += load_lanes<A>(u + part * p.part + (phase * kPairFrequencies + f) * p.frequency);
        const int top = phase / 2 ? 0 : 1, left = phase % 2 ? 0 : 1;  // the first tap of the phase
        for (int a = 0; a < 2; a++) {
          V columns[3];
          for (int b = 0; b < 3; b++) columns[b] = sums[3 * a + b] + sums[3 * a + 3 + b];
          for (int b = 0; b < 2; b++) taps[4 * (top + 2 * a) + left + 2 * b] = columns[b] + columns[b + 1];
        }
      }
      const int64_t inputs = p.inputs - i < L ? p.inputs - i : L;
      if (p.last) {
        A* out = (A*)p.result + o * 16 * p.inputs + i;
        for (int t = 0; t < 16; t++)
          if (inputs == L) store_lanes<A>(out + t * p.inputs, taps[t]);
          else for (int64_t l = 0; l < inputs; l++) out[t * p.inputs + l] = taps[t][l];
        continue;
      }
      A* out = (A*)p.result + (o * p.inputs + i) * 16;
      for (int t = 0; t < 16; t += L) {
        exchange<A, L / 2>(taps + t);
        for (int64_t l = 0; l < inputs; l++) store_lanes<A>(out + l * 16 + t, taps[t + l]);
      }
    }
}

// Outputs whose products of all frequencies are made before their result: their sums stay in the cache.
constexpr int64_t kGroup = 2 * kRows;
static int64_t groups(const Conv4x4Gradient& p) { return (p.result_outputs + kGroup - 1) / kGroup; }

template <class A> static void finish_groups(const Conv4x4Gradient& p, int64_t first, int64_t last) {
  const int64_t image_pitch = p.image_pitch(), grad_pitch = p.grad_pitch(), frequency = kGroup * image_pitch;
  Workspace<A> products(kProducts4x4 * frequency);
  for (int64_t group = first; group < last; group++) {
    const int64_t begin = group * kGroup, outputs = p.result_outputs - begin < kGroup ? p.result_outputs - begin : kGroup;
    for (int64_t which = 0; which < kProducts4x4; which++) {
      const A *left = (const A*)p.of_grad + which % kPairFrequencies * p.count * grad_pitch + begin, *right = (const A*)p.of_image + which * p.count * image_pitch;
      for (int64_t row = 0; row < outputs; row += kRows)
        for (int64_t c = 0; c < p.inputs; c += kWide<A>)
          multiply<kRows, false>(left + row, grad_pitch, right + c, image_pitch, p.count, products.data() + which * frequency + row * image_pitch + c, image_pitch);
    }
    A* result = (A*)p.result + begin * p.result_inputs * 16;
    weight_results<A>({p.wide, p.result_inputs, outputs, 1, products.data(), image_pitch, frequency, 0, p.last, result}, 0, outputs);
  }
}

GENMOD_BY_WIDTH(transform_tiles, Conv4x4Gradient)
GENMOD_BY_WIDTH(accumulate_bands, Conv4x4Gradient)
GENMOD_BY_WIDTH(weight_results, Conv4x4WeightResult)
GENMOD_BY_WIDTH(finish_groups, Conv4x4Gradient)

}  // namespace

extern const Conv4x4GradientKernels conv4x4_gradient_kernels{transform_tiles_any, bands, accumulate_bands_any, groups, finish_groups_any, weight_results_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
