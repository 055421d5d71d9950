// The larger map of a 4x4 convolution with stride 2 as its four phases have it: see conv4x4.h.
#pragma once
#include "conv4x4.h"
#include "minimal_filtering.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// Where a pixel of a [batch][height][width][channels] image lies; in `zeros` if it is outside.
template <class A> struct Pixels {
  const A* image;
  int64_t height, width, channels;
  const A* zeros;
  const A* at(int64_t sample, int64_t y, int64_t x) const {
    return y >= 0 && y < height && x >= 0 && x < width ? image + ((sample * height + y) * width + x) * channels : zeros;
  }
};

// Transformed patches of each phase of some tiles. `frequency`, `pitch` and `phase`: how far apart those of the next
// frequency, tile and phase are.
template <class A, class Problem>
static void phase_patches(const Problem& p, const Pixels<A>& image, int64_t tile, int64_t count, A* patches, int64_t frequency, int64_t pitch, int64_t phase) {
  for (int64_t t = 0; t < count; t++) {
    const Run run(p, tile + t, 1);
    const A* pixels[6][6];
    for (int a = 0; a < 6; a++)
      for (int b = 0; b < 6; b++) pixels[a][b] = image.at(run.image, 4 * run.row - 1 + a, 4 * run.column - 1 + b);
    // The first row of the window is odd.
    for (int which = 0; which < kPhases; which++) {
      const int top = which / 2 ? 0 : 1, left = which % 2 ? 0 : 1;
      for (int64_t c = 0; c < image.channels; c += kLanes<A>) {
        PairPatch<A> patch;
        for (int a = 0; a < 3; a++)
          patch.row(a, load_lanes<A>(pixels[top + 2 * a][left] + c), load_lanes<A>(pixels[top + 2 * a][left + 2] + c), load_lanes<A>(pixels[top + 2 * a][left + 4] + c));
        patch.store(patches + t * pitch + which * phase + c, frequency);
      }
    }
  }
}

}  // namespace
}  // namespace GENMOD_ISA
}  // namespace genmod
