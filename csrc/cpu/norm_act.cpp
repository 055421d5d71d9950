// Normalisation and activation. The formulas are those of genmod/reference/norm_act.py.
#include "norm_act.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "activation.h"
#include "by_storage.h"
#include "norm_pieces.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

template <class A> struct Bound { A negative_slope, gain, clamp; };

// The loops that depend on the activation, one function each.
template <bool BOUNDED, class A, class C> struct Tiles {
  template <Activation F> struct Forward {
    static void function(const A* __restrict x, A* __restrict y, C mean, C slope, C offset, Bound<A> bound, int64_t n) {
      for (int64_t i = 0; i < n; i++) {
        const A z = (x[i] - pick<A>(mean, i)) * pick<A>(slope, i) + pick<A>(offset, i);
        A v = activate<F>(z, bound.negative_slope);
        if (BOUNDED) {
          v = v * bound.gain;
          v = v > bound.clamp ? bound.clamp : v;
          v = v < -bound.clamp ? -bound.clamp : v;
        }
        y[i] = v;
      }
    }
  };
  template <Activation F> struct Slope {
    static void function(const A* __restrict x, const A* __restrict grad, A* __restrict dz, C mean, C slope, C offset, Bound<A> bound, int64_t n) {
      for (int64_t i = 0; i < n; i++) {
        const A z = (x[i] - pick<A>(mean, i)) * pick<A>(slope, i) + pick<A>(offset, i);
        A d = activation_slope<F>(z, bound.negative_slope);
        if (BOUNDED) {
          const A v = activate<F>(z, bound.negative_slope) * bound.gain;
          d = d * bound.gain;
          d = v > bound.clamp || v < -bound.clamp ? A(0) : d;
        }
        dz[i] = grad[i] * d;
      }
    }
  };
};
template <class A, class C> static auto forward_tile(const NormShared& p) {
  return p.bounded ? function_for<Tiles<true, A, C>::template Forward>(p.activation) : function_for<Tiles<false, A, C>::template Forward>(p.activation);
}
template <class A, class C> static auto slope_tile(const NormShared& p) {
  return p.bounded ? function_for<Tiles<true, A, C>::template Slope>(p.activation) : function_for<Tiles<false, A, C>::template Slope>(p.activation);
}
template <class A> static Bound<A> bound_of(const NormShared& p) { return {(A)p.negative_slope, (A)p.gain, (A)p.clamp}; }

// Where statistics do not depend on x there is no tilt, and an infinite x or a NaN must not get into the gradient by it.
template <class A, class C>
static void gradient_tile(const A* __restrict x, const A* __restrict dz, A* __restrict dx, C mean, C slope, C tilt, C level, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const A bend = pick<A>(tilt, i), bent = (x[i] - pick<A>(mean, i)) * bend;
    dx[i] = dz[i] * pick<A>(slope, i) + ((bend == 0 ? A(0) : bent) + pick<A>(level, i));
  }
}

// The same from a dz that lies where dx is to be.
template <class A> static void gradient_in_place(const A* __restrict x, A* __restrict dx, A mean, A slope, A tilt, A level, int64_t n) {
  for (int64_t i = 0; i < n; i++) dx[i] = dx[i] * slope + ((x[i] - mean) * tilt + level);
}

template <class A> static void add_tile(const A* __restrict a, const A* __restrict b, A* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}
template <class A> static void accumulate_tile(const A* __restrict a, A* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] += a[i];
}
template <class A> static void accumulate_squares(const A* __restrict x, const A* __restrict mean, A* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] += (x[i] - mean[i]) * (x[i] - mean[i]);
}

// Sums over a stretch of a plane.
template <class A> static double sum_of_squares(const A* __restrict x, A mean, int64_t n) {
  return sum_of<A>(n, [=](int64_t i) __attribute__((always_inline)) { return (x[i] - mean) * (x[i] - mean); });
}
// Moments of n elements joined to those of `count` (Chan, Golub and LeVeque).
GENMOD_INLINE void join(double& mean, double& squares, double count, double other_mean, double other_squares, double n) {
  const double delta = other_mean - mean, share = n / (count + n);
  mean += delta * share;
  squares += other_squares + delta * delta * count * share;
}

