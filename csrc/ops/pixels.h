// Images as the kernels of minimal filtering take them: pixel by pixel, channels padded with zeros to whole vectors.
#pragma once
#include "cpu/pixel_order.h"

#include "parallel.h"
#include "tensors.h"

namespace genmod {

template <class Params> void run_items(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t items, double work) {
  run_pieces(kernel, p, items, work, 200000);
}

// Whether it is like that already, but for strides within the format.
inline bool is_pixel_by_pixel(const Tensor& t) { return format_of(View(t)) != MemoryFormat::Contiguous && t.size(1) % kPixelVector == 0; }

// Images `first` to `last` of a batch, from any strides, to `to`.
inline void copy_pixels(const Tensor& t, int64_t first, int64_t last, bool wide, void* to) {
  const void* from = (const char*)t.const_data_ptr() + first * t.stride(0) * (wide ? 8 : 4);
  const PixelCopy p{wide, t.size(1), t.size(2), t.size(3), from, t.stride(0), t.stride(1), t.stride(2), t.stride(3), to};
  run_items(GENMOD_SELECT(pixel_order_kernels).to_pixels, p, (last - first) * t.size(2), (double)(t.size(3) * t.size(1) * 4));
}

// The whole batch: [batch][height][width][padded channels]; `t` itself, if it is that.
inline Tensor pixel_by_pixel(const Tensor& t, bool wide) {
  if (is_pixel_by_pixel(t)) return densified(t, MemoryFormat::ChannelsLast);
  Tensor out = empty({t.size(0), t.size(2), t.size(3), padded_channels(t.size(1))}, t, t.scalar_type());
  copy_pixels(t, 0, t.size(0), wide, out.mutable_data_ptr());
  return out;
}

// The way back, to images `first` to `last` of a contiguous batch.
inline void copy_planes(const void* from, int64_t first, int64_t last, bool wide, Tensor& t) {
  const int64_t pixels = t.size(2) * t.size(3);
  const PlaneCopy p{wide, t.size(1), pixels, from, (char*)t.mutable_data_ptr() + first * t.size(1) * pixels * (wide ? 8 : 4)};
  run_items(GENMOD_SELECT(pixel_order_kernels).to_planes, p, (last - first) * p.groups(), (double)(kPixelVector * t.size(1) * 4));
}

}  // namespace genmod
