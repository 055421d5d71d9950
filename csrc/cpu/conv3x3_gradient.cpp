// The gradient of a 3x3 convolution by its weight, by minimal filtering: see conv3x3.h.
#include "minimal_filtering.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// A y A' of the 2x2 pixels of a tile of the gradient.
template <class A, class V> static inline void spread(const V (*y)[2], A* out, int64_t frequency) {
  V rows[2][4];
  for (int a = 0; a < 2; a++) {
    rows[a][0] = y[a][0];
    rows[a][1] = y[a][0] + y[a][1];
    rows[a][2] = y[a][0] - y[a][1];
    rows[a][3] = -y[a][1];
  }
  for (int b = 0; b < 4; b++) {
    store_lanes<A>(out + b * frequency, rows[0][b]);
    store_lanes<A>(out + (4 + b) * frequency, rows[0][b] + rows[1][b]);
    store_lanes<A>(out + (8 + b) * frequency, rows[0][b] - rows[1][b]);
    store_lanes<A>(out + (12 + b) * frequency, -rows[1][b]);
  }
}

template <class A> static void pixel_gradients(const Conv3x3Gradient& p, int64_t tile, int64_t count, const A* zeros, A* out, int64_t frequency, int64_t pitch) {
  using V = Vector<A>;
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    const A* pixels[2][2];
    for (int a = 0; a < 2; a++)
      for (int b = 0; b < 2; b++) {
        const int64_t y = 2 * run.row + a, x = 2 * run.column + b;
        pixels[a][b] = y < p.height && x < p.width ? (const A*)p.grad + ((run.image * p.height + y) * p.width + x) * p.outputs : zeros;
      }
    for (int64_t o = 0; o < p.outputs; o += kLanes<A>) {
      V y[2][2];
      for (int a = 0; a < 2; a++)
        for (int b = 0; b < 2; b++) y[a][b] = load_lanes<A>(pixels[a][b] + o);
      spread(y, out + t * pitch + o, frequency);
    }
  }
}

// What a tile has in registers, a vector of tiles for each frequency.
template <class A> struct PlanePatch {
  static void make(const Conv3x3Gradient& p, const A* plane, const Run& run, Vector<A> (*out)[kLanes<A>], int lane) {
    constexpr int L = kLanes<A>;
    A even[4][3 * L], odd[4][3 * L];  // what lies behind a run's end makes tiles that are none
    Patch<A> patch;
    for (int a = 0; a < 4; a++) {
      const int64_t y = 2 * run.row - 1 + a;
      split(y < 0 || y >= p.height ? nullptr : plane + y * p.width, p.width, run.column, run.length, even[a], odd[a]);
      patch.row(a, load_lanes<A>(odd[a]), load_lanes<A>(even[a]), load_lanes<A>(odd[a] + 1), load_lanes<A>(even[a] + 1));
    }
    patch.store((A*)out[0] + lane * L, L * L);
  }
};

template <class A> struct PlaneGradient {
  static void make(const Conv3x3Gradient& p, const A* plane, const Run& run, Vector<A> (*out)[kLanes<A>], int lane) {
    constexpr int L = kLanes<A>;
    A even[2][3 * L], odd[2][3 * L];
    for (int a = 0; a < 2; a++) {
      const int64_t y = 2 * run.row + a;
      split(y >= p.height ? nullptr : plane + y * p.width, p.width, run.column, run.length, even[a], odd[a]);
    }
    const Vector<A> y[2][2] = {{load_lanes<A>(even[0]), load_lanes<A>(odd[0] + 1)}, {load_lanes<A>(even[1]), load_lanes<A>(odd[1] + 1)}};
    spread(y, (A*)out[0] + lane * L, L * L);
  }
};

// As many channels and tiles at a time as a vector has lanes: made along the tiles, then turned along the channels.
template <class A, class Make>
static void planes_to_tiles(const Conv3x3Gradient& p, const A* image, int64_t channels, int64_t tile, int64_t count, A* out, int64_t frequency, int64_t pitch) {
  constexpr int L = kLanes<A>;
  Vector<A> made[kFrequencies][L];
  for (int64_t c = 0; c < channels; c += L)
    for (int64_t at = 0; at < count;) {
      const Run run(p, tile + at, count - at < L ? count - at : L);
      for (int l = 0; l < L; l++) {
        if (c + l < channels) Make::make(p, image + (run.image * channels + c + l) * p.height * p.width, run, made, l);
        else for (int f = 0; f < kFrequencies; f++) made[f][l] = Vector<A>{};
      }
      for (int f = 0; f < kFrequencies; f++) {
        exchange<A, L / 2>(made[f]);
        for (int64_t t = 0; t < run.length; t++) store_lanes<A>(out + f * frequency + (at + t) * pitch + c, made[f][t]);
      }
      at += run.length;
    }
}