template <class S> static void add(const NormForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  alignas(64) A xb[kTile], rb[kTile], sb[kTile];
  each_piece(p, first, last, [&](int64_t, int64_t, const NormPlace&, int64_t offset, int64_t length) {
    tiles(offset, length, kTile, [&](int64_t at, int64_t n) {
      add_tile(read<A, S>(p.x, at, n, xb), read<A, S>(p.residual, at, n, rb), target<A, S>(p.sum, at, sb), n);
      write<A, S>(sb, p.sum, at, n);
    });
  });
}

// A bundle's moments count as those of each of its pieces, with an equal share of the squares: joined they are the same.
template <class S> static void moments_of_planes(const NormForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const NormCut& cut = p.cut;
  alignas(64) A buffer[kTile];
  for (int64_t t = first; t < last;) {
    const NormPlace place(cut, t);
    const int64_t left = cut.pieces - place.piece, pieces = left < cut.bundle ? left : cut.bundle;
    double mean = 0, squares = 0, count = 0;
    tiles(place.offset(cut), pieces * place.length(cut), kTile, [&](int64_t at, int64_t n) {
      const A* x = read<A, S>(p.x, at, n, buffer);
      const double tile_mean = sum(x, n) / (double)n;
      const A near = (A)tile_mean;
      const double away = tile_mean - (double)near;  // the squares are about `near`; move them to the mean
      const double tile_squares = sum_of_squares(x, near, n) - away * away * (double)n;
      if (count > 0) join(mean, squares, count, tile_mean, tile_squares, (double)n);
      else mean = tile_mean, squares = tile_squares;
      count += (double)n;
    });
    for (const int64_t end = t + pieces; t < end; t++) {
      p.moments[2 * t] = mean;
      p.moments[2 * t + 1] = squares / (double)pieces;
    }
  }
}

template <class S> static void moments_of_rows(const NormForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const NormCut& cut = p.cut;
  const Lanes lanes(cut.lanes);
  const int64_t together = cut.lanes / cut.statistics;  // lanes to a statistic
  const auto buffer = room<A, S>(lanes.tile());
  std::vector<A> sums((size_t)lanes.width), near((size_t)lanes.width);
  std::vector<double> tile_mean((size_t)cut.statistics), tile_squares((size_t)cut.statistics);
  each_piece(p, first, last, [&](int64_t t, int64_t, const NormPlace&, int64_t offset, int64_t length) {
    double count = 0, *out = p.moments + 2 * t * cut.statistics;
    std::fill_n(out, 2 * cut.statistics, 0.);
    tiles(offset, length, lanes.tile(), [&](int64_t at, int64_t n) {
      const A* x = read<A, S>(p.x, at, n, buffer.get());
      const double share = (double)(n / cut.lanes * together);
      lanes.stretches(n, [&](int64_t i, int64_t lane, int64_t m) { accumulate_tile(x + i, sums.data() + lane, m); });
      std::fill(tile_mean.begin(), tile_mean.end(), 0.);
      lanes.fold(sums.data(), together, tile_mean.data());
      A* c = near.data();
      for (int64_t w = 0; w < lanes.width; w += lanes.count)
        for (int64_t g = 0; g < cut.statistics; g++, c += together) {
          if (w == 0) tile_mean[(size_t)g] /= share;
          std::fill_n(c, together, (A)tile_mean[(size_t)g]);
        }
      lanes.stretches(n, [&](int64_t i, int64_t lane, int64_t m) { accumulate_squares(x + i, near.data() + lane, sums.data() + lane, m); });
      std::fill(tile_squares.begin(), tile_squares.end(), 0.);
      lanes.fold(sums.data(), together, tile_squares.data());
      for (int64_t g = 0; g < cut.statistics; g++) {
        const double mean = tile_mean[(size_t)g], away = mean - (double)near[(size_t)(g * together)];
        join(out[2 * g], out[2 * g + 1], count, mean, tile_squares[(size_t)g] - away * away * share, share);
      }
      count += share;
    });
  });
}

