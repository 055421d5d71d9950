// Total correlation and maximum mean discrepancy. The formulas are those of genmod/reference/aggregate.py.
#include "aggregate.h"

#include "tile.h"
#include "vector.h"

#include <limits>

namespace genmod {
namespace GENMOD_ISA {
namespace {

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.69314718055994530942, kHalfLog2TwoPi = 1.32574806473616006767;

template <class S> static void widen_elements(const Cast& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const S* from = (const S*)p.from;
  A* to = (A*)p.to;
  for (int64_t i = first; i < last; i++) to[i] = widen(from[i]);
}

template <class S> static void narrow_elements(const Cast& p, int64_t first, int64_t last) {
  using A = typename Accumulate<S>::type;
  const A* from = (const A*)p.from;
  S* to = (S*)p.to;
  for (int64_t i = first; i < last; i++) narrow(from[i], to[i]);
}

template <class A> static void transpose_tiles(const Transpose& p, int64_t first, int64_t last) {
  const A* matrix = (const A*)p.matrix;
  A* columns = (A*)p.columns;
  for (int64_t d = 0; d < p.dims; d++)
    for (int64_t j = first * kTile; j < last * kTile; j++) columns[d * p.stride + j] = j < p.rows ? matrix[j * p.dims + d] : A(0);
}

template <class A> static void posterior_tiles(const Posterior& p, int64_t first, int64_t last) {
  const A *mean = (const A*)p.mean, *logvar = (const A*)p.logvar;
  for (int64_t d = 0; d < p.dims; d++) {
    A *centre = (A*)p.centre + d * p.stride, *scale = (A*)p.scale + d * p.stride, *offset = (A*)p.offset + d * p.stride;
    for (int64_t j = first * kTile; j < last * kTile; j++) {
      if (j < p.batch) {
        const A l = logvar[j * p.dims + d];
        centre[j] = mean[j * p.dims + d];
        scale[j] = A(-0.5 * kLog2E) * exp_parts(-l).exp;
        offset[j] = A(-0.5 * kLog2E) * l - A(kHalfLog2TwoPi);
      } else {  // padding: a density of zero
        centre[j] = scale[j] = 0;
        offset[j] = -INFINITY;
      }
    }
  }
}

// --- Total correlation.

// Where a maximum starts: short of -infinity, of which a difference is not a number.
template <class A> constexpr A kFloor = std::numeric_limits<A>::lowest();

// The sum of 2^x is 2^top * sum, with no x above `top`.
template <class A> struct PowerSum {
  A top;
  double sum;
  double log2() const { return (double)top + ::log2(sum); }
  void store(const Normalizers& n, int64_t at) const {
    ((A*)n.top)[at] = top;
    ((A*)n.inverse)[at] = (A)(1 / sum);
  }
};

// Of the lanes of a running maximum and a running sum of 2^(x - maximum).
template <class A> static PowerSum<A> finish(Vector<A> top, Vector<A> sum) {
  const A highest = max_lanes<A>(top);
  const double total = (double)sum_lanes<A>(sum * exp2_term(top - highest));
  return {highest, highest == kFloor<A> && total == total ? 0. : total};  // a term counts as 2^-80 at least, but of zeros
}

template <class A> static PowerSum<A> power_sum(const A* x, int64_t n) {
  constexpr int L = kLanes<A>;
  Vector<A> top = all(kFloor<A>), sum{};
  for (int64_t j = 0; j < n; j += L) {
    const Vector<A> v = load_lanes<A>(x + j);
    top = top < v ? v : top;
  }
  top = all(max_lanes<A>(top));
  for (int64_t j = 0; j < n; j += L) sum += exp2_term(load_lanes<A>(x + j) - top);
  return finish<A>(top, sum);
}

// The two columns of a row whose weights differ from the others'.
struct Special {
  int64_t own, successor;
  Special(const TotalCorrelation& p, int64_t row) : own(p.first_row + row), successor(own + 1 == p.batch ? 0 : own + 1) {}
  // Adds what their weights differ by to `x`, which has the columns [begin, begin + n).
  template <class A> void weigh(const TotalCorrelation& p, A* x, int64_t begin, int64_t n) const {
    if (own >= begin && own < begin + n) x[own - begin] += (A)p.own;
    if (successor >= begin && successor < begin + n && successor != own) x[successor - begin] += (A)p.successor;
  }
  bool within(int64_t begin, int64_t n) const {
    return (own >= begin && own < begin + n) || (successor >= begin && successor < begin + n);
  }
};

constexpr int64_t kStretch = 4 * kTile;  // columns between two looks at the maximum

template <class A> static void total_correlation_blocks(const TotalCorrelation& p, int64_t first, int64_t last) {
  constexpr int L = kLanes<A>;
  using V = Vector<A>;
  const A* __restrict z = (const A*)p.z;
  const int64_t width = tiles_of(p.batch) * kTile;
  Scratch<A> joint_scratch(kRowBlock * width), term_scratch(kStretch);
  A *__restrict joint = joint_scratch.data(), *__restrict term = term_scratch.data();
  for (int64_t block = first; block < last; block++) {
    const int64_t begin = block * kRowBlock, count = p.rows - begin < kRowBlock ? p.rows - begin : kRowBlock;
    for (int64_t r = 0; r < count; r++)
      for (int64_t j = 0; j < width; j++) joint[r * width + j] = j < p.batch ? A(0) : A(-INFINITY);
    double marginals[kRowBlock] = {}, prior[kRowBlock] = {};
    for (int64_t d = 0; d < p.dims; d++) {
      const A *__restrict centre = (const A*)p.centre + d * p.stride, *__restrict scale = (const A*)p.scale + d * p.stride;
      const A* __restrict offset = (const A*)p.offset + d * p.stride;
      V tops[kRowBlock], sums[kRowBlock];
      for (int64_t r = 0; r < kRowBlock; r++) {
        tops[r] = all(kFloor<A>);
        sums[r] = V{};
      }
      for (int64_t j0 = 0; j0 < width; j0 += kStretch) {
        const int64_t n = width - j0 < kStretch ? width - j0 : kStretch;
        for (int64_t r = 0; r < count; r++) {
          const V at = all(z[(begin + r) * p.dims + d]);
          A* __restrict row = joint + r * width + j0;
          V top = tops[r], sum{};
          for (int64_t j = 0; j < n; j += L) {
            const V delta = at - load_lanes<A>(centre + j0 + j);
            const V t = multiply_add<V>(delta, delta * load_lanes<A>(scale + j0 + j), load_lanes<A>(offset + j0 + j));
            store_lanes<A>(term + j, t);
            store_lanes<A>(row + j, load_lanes<A>(row + j) + t);
            top = top < t ? t : top;
          }
          Special(p, begin + r).weigh(p, term, j0, n);  // by less than one: `top` stays a bound
          for (int64_t j = 0; j < n; j += L) sum += exp2_term(load_lanes<A>(term + j) - top);
          sums[r] = sums[r] * exp2_term(tops[r] - top) + sum;
          tops[r] = top;
        }
      }
      for (int64_t r = 0; r < count; r++) {
        const PowerSum<A> marginal = finish<A>(tops[r], sums[r]);
        const double at = z[(begin + r) * p.dims + d];
        marginal.store(p.normalizers, (begin + r) * (p.dims + 1) + d);
        marginals[r] += marginal.log2() + p.rest;
        prior[r] -= 0.5 * kLog2E * at * at + kHalfLog2TwoPi;
      }
    }
    for (int64_t r = 0; r < count; r++) {
      A* row = joint + r * width;
      const Special special(p, begin + r);
      const double posterior = row[special.own];
      special.weigh(p, row, 0, width);
      const PowerSum<A> whole = power_sum(row, width);
      whole.store(p.normalizers, (begin + r) * (p.dims + 1) + p.dims);
      const double log = whole.log2() + p.rest;
      double* terms = p.terms + (begin + r) * 3;
      terms[0] = kLn2 * (posterior - log);
      terms[1] = kLn2 * (log - marginals[r]);
      terms[2] = kLn2 * (marginals[r] - prior[r]);
    }
  }
}

// One tile of columns, and the sums over all rows that its gradients are made of.
template <class A> struct ColumnTile {
  const TotalCorrelationBackward& b;
  int64_t j0;
  A *__restrict partial, *__restrict d_centre, *__restrict d_spread;

  // `share` is the gradient of t, which is computed twice, to the same bits as in the forward pass, so that none is above
  // its sum's top: that is cheaper than to store it. Sums of share * delta * scale get their factor at the end. SPECIAL: some weight here is not `rest`.
  template <int R, bool SPECIAL> void add_rows(int64_t i) const {
    constexpr int L = kLanes<A>, N = kTile / L;
    using V = Vector<A>;
    const TotalCorrelation& p = b.forward;
    const int64_t dims = p.dims, stride = p.stride;
    const A* __restrict z = (const A*)p.z + i * dims;
    const A *__restrict top = (const A*)p.normalizers.top + i * (dims + 1), *__restrict inverse = (const A*)p.normalizers.inverse + i * (dims + 1);
    const A *__restrict centre = (const A*)p.centre + j0, *__restrict scale = (const A*)p.scale + j0, *__restrict offset = (const A*)p.offset + j0;
    const A to_joint = (A)b.to_joint, to_marginals = (A)b.to_marginals;
    V extra[SPECIAL ? R : 1][N] = {}, joint[R][N] = {}, shares[R][N];
    if constexpr (SPECIAL)
      for (int r = 0; r < R; r++) Special(p, i + r).weigh(p, (A*)extra[r], j0, kTile);
    for (int64_t d = 0; d < dims; d++)
      for (int v = 0; v < N; v++) {
        const int64_t at = d * stride + v * L;
        const V c = load_lanes<A>(centre + at), s = load_lanes<A>(scale + at), o = load_lanes<A>(offset + at);
        for (int r = 0; r < R; r++) {
          const V delta = z[r * dims + d] - c;
          joint[r][v] += multiply_add<V>(delta, delta * s, o);
        }
      }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < N; v++) {
        if constexpr (SPECIAL) joint[r][v] += extra[r][v];
        shares[r][v] = exp2_or_zero(joint[r][v] - top[r * (dims + 1) + dims]) * (inverse[r * (dims + 1) + dims] * to_joint);
      }
    for (int64_t d = 0; d < dims; d++) {
      V pulls[R] = {};
      A factor[R];
      for (int r = 0; r < R; r++) factor[r] = inverse[r * (dims + 1) + d] * to_marginals;
      for (int v = 0; v < N; v++) {
        const int64_t k = d * kTile + v * L, at = d * stride + v * L;
        const V c = load_lanes<A>(centre + at), s = load_lanes<A>(scale + at), o = load_lanes<A>(offset + at);
        V to_centre = load_lanes<A>(d_centre + k), to_spread = load_lanes<A>(d_spread + k);
        for (int r = 0; r < R; r++) {
          const V delta = z[r * dims + d] - c, bent = delta * s;
          V t = multiply_add<V>(delta, bent, o);
          if constexpr (SPECIAL) t += extra[r][v];
          const V share = exp2_or_zero(t - top[r * (dims + 1) + d]) * factor[r] + shares[r][v], pull = share * bent;
          pulls[r] += pull;
          to_centre += pull;
          to_spread += share * (delta * bent * A(kLn2) + A(0.5));
        }
        store_lanes<A>(d_centre + k, to_centre);
        store_lanes<A>(d_spread + k, to_spread);
      }
      for (int r = 0; r < R; r++) partial[(i + r) * dims + d] += sum_lanes<A>(pulls[r]);
    }
  }