// Channels that there are not: nobody looks at their products, but see Workspace.
template <class A> static void clear_rest(A* out, int64_t frequency, int64_t count, int64_t channels, int64_t pitch) {
  if (channels == pitch) return;
  for (int f = 0; f < kFrequencies; f++)
    for (int64_t t = 0; t < count; t++)
      for (int64_t c = channels; c < pitch; c++) out[f * frequency + t * pitch + c] = 0;
}

// How many channels are written: whole vectors of them.
template <class A> static int64_t written(int64_t planes, int64_t padded) {
  return planes ? (planes + kLanes<A> - 1) / kLanes<A> * kLanes<A> : padded;
}

template <class A> static void transform_tiles(const Conv3x3Gradient& p, int64_t first, int64_t last) {
  const int64_t most = p.inputs > p.outputs ? p.inputs : p.outputs, image_pitch = p.image_pitch(), grad_pitch = p.grad_pitch();
  Workspace<A> zeros(most);
  zeros.clear();
  const int64_t tile = p.begin + first, count = last - first, of_image = p.count * image_pitch, of_grad = p.count * grad_pitch;
  A *images = (A*)p.of_image + first * image_pitch, *grads = (A*)p.of_grad + first * grad_pitch;
  if (p.image_planes) planes_to_tiles<A, PlanePatch<A>>(p, (const A*)p.image, p.image_planes, tile, count, images, of_image, image_pitch);
  else pixel_patches<A>(p, (const A*)p.image, p.inputs, tile, count, zeros.data(), images, of_image, image_pitch);
  if (p.grad_planes) planes_to_tiles<A, PlaneGradient<A>>(p, (const A*)p.grad, p.grad_planes, tile, count, grads, of_grad, grad_pitch);
  else pixel_gradients<A>(p, tile, count, zeros.data(), grads, of_grad, grad_pitch);
  clear_rest(images, of_image, count, written<A>(p.image_planes, p.inputs), image_pitch);
  clear_rest(grads, of_grad, count, written<A>(p.grad_planes, p.outputs), grad_pitch);
}

static int64_t bands_of_frequency(const Conv3x3Gradient& p) { return (p.outputs + kRows - 1) / kRows; }
static int64_t bands(const Conv3x3Gradient& p) { return kFrequencies * bands_of_frequency(p); }

template <class A> static void accumulate_bands(const Conv3x3Gradient& p, int64_t first, int64_t last) {
  const int64_t count = bands_of_frequency(p), image_pitch = p.image_pitch(), grad_pitch = p.grad_pitch();
  for (int64_t band = first; band < last; band++) {
    const int64_t f = band / count, row = band % count * kRows;
    const A *left = (const A*)p.of_grad + f * p.count * grad_pitch + row, *right = (const A*)p.of_image + f * p.count * image_pitch;
    A* out = (A*)p.products + (f * grad_pitch + row) * image_pitch;
    for (int64_t c = 0; c < p.inputs; c += kWide<A>) multiply<kRows, false>(left, grad_pitch, right + c, image_pitch, p.count, out + c, image_pitch, p.begin > p.first);
  }
}

// G' u G
template <class A> static void weight_results(const Conv3x3WeightResult& p, int64_t first, int64_t last) {
  for (int64_t o = first; o < last; o++)
    for (int64_t i = 0; i < p.inputs; i++) {
      const A* u = (const A*)p.products + o * p.row + i;
      A rows[3][4];
      for (int b = 0; b < 4; b++) {
        A sums[4] = {};
        for (int64_t part = 0; part < p.parts; part++)
          for (int a = 0; a < 4; a++) sums[a] += u[part * p.part + (4 * a + b) * p.frequency];
        const A u0 = sums[0], u1 = sums[1], u2 = sums[2], u3 = sums[3];
        rows[0][b] = u0 + A(0.5) * (u1 + u2);
        rows[1][b] = A(0.5) * (u1 - u2);
        rows[2][b] = A(0.5) * (u1 + u2) + u3;
      }
      A* out = (A*)p.result + (o * p.inputs + i) * 9;
      for (int a = 0; a < 3; a++) {
        out[3 * a] = rows[a][0] + A(0.5) * (rows[a][1] + rows[a][2]);
        out[3 * a + 1] = A(0.5) * (rows[a][1] - rows[a][2]);
        out[3 * a + 2] = A(0.5) * (rows[a][1] + rows[a][2]) + rows[a][3];
      }
    }
}

GENMOD_BY_WIDTH(transform_tiles, Conv3x3Gradient)
GENMOD_BY_WIDTH(accumulate_bands, Conv3x3Gradient)
GENMOD_BY_WIDTH(weight_results, Conv3x3WeightResult)

}  // namespace

extern const Conv3x3GradientKernels conv3x3_gradient_kernels{transform_tiles_any, bands, accumulate_bands_any, weight_results_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