template <class S> static void apply_to_planes(const NormForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto activate_tile = forward_tile<A, A>(p);
  alignas(64) A xb[kTile], yb[kTile];
  each_piece(p, first, last, [&](int64_t, int64_t block, const NormPlace& place, int64_t offset, int64_t length) {
    const int64_t c = block * p.cut.block_channels() + place.channel(p.cut);
    tiles(offset, length, kTile, [&](int64_t at, int64_t n) {
      const A* x = read<A, S>(p.x, at, n, xb);
      activate_tile(x, target<A, S>(p.y, at, yb), (A)p.mean[c], (A)p.slope[c], (A)p.offset[c], bound_of<A>(p), n);
      write<A, S>(yb, p.y, at, n);
    });
  });
}

template <class S> static void apply_to_rows(const NormForward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto activate_tile = forward_tile<A, const A*>(p);
  const Lanes lanes(p.cut.lanes);
  LaneCoefficients<A> k(p.cut, {p.mean, p.slope, p.offset});
  const auto xb = room<A, S>(lanes.tile()), yb = room<A, S>(lanes.tile());
  each_piece(p, first, last, [&](int64_t, int64_t block, const NormPlace&, int64_t offset, int64_t length) {
    k.set(block);
    tiles(offset, length, lanes.tile(), [&](int64_t at, int64_t n) {
      const A* x = read<A, S>(p.x, at, n, xb.get());
      A* y = target<A, S>(p.y, at, yb.get());
      lanes.stretches(n, [&](int64_t i, int64_t lane, int64_t m) {
        activate_tile(x + i, y + i, k.at(0, lane), k.at(1, lane), k.at(2, lane), bound_of<A>(p), m);
      });
      write<A, S>(yb.get(), p.y, at, n);
    });
  });
}

template <bool SUMS, bool GRADIENT, class S> static void backward_of_planes(const NormBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto differentiate_tile = slope_tile<A, A>(p);
  alignas(64) A xb[kTile], gb[kTile], db[kTile], ob[kTile];
  each_piece(p, first, last, [&](int64_t t, int64_t block, const NormPlace& place, int64_t offset, int64_t length) {
    const int64_t c = block * p.cut.block_channels() + place.channel(p.cut);
    const A mean = (A)p.mean[c], slope = (A)p.slope[c];
    double dz_sum = 0, product_sum = 0;
    tiles(offset, length, kTile, [&](int64_t at, int64_t n) {
      const A* x = read<A, S>(p.x, at, n, xb);
      A* dx = GRADIENT || p.keep_dz ? target<A, S>(p.dx, at, ob) : nullptr;
      if (GRADIENT && p.keep_dz) {
        gradient_in_place(x, dx, mean, slope, (A)p.tilt[c], (A)p.level[c], n);
        if (p.grad_sum) accumulate_tile(read<A, S>(p.grad_sum, at, n, gb), dx, n);
        return;
      }
      A* dz = p.keep_dz ? dx : db;
      differentiate_tile(x, read<A, S>(p.grad, at, n, gb), dz, mean, slope, (A)p.offset[c], bound_of<A>(p), n);
      if (SUMS) {
        dz_sum += sum(dz, n);
        product_sum += sum_of_products(dz, x, mean, n);
      }
      if (GRADIENT) {
        gradient_tile<A>(x, dz, dx, mean, slope, (A)p.tilt[c], (A)p.level[c], n);
        if (p.grad_sum) accumulate_tile(read<A, S>(p.grad_sum, at, n, gb), dx, n);
        write<A, S>(ob, p.dx, at, n);
      }
    });
    if (SUMS) {
      p.sums[2 * t] = dz_sum;
      p.sums[2 * t + 1] = product_sum;
    }
  });
}

template <class A> static void sum_lanes(const A* __restrict dz, const A* __restrict x, const A* __restrict mean, A* __restrict dz_sums, A* __restrict product_sums, int64_t n) {
  for (int64_t l = 0; l < n; l++) {
    dz_sums[l] += dz[l];
    product_sums[l] += dz[l] * (x[l] - mean[l]);
  }
}