  template <int R> void add(int64_t i) const {
    bool special = false;
    for (int r = 0; r < R; r++) special = special || Special(b.forward, i + r).within(j0, kTile);
    special ? add_rows<R, true>(i) : add_rows<R, false>(i);
  }

  void write() const {
    const TotalCorrelation& p = b.forward;
    const A *z = (const A*)p.z, *centre = (const A*)p.centre, *scale = (const A*)p.scale;
    for (int64_t j = j0; j < j0 + kTile && j < p.batch; j++) {
      const bool own = j >= p.first_row && j < p.first_row + p.rows;
      for (int64_t d = 0; d < p.dims; d++) {
        const int64_t k = d * kTile + j - j0;
        A to_mean = A(-2 * kLn2) * d_centre[k], to_logvar = -d_spread[k];
        if (own) {
          const A delta = z[(j - p.first_row) * p.dims + d] - centre[d * p.stride + j];
          const A pull = A(-2 * kLn2 * b.to_own) * scale[d * p.stride + j] * delta;
          to_mean += pull;
          to_logvar += A(0.5) * (pull * delta - (A)b.to_own);
        }
        ((A*)b.d_mean)[j * p.dims + d] = to_mean;
        ((A*)b.d_logvar)[j * p.dims + d] = to_logvar;
      }
    }
  }
};

template <class A> static void total_correlation_partitions(const TotalCorrelationBackward& b, int64_t first, int64_t last) {
  const TotalCorrelation& p = b.forward;
  const int64_t tiles = tiles_of(p.batch), size = p.dims * kTile;
  Scratch<A> scratch(2 * size);
  for (int64_t partition = first; partition < last; partition++) {
    A* partial = (A*)b.partial + partition * p.rows * p.dims;
    for (int64_t i = 0; i < p.rows * p.dims; i++) partial[i] = 0;
    for (int64_t t = tiles * partition / b.partitions; t < tiles * (partition + 1) / b.partitions; t++) {
      const ColumnTile<A> tile{b, t * kTile, partial, scratch.data(), scratch.data() + size};
      for (int64_t k = 0; k < 2 * size; k++) tile.d_centre[k] = 0;  // and d_spread behind it
      int64_t i = 0;
      for (; i + 2 <= p.rows; i += 2) tile.template add<2>(i);
      if (i < p.rows) tile.template add<1>(i);
      tile.write();
    }
  }
}

template <class A> static void total_correlation_z(const TotalCorrelationBackward& b, int64_t first, int64_t last) {
  const TotalCorrelation& p = b.forward;
  const A *z = (const A*)p.z, *partial = (const A*)b.partial, *centre = (const A*)p.centre, *scale = (const A*)p.scale;
  for (int64_t i = first; i < last; i++)
    for (int64_t d = 0; d < p.dims; d++) {
      const int64_t k = i * p.dims + d, own = d * p.stride + p.first_row + i;
      A pulls = (A)b.to_own * scale[own] * (z[k] - centre[own]);
      for (int64_t part = 0; part < b.partitions; part++) pulls += partial[part * p.rows * p.dims + k];
      ((A*)b.d_z)[k] = A(2 * kLn2) * pulls + (A)b.to_prior * z[k];
    }
}

// --- Maximum mean discrepancy.

// The kernel of a squared distance, summed over widths, and its derivative.
template <class A> struct Kernel { Vector<A> value, slope; };

template <bool SLOPE, class A> static inline Kernel<A> kernel_of(Vector<A> square, const PairSum& p) {
  using V = Vector<A>;
  Kernel<A> k{};
  if (p.kernel == PairKernel::rbf) {
    for (int64_t s = 0; s < p.width_count; s++) {
      const V e = exp2_or_zero(square * (A)(-kLog2E / p.widths[s]));
      k.value += e;
      if (SLOPE) k.slope -= e * (A)(1 / p.widths[s]);
    }
    return k;
  }
  const V most = all(A(sizeof(A) == 4 ? 1e30 : 1e250));  // an infinite distance would become 0 / 0 below
  square = square > most ? most : square;
  int64_t s = 0;
  for (; s + 2 <= p.width_count; s += 2) {  // two for one division
    const A c0 = (A)p.widths[s], c1 = (A)p.widths[s + 1];
    const V a = square + c0, b = square + c1, inverse = A(1) / (a * b), to_a = inverse * b, to_b = inverse * a;
    k.value += c0 * to_a + c1 * to_b;
    if (SLOPE) k.slope -= c0 * to_a * to_a + c1 * to_b * to_b;
  }
  if (s < p.width_count) {
    const A c = (A)p.widths[s];
    const V to = A(1) / (square + c);
    k.value += c * to;
    if (SLOPE) k.slope -= c * to * to;
  }
  return k;
}

constexpr int kVectors = 4;  // of columns at a time: with four rows, their distances fill half of AVX-512's registers
template <class A> constexpr int64_t kSpan = kVectors * kLanes<A>;

// Squared distances of four rows and a span of columns, from differences.
template <class A> struct Squares { Vector<A> of[kRowBlock][kVectors]; };

template <class A> static inline Squares<A> squares(const A* const* rows, const A* column, int64_t stride, int64_t dims) {
  using V = Vector<A>;
  Squares<A> s{};
  for (int64_t d = 0; d < dims; d++) {
    V at[kVectors];
    for (int v = 0; v < kVectors; v++) at[v] = load_lanes<A>(column + d * stride + v * kLanes<A>);
    for (int r = 0; r < kRowBlock; r++)
      for (int v = 0; v < kVectors; v++) {
        const V delta = rows[r][d] - at[v];
        s.of[r][v] += delta * delta;
      }
  }
  return s;
}

// The rows of a block; a short block repeats its last.
template <class A> struct Block {
  int64_t begin, count;
  const A* rows[kRowBlock];
  Block(const PairSum& p, int64_t index) : begin(index * kRowBlock), count(p.rows - begin < kRowBlock ? p.rows - begin : kRowBlock) {
    for (int64_t r = 0; r < kRowBlock; r++) rows[r] = (const A*)p.row + (begin + (r < count ? r : count - 1)) * p.dims;
  }
};

template <class A> static void pair_sum_blocks(const PairSum& p, int64_t first, int64_t last) {
  using V = Vector<A>;
  for (int64_t index = first; index < last; index++) {
    const Block<A> block(p, index);
    double total = 0;
    for (int64_t j = 0; j < p.columns; j += kSpan<A>) {
      const Squares<A> s = squares<A>(block.rows, (const A*)p.column + j, p.stride, p.dims);
      const int64_t left = p.columns - j < kSpan<A> ? p.columns - j : kSpan<A>;
      V sums{};
      for (int64_t r = 0; r < block.count; r++) {
        A values[kSpan<A>];
        for (int v = 0; v < kVectors; v++) store_lanes<A>(values + v * kLanes<A>, kernel_of<false, A>(s.of[r][v], p).value);
        const int64_t self = p.first + block.begin + r - j;
        if (p.skip && self >= 0 && self < left) values[self] *= 0;  // NaN for a point that is not finite
        for (int64_t k = left; k < kSpan<A>; k++) values[k] = 0;
        for (int v = 0; v < kVectors; v++) sums += load_lanes<A>(values + v * kLanes<A>);
      }
      total += sum_lanes<A>(sums);
    }
    p.sums[index] = total;
  }
}

template <class A> static void pair_pull_blocks(const PairPull& b, int64_t first, int64_t last) {
  constexpr int L = kLanes<A>;
  using V = Vector<A>;
  const PairSum& p = b.pairs;
  Scratch<A> scratch(kRowBlock * p.dims * L);
  A* sums = scratch.data();
  for (int64_t index = first; index < last; index++) {
    const Block<A> block(p, index);
    for (int64_t k = 0; k < kRowBlock * p.dims * L; k++) sums[k] = 0;
    for (int64_t j = 0; j < p.columns; j += kSpan<A>) {
      const A* column = (const A*)p.column + j;
      const int64_t left = p.columns - j;
      Squares<A> slope = squares<A>(block.rows, column, p.stride, p.dims);
      for (int r = 0; r < kRowBlock; r++)
        for (int v = 0; v < kVectors; v++) slope.of[r][v] = kernel_of<true, A>(slope.of[r][v], p).slope;
      if (left < kSpan<A>)
        for (int r = 0; r < kRowBlock; r++)
          for (int64_t k = left; k < kSpan<A>; k++) slope.of[r][k / L][k % L] = 0;
      for (int64_t d = 0; d < p.dims; d++) {
        V at[kVectors];
        for (int v = 0; v < kVectors; v++) at[v] = load_lanes<A>(column + d * p.stride + v * L);
        for (int r = 0; r < kRowBlock; r++) {
          A* sum = sums + (r * p.dims + d) * L;
          V pull = load_lanes<A>(sum);
          for (int v = 0; v < kVectors; v++) pull += slope.of[r][v] * (block.rows[r][d] - at[v]);
          store_lanes<A>(sum, pull);
        }
      }
    }
    for (int64_t r = 0; r < block.count; r++)
      for (int64_t d = 0; d < p.dims; d++)
        ((A*)b.pull)[(block.begin + r) * p.dims + d] += (A)b.factor * sum_lanes<A>(load_lanes<A>(sums + (r * p.dims + d) * L));
  }
}

// One entry point per job: picks the type of the arithmetic, or of storage.
#define GENMOD_WHERE_WIDE(name, Params, wide)                            \
  static void name##_any(const Params& p, int64_t first, int64_t last) { \
    wide ? name<double>(p, first, last) : name<float>(p, first, last);   \
  }
GENMOD_WHERE_WIDE(transpose_tiles, Transpose, p.wide)
GENMOD_WHERE_WIDE(posterior_tiles, Posterior, p.wide)
GENMOD_WHERE_WIDE(total_correlation_blocks, TotalCorrelation, p.wide)
GENMOD_WHERE_WIDE(total_correlation_partitions, TotalCorrelationBackward, p.forward.wide)
GENMOD_WHERE_WIDE(total_correlation_z, TotalCorrelationBackward, p.forward.wide)
GENMOD_WHERE_WIDE(pair_sum_blocks, PairSum, p.wide)
GENMOD_WHERE_WIDE(pair_pull_blocks, PairPull, p.pairs.wide)

#define GENMOD_BY_DTYPE(name)                                            \
  static void name##_any(const Cast& p, int64_t first, int64_t last) {   \
    switch (p.dtype) {                                                   \
      case Dtype::f32: return name<float>(p, first, last);               \
      case Dtype::f64: return name<double>(p, first, last);              \
      case Dtype::bf16: return name<bf16>(p, first, last);               \
      case Dtype::f16: return name<f16>(p, first, last);                 \
    }                                                                    \
  }
GENMOD_BY_DTYPE(widen_elements)
GENMOD_BY_DTYPE(narrow_elements)

}  // namespace

extern const AggregateKernels aggregate_kernels{
    widen_elements_any,           narrow_elements_any,     transpose_tiles_any,
    posterior_tiles_any,          total_correlation_blocks_any, total_correlation_partitions_any,
    total_correlation_z_any,      pair_sum_blocks_any,     pair_pull_blocks_any,
};

}  // namespace GENMOD_ISA
}  // namespace genmod
