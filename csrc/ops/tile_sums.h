// The sums over all tiles that the gradient of a weight is made from, by minimal filtering.
#pragma once
#include "pixels.h"

#include <memory>

namespace genmod {

// Where the weight is small, parts of the tiles have sums of their own, and a part is one thread's: what it transforms
// stays in its cache. Else a part is all of them, and threads share its products.
constexpr int64_t kParts = 8;
constexpr int64_t kSmall = 768 << 10, kAllParts = 1 << 20;  // bytes of a part's sums, and of all parts'
constexpr int64_t kNear = 128 << 10, kFar = 2 << 20;  // elements of transformed tiles at a time, of one thread or of all

template <class Gradient, class Kernels> class TileSums {
 public:
  TileSums(const Gradient& p, const Kernels& kernels)
      : p_(p), kernels_(kernels), tiles_(p.batch * p.tile_rows() * p.tile_columns()), of_tile_(p.image_elements() + p.grad_elements()), item_(p.wide ? 8 : 4) {
    const int64_t of_part = p.sums() * item_, parts = std::min(kParts, std::max<int64_t>(2, kAllParts / of_part));
    parts_ = of_part > kSmall ? 1 : std::max<int64_t>(1, std::min(parts, tiles_ / (2 * most(kNear))));
  }
  int64_t parts() const { return parts_; }

  // Whether all tiles are transformed at once, and threads share their products.
  bool in_one_stretch() const { return parts_ == 1 && stretch() == tiles_; }
  // Then: transforms them into `scratch`, of `scratch_elements`; returns the problem with what `accumulate` would work on.
  int64_t scratch_elements() const { return stretch() * of_tile_; }
  Gradient transformed(void* scratch) const {
    Gradient p = p_;
    p.first = p.begin = 0;
    p.count = tiles_;
    p.of_image = scratch;
    p.of_grad = (char*)scratch + tiles_ * p.image_elements() * item_;
    run_items(kernels_.transform, p, p.count, (double)(3 * of_tile_));
    return p;
  }

  // Into `products`, `parts` times as many as there are sums.
  void add(void* products) const {
    using Kernel = void (*)(const Gradient&, int64_t, int64_t);
    if (parts_ == 1) {
      const std::unique_ptr<char[]> memory = scratch();
      return add_part(0, memory.get(), products, [](Kernel kernel, const Gradient& q, int64_t items, double work) { run_items(kernel, q, items, work); });
    }
    torch::stable::parallel_for(0, parts_, 1, [&](int64_t first, int64_t last) {
      const std::unique_ptr<char[]> memory = scratch();
      for (int64_t part = first; part < last; part++) add_part(part, memory.get(), products, [](Kernel kernel, const Gradient& q, int64_t items, double) { kernel(q, 0, items); });
    });
  }

 private:
  const Gradient& p_;
  const Kernels& kernels_;
  int64_t tiles_, of_tile_, item_, parts_;

  int64_t most(int64_t elements) const { return std::min(tiles_, std::max<int64_t>(64, elements / of_tile_)); }
  int64_t stretch() const { return most(parts_ > 1 ? kNear : kFar); }
  std::unique_ptr<char[]> scratch() const { return std::unique_ptr<char[]>(new char[(size_t)(scratch_elements() * item_)]); }

  // Adds up the tiles of a part, in stretches: those that `share` is called for may run on any thread.
  template <class Share> void add_part(int64_t part, char* scratch, void* products, const Share& share) const {
    Gradient p = p_;
    const int64_t last = tiles_ * (part + 1) / parts_;
    p.first = tiles_ * part / parts_;
    p.of_image = scratch;
    p.of_grad = scratch + stretch() * p.image_elements() * item_;
    p.products = (char*)products + part * p.sums() * item_;
    for (p.begin = p.first; p.begin < last; p.begin += stretch()) {
      p.count = std::min(stretch(), last - p.begin);
      share(kernels_.transform, p, p.count, (double)(3 * of_tile_));
      share(kernels_.accumulate, p, kernels_.bands(p), (double)(p.count * p.inputs));
    }
  }
};

}  // namespace genmod
