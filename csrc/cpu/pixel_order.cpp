// Images from one order of their elements to another: see pixel_order.h.
#include "pixel_order.h"

#include "transpose.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

template <class A> static void to_pixels(const PixelCopy& p, int64_t first, int64_t last) {
  constexpr int L = kLanes<A>;
  const int64_t pitch = padded_channels(p.channels);
  for (int64_t line = first; line < last; line++) {
    const A* from = (const A*)p.from + line / p.height * p.of_image + line % p.height * p.of_row;
    A* to = (A*)p.to + line * p.width * pitch;
    const int64_t squares = p.of_column == 1 ? p.width / L * L : 0, whole = squares ? p.channels / L * L : 0;
    for (int64_t c = 0; c < whole; c += L)
      for (int64_t x = 0; x < squares; x += L) {
        Vector<A> rows[L];
        for (int l = 0; l < L; l++) rows[l] = load_lanes<A>(from + (c + l) * p.of_channel + x);
        exchange<A, L / 2>(rows);
        for (int l = 0; l < L; l++) store_lanes<A>(to + (x + l) * pitch + c, rows[l]);
      }
    for (int64_t x = 0; x < p.width; x++) {
      for (int64_t c = x < squares ? whole : 0; c < p.channels; c++) to[x * pitch + c] = from[c * p.of_channel + x * p.of_column];
      for (int64_t c = p.channels; c < pitch; c++) to[x * pitch + c] = 0;
    }
  }
}

template <class A> static void to_planes(const PlaneCopy& p, int64_t first, int64_t last) {
  constexpr int L = kLanes<A>;
  const int64_t pitch = padded_channels(p.channels), whole = p.channels / L * L;
  for (int64_t item = first; item < last; item++) {
    const int64_t image = item / p.groups(), begin = item % p.groups() * kPixelVector, end = begin + kPixelVector < p.pixels ? begin + kPixelVector : p.pixels;
    const A* from = (const A*)p.from + image * p.pixels * pitch;
    A* to = (A*)p.to + image * p.channels * p.pixels;
    for (int64_t x = begin; x < end; x += L) {
      const bool square = x + L <= end;
      for (int64_t c = 0; square && c < whole; c += L) {
        Vector<A> rows[L];
        for (int l = 0; l < L; l++) rows[l] = load_lanes<A>(from + (x + l) * pitch + c);
        exchange<A, L / 2>(rows);
        for (int l = 0; l < L; l++) store_lanes<A>(to + (c + l) * p.pixels + x, rows[l]);
      }
      for (int64_t c = square ? whole : 0; c < p.channels; c++)
        for (int64_t i = x; i < x + L && i < end; i++) to[c * p.pixels + i] = from[i * pitch + c];
    }
  }
}

GENMOD_BY_WIDTH(to_pixels, PixelCopy)
GENMOD_BY_WIDTH(to_planes, PlaneCopy)

}  // namespace

extern const PixelOrderKernels pixel_order_kernels{to_pixels_any, to_planes_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
