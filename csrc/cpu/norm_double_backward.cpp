// The second derivative of normalisation and activation. The formulas are those of genmod/reference/norm_act.py.
#include "norm_double_backward.h"

#include "activation.h"
#include "by_storage.h"
#include "norm_pieces.h"

namespace genmod {
namespace GENMOD_ISA {
namespace {

// act'(z) and act''(z) of a tile.
template <class A, class C> struct Bends {
  template <Activation F> struct Make {
    static void function(const A* __restrict x, A* __restrict once, A* __restrict twice, C mean, C slope, C offset, A negative_slope, int64_t n) {
      for (int64_t i = 0; i < n; i++) {
        const A z = (x[i] - pick<A>(mean, i)) * pick<A>(slope, i) + pick<A>(offset, i);
        once[i] = activation_slope<F>(z, negative_slope);
        twice[i] = activation_curvature<F>(z);
      }
    }
  };
};

// What comes in is `once` or `twice` becomes dz or grad act''(z).
template <class A> static void scale_tile(const A* __restrict grad, A* __restrict factor, int64_t n) {
  for (int64_t i = 0; i < n; i++) factor[i] *= grad[i];
}

// dg, and Z in place of grad act''(z). Without statistics there is no turn by them, and an infinite x must not come in by it.
template <class A, class C>
static void spread_tile(const A* __restrict x, const A* __restrict u, const A* __restrict once, A* __restrict bent, A* __restrict dg, C mean, C slope, C turn, C level, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const A k = pick<A>(turn, i), turned = (x[i] - pick<A>(mean, i)) * k;
    const A arriving = u[i] * pick<A>(slope, i) + ((k == 0 ? A(0) : turned) + pick<A>(level, i));
    dg[i] = arriving * once[i];
    bent[i] = arriving * bent[i];
  }
}

template <class A, class C>
static void dx_tile(const A* __restrict x, const A* __restrict u, const A* __restrict dz, const A* __restrict bent, A* __restrict dx, C mean, C slope, C turn, C pull, C tilt, C base, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const A t = pick<A>(tilt, i), tilted = (x[i] - pick<A>(mean, i)) * t;
    dx[i] = dz[i] * pick<A>(turn, i) + bent[i] * pick<A>(slope, i) + u[i] * pick<A>(pull, i) + ((t == 0 ? A(0) : tilted) + pick<A>(base, i));
  }
}

// Of planes: a channel's coefficients, and room for a tile.
template <class A> struct PlaneRoom { alignas(64) A x[kTile], grad[kTile], u[kTile], once[kTile], twice[kTile], out[kTile]; };

// What arrives, or zeros from the room that was made for it.
template <class A, class S> static const A* arriving(const NormDoubleBackward& p, int64_t at, int64_t n, A* buffer) {
  if (p.to_x) return read<A, S>(p.to_x, at, n, buffer);
  std::fill_n(buffer, n, A(0));
  return buffer;
}

template <class S> static void sums_of_planes(const NormDoubleBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto bend = function_for<Bends<A, A>::template Make>(p.activation);
  PlaneRoom<A> room;
  each_piece(p, first, last, [&](int64_t t, int64_t block, const NormPlace& place, int64_t offset, int64_t length) {
    const int64_t q = block * p.cut.block_channels() + place.channel(p.cut);
    const A mean = (A)p.mean[q];
    double* out = p.sums + kFirstSums * t;
    std::fill_n(out, kFirstSums, 0.);
    tiles(offset, length, kTile, [&](int64_t at, int64_t n) {
      const A *x = read<A, S>(p.x, at, n, room.x), *grad = read<A, S>(p.grad, at, n, room.grad), *u = arriving<A, S>(p, at, n, room.u);
      A* dz = room.once;
      bend(x, dz, room.twice, mean, (A)p.slope[q], (A)p.offset[q], (A)p.negative_slope, n);
      scale_tile(grad, dz, n);
      out[0] += sum(dz, n);
      out[1] += sum_of_products(dz, x, mean, n);
      out[2] += sum(u, n);
      out[3] += sum_of_products(u, x, mean, n);
      out[4] += sum_of_products(u, (const A*)dz, A(0), n);
    });
  });
}

template <class S> static void spread_over_planes(const NormDoubleBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto bend = function_for<Bends<A, A>::template Make>(p.activation);
  PlaneRoom<A> room;
  each_piece(p, first, last, [&](int64_t t, int64_t block, const NormPlace& place, int64_t offset, int64_t length) {
    const int64_t q = block * p.cut.block_channels() + place.channel(p.cut);
    const A mean = (A)p.mean[q], slope = (A)p.slope[q];
    double* out = p.spread_sums + kSpreadSums * t;
    std::fill_n(out, kSpreadSums, 0.);
    tiles(offset, length, kTile, [&](int64_t at, int64_t n) {
      const A *x = read<A, S>(p.x, at, n, room.x), *u = arriving<A, S>(p, at, n, room.u);
      A* dg = p.d_grad ? target<A, S>(p.d_grad, at, room.out) : room.out;
      bend(x, room.once, room.twice, mean, slope, (A)p.offset[q], (A)p.negative_slope, n);
      scale_tile(read<A, S>(p.grad, at, n, room.grad), room.twice, n);
      spread_tile<A, A>(x, u, room.once, room.twice, dg, mean, slope, (A)p.turn[q], (A)p.level[q], n);
      if (p.d_grad) write<A, S>(room.out, p.d_grad, at, n);
      out[0] += sum((const A*)room.twice, n);
      out[1] += sum_of_products((const A*)room.twice, x, mean, n);
    });
  });
}

template <class S> static void gradient_of_planes(const NormDoubleBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto bend = function_for<Bends<A, A>::template Make>(p.activation);
  PlaneRoom<A> room;
  alignas(64) A unused[kTile];
  each_piece(p, first, last, [&](int64_t, int64_t block, const NormPlace& place, int64_t offset, int64_t length) {
    const int64_t q = block * p.cut.block_channels() + place.channel(p.cut);
    const A mean = (A)p.mean[q], slope = (A)p.slope[q];
    tiles(offset, length, kTile, [&](int64_t at, int64_t n) {
      const A *x = read<A, S>(p.x, at, n, room.x), *grad = read<A, S>(p.grad, at, n, room.grad), *u = arriving<A, S>(p, at, n, room.u);
      A* dx = target<A, S>(p.dx, at, room.out);
      bend(x, room.once, room.twice, mean, slope, (A)p.offset[q], (A)p.negative_slope, n);
      scale_tile(grad, room.twice, n);
      spread_tile<A, A>(x, u, room.once, room.twice, unused, mean, slope, (A)p.turn[q], (A)p.level[q], n);
      scale_tile(grad, room.once, n);
      dx_tile<A, A>(x, u, room.once, room.twice, dx, mean, slope, (A)p.turn[q], (A)p.pull[q], (A)p.tilt[q], (A)p.base[q], n);
      write<A, S>(room.out, p.dx, at, n);
    });
  });
}

// Of rows.
template <class A> struct LaneRoom { alignas(64) A once[Lanes::kAtOnce], twice[Lanes::kAtOnce], unused[Lanes::kAtOnce]; };

template <class A> static void add_first(const A* __restrict dz, const A* __restrict x, const A* __restrict u, const A* __restrict mean, A* __restrict a, A* __restrict b, A* __restrict c, A* __restrict d, A* __restrict e, int64_t n) {
  for (int64_t l = 0; l < n; l++) {
    const A away = x[l] - mean[l];
    a[l] += dz[l];
    b[l] += dz[l] * away;
    c[l] += u[l];
    d[l] += u[l] * away;
    e[l] += u[l] * dz[l];
  }
}

template <class A> static void add_spread(const A* __restrict bent, const A* __restrict x, const A* __restrict mean, A* __restrict a, A* __restrict b, int64_t n) {
  for (int64_t l = 0; l < n; l++) {
    a[l] += bent[l];
    b[l] += bent[l] * (x[l] - mean[l]);
  }
}

// Sums along the lanes: COUNT of them, folded after each tile and stored after each piece.
template <class A, int COUNT> struct LaneSums {
  const Lanes& lanes;
  const NormCut& cut;
  std::vector<A> running;
  std::vector<double> totals;
  LaneSums(const Lanes& lanes, const NormCut& cut) : lanes(lanes), cut(cut), running((size_t)(COUNT * lanes.width)), totals((size_t)(COUNT * cut.width())) {}
  A* at(int which, int64_t lane) { return running.data() + which * lanes.width + lane; }
  void fold() {
    for (int s = 0; s < COUNT; s++) lanes.fold(at(s, 0), cut.spread, totals.data() + s * cut.width());
  }
  void store(double* out) {
    for (int64_t c = 0; c < cut.width(); c++)
      for (int s = 0; s < COUNT; s++) out[COUNT * c + s] = totals[(size_t)(s * cut.width() + c)];
    std::fill(totals.begin(), totals.end(), 0.);
  }
};

enum class RowPass { sums, spread, gradient };

template <RowPass PASS, class S> static void rows(const NormDoubleBackward& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const auto bend = function_for<Bends<A, const A*>::template Make>(p.activation);
  const Lanes lanes(p.cut.lanes);
  LaneCoefficients<A> k(p.cut, {p.mean, p.slope, p.offset, p.turn, p.level, p.pull, p.tilt, p.base});
  const auto xb = room<A, S>(lanes.tile()), gb = room<A, S>(lanes.tile()), ob = room<A, S>(lanes.tile());
  const std::unique_ptr<A[]> ub(new A[(size_t)lanes.tile()]);
  LaneSums<A, PASS == RowPass::sums ? kFirstSums : kSpreadSums> sums(lanes, p.cut);
  LaneRoom<A> room;
  each_piece(p, first, last, [&](int64_t t, int64_t block, const NormPlace&, int64_t offset, int64_t length) {
    k.set(block);
    tiles(offset, length, lanes.tile(), [&](int64_t at, int64_t n) {
      const A *x = read<A, S>(p.x, at, n, xb.get()), *grad = read<A, S>(p.grad, at, n, gb.get()), *u = arriving<A, S>(p, at, n, ub.get());
      void* out = PASS == RowPass::spread ? p.d_grad : p.dx;
      A* to = PASS != RowPass::sums && out ? target<A, S>(out, at, ob.get()) : nullptr;
      lanes.stretches(n, [&](int64_t i, int64_t lane, int64_t m) {
        bend(x + i, room.once, room.twice, k.at(0, lane), k.at(1, lane), k.at(2, lane), (A)p.negative_slope, m);
        if constexpr (PASS == RowPass::sums) {
          scale_tile(grad + i, room.once, m);
          add_first(room.once, x + i, u + i, k.at(0, lane), sums.at(0, lane), sums.at(1, lane), sums.at(2, lane), sums.at(3, lane), sums.at(4, lane), m);
          return;
        }
        scale_tile(grad + i, room.twice, m);
        A* dg = PASS == RowPass::spread && to ? to + i : room.unused;
        spread_tile<A, const A*>(x + i, u + i, room.once, room.twice, dg, k.at(0, lane), k.at(1, lane), k.at(3, lane), k.at(4, lane), m);
        if constexpr (PASS == RowPass::spread) {
          add_spread(room.twice, x + i, k.at(0, lane), sums.at(0, lane), sums.at(1, lane), m);
          return;
        }
        scale_tile(grad + i, room.once, m);
        if (to) dx_tile<A, const A*>(x + i, u + i, room.once, room.twice, to + i, k.at(0, lane), k.at(1, lane), k.at(3, lane), k.at(5, lane), k.at(6, lane), k.at(7, lane), m);
      });
      if (PASS != RowPass::gradient) sums.fold();
      if (to) write<A, S>(ob.get(), out, at, n);
    });
    if (PASS == RowPass::sums) sums.store(p.sums + kFirstSums * t * p.cut.width());
    if (PASS == RowPass::spread) sums.store(p.spread_sums + kSpreadSums * t * p.cut.width());
  });
}

GENMOD_BY_STORAGE(sums, NormDoubleBackward, p.cut.in_rows ? rows<RowPass::sums, S>(p, first, last) : sums_of_planes<S>(p, first, last);)
GENMOD_BY_STORAGE(spread, NormDoubleBackward, p.cut.in_rows ? rows<RowPass::spread, S>(p, first, last) : spread_over_planes<S>(p, first, last);)
GENMOD_BY_STORAGE(gradient, NormDoubleBackward, p.cut.in_rows ? rows<RowPass::gradient, S>(p, first, last) : gradient_of_planes<S>(p, first, last);)

}  // namespace

extern const NormDoubleKernels norm_double_kernels{sums_any, spread_any, gradient_any};

}  // namespace GENMOD_ISA
}  // namespace genmod