template <bool SUMS, bool GRADIENT, class S> static void backward_of_rows(const NormBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto differentiate_tile = slope_tile<A, const A*>(p);
  const Lanes lanes(p.cut.lanes);
  const size_t width = (size_t)lanes.width;
  LaneCoefficients<A> k(p.cut, {p.mean, p.slope, p.offset, p.tilt, p.level});
  const auto xb = room<A, S>(lanes.tile()), gb = room<A, S>(lanes.tile()), ob = room<A, S>(lanes.tile());
  std::vector<A> dz_sums(width), product_sums(width);
  alignas(64) A dz[Lanes::kAtOnce];
  std::vector<double> dz_totals((size_t)p.cut.width()), product_totals((size_t)p.cut.width());
  each_piece(p, first, last, [&](int64_t t, int64_t block, const NormPlace&, int64_t offset, int64_t length) {
    k.set(block);
    std::fill(dz_totals.begin(), dz_totals.end(), 0.);
    std::fill(product_totals.begin(), product_totals.end(), 0.);
    tiles(offset, length, lanes.tile(), [&](int64_t at, int64_t n) {
      const A* x = read<A, S>(p.x, at, n, xb.get());
      const A* grad = read<A, S>(p.grad, at, n, gb.get());
      A* dx = GRADIENT ? target<A, S>(p.dx, at, ob.get()) : nullptr;
      lanes.stretches(n, [&](int64_t i, int64_t lane, int64_t m) {
        differentiate_tile(x + i, grad + i, dz, k.at(0, lane), k.at(1, lane), k.at(2, lane), bound_of<A>(p), m);
        if (SUMS) sum_lanes(dz, x + i, k.at(0, lane), dz_sums.data() + lane, product_sums.data() + lane, m);
        if (GRADIENT) gradient_tile<A>(x + i, dz, dx + i, k.at(0, lane), k.at(1, lane), k.at(3, lane), k.at(4, lane), m);
      });
      if (SUMS) {
        lanes.fold(dz_sums.data(), p.cut.spread, dz_totals.data());
        lanes.fold(product_sums.data(), p.cut.spread, product_totals.data());
      }
      if (GRADIENT) {
        if (p.grad_sum) accumulate_tile(read<A, S>(p.grad_sum, at, n, gb.get()), dx, n);
        write<A, S>(ob.get(), p.dx, at, n);
      }
    });
    double* out = p.sums + 2 * t * p.cut.width();
    for (size_t c = 0; SUMS && c < dz_totals.size(); c++) {
      out[2 * c] = dz_totals[c];
      out[2 * c + 1] = product_totals[c];
    }
  });
}

// Entry points: pick the storage type and the form of memory.
GENMOD_BY_STORAGE(add, NormForward, add<S>(p, first, last);)
GENMOD_BY_STORAGE(moments, NormForward, p.cut.in_rows ? moments_of_rows<S>(p, first, last) : moments_of_planes<S>(p, first, last);)
GENMOD_BY_STORAGE(apply, NormForward, p.cut.in_rows ? apply_to_rows<S>(p, first, last) : apply_to_planes<S>(p, first, last);)
template <bool SUMS, bool GRADIENT, class S> static void backward(const NormBackward& p, int64_t first, int64_t last) {
  p.cut.in_rows ? backward_of_rows<SUMS, GRADIENT, S>(p, first, last) : backward_of_planes<SUMS, GRADIENT, S>(p, first, last);
}
GENMOD_BY_STORAGE(sums, NormBackward, backward<true, false, S>(p, first, last);)
GENMOD_BY_STORAGE(gradient, NormBackward, backward<false, true, S>(p, first, last);)
GENMOD_BY_STORAGE(both, NormBackward, backward<true, true, S>(p, first, last);)

}  // namespace

extern const NormKernels norm_kernels{add_any, moments_any, apply_any, sums_any, gradient_any, both_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
