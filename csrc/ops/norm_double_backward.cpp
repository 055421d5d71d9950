// The second derivative of the norms on the CPU: tensors in, coefficients and sums between the passes, tensors out.
// Schema, fake and autograd are in genmod/ops/norm_act.py, the maths in genmod/reference/norm_act.py.
#include "norm_double_backward.h"

#include "cpu/norm_double_backward.h"
#include "norm_input.h"

namespace genmod {
namespace {

Over parse_over(const std::string& name) {
  if (name == "group") return Over::group;
  if (name == "batch") return Over::batch;
  STD_TORCH_CHECK(name == "nothing", "genmod: statistics are over 'group', 'batch' or 'nothing', got '", name, "'");
  return Over::nothing;
}

// Adds COUNT sums per piece and channel up per set of coefficients of a block.
template <int COUNT> void collect(const NormCut& cut, int64_t block, const double* sums, std::vector<double> (&totals)[COUNT]) {
  for (int64_t piece = 0; piece < cut.pieces; piece++) {
    const double* s = sums + COUNT * (block * cut.pieces + piece) * cut.width();
    const int64_t first = cut.in_rows ? 0 : cut.channel(piece), last = cut.in_rows ? cut.block_channels() : first + 1;
    for (int64_t c = first; c < last; c++)
      for (int i = 0; i < COUNT; i++) totals[i][(size_t)(block * cut.block_channels() + c)] += *s++;
  }
}

class DoubleBackward {
 public:
  std::vector<double> weight, bias, scale, shift;  // gradients

  DoubleBackward(const NormInput& in, Over over, const NormParameters& given, const NormParameters& arriving, const std::vector<double>& means,
                 const std::vector<double>& rstds, NormDoubleBackward& p, NormCoefficients& k)
      : in_(in), cut_(in.cut), over_(over), given_(given), arriving_(arriving), rstds_(rstds), k_(k) {
    const size_t sets = k.mean.size();
    for (auto* v : {&turn_, &pull_, &base_}) v->assign(sets, 0.);
    for (auto& v : first_) v.assign(sets, 0.);
    for (auto& v : spread_) v.assign(sets, 0.);
    across_.resize((size_t)(cut_.blocks * cut_.statistics));
    first_sums_.resize((size_t)(kFirstSums * cut_.blocks * cut_.pieces * cut_.width()));
    spread_sums_.resize((size_t)(kSpreadSums * cut_.blocks * cut_.pieces * cut_.width()));
    for (size_t q = 0; q < sets; q++) set_coefficients(k, given, in.dtype, (int64_t)q, channel(q), means[statistic(q)], rstds[statistic(q)]);
    p.turn = turn_.data();
    p.level = k.level.data();
    p.pull = pull_.data();
    p.tilt = k.tilt.data();
    p.base = base_.data();
    p.sums = first_sums_.data();
    p.spread_sums = spread_sums_.data();
    const NormDoubleKernels& kernels = GENMOD_SELECT(norm_double_kernels);
    const auto after_sums = [&](int64_t block) { set_arriving(block); };
    const auto after_spread = [&](int64_t block) { set_rest(block); };
    through_blocks(cut_, in.numel(), [&](int64_t a, int64_t b) { kernels.sums(p, a, b); }, after_sums, [&](int64_t a, int64_t b) { kernels.spread(p, a, b); }, after_spread,
                   [&](int64_t a, int64_t b) { p.dx ? kernels.gradient(p, a, b) : void(); });
    differentiate_parameters();
  }

 private:
  // Over a statistic: means of dh, dh h, to_x, to_x h and to_x dh.
  struct Across { double dh = 0, dh_h = 0, u = 0, u_h = 0, u_dh = 0; };

  const NormInput& in_;
  const NormCut& cut_;
  const Over over_;
  const NormParameters &given_, &arriving_;
  const std::vector<double>& rstds_;
  NormCoefficients& k_;
  std::vector<double> turn_, pull_, base_, first_sums_, spread_sums_, first_[kFirstSums], spread_[kSpreadSums];
  std::vector<Across> across_;  // of what statistics are over; zeros where they are over nothing

  int64_t channel(size_t q) const { return (int64_t)q % cut_.channels; }
  size_t statistic(size_t q) const { return over_ == Over::group ? q / (size_t)cut_.statistic_channels : (size_t)channel(q); }
  double rstd(size_t q) const { return rstds_[statistic(q)]; }
  double of(const std::vector<double>& v, int64_t i) const { return v.empty() ? 0. : v[(size_t)i]; }
  // What arrives at the gradients of parameters comes to dz as h by_h + by_one.
  double by_h(size_t q) const { return given_.growth_of((int64_t)q) * of(arriving_.weight, channel(q)) + of(arriving_.scale, (int64_t)q) * given_.weight_of(channel(q)); }
  double by_one(size_t q) const {
    return given_.growth_of((int64_t)q) * of(arriving_.bias, channel(q)) + of(arriving_.scale, (int64_t)q) * given_.bias_of(channel(q)) + of(arriving_.shift, (int64_t)q);
  }
  // Elements that share a statistic.
  double count() const {
    double n = 0;
    for (int64_t piece = 0; piece < cut_.pieces; piece++) n += (double)cut_.count(piece);
    return n;
  }

  void set_arriving(int64_t block) {
    collect(cut_, block, first_sums_.data(), first_);
    const double n = count();
    for (int64_t g = block * cut_.statistics; g < (block + 1) * cut_.statistics; g++) {
      const size_t begin = (size_t)(g * cut_.statistic_channels), end = begin + (size_t)cut_.statistic_channels;
      Across a;
      if (over_ != Over::nothing && n > 0) {
        const double r = rstd(begin);
        for (size_t q = begin; q < end; q++) {
          const double gain = k_.slope[q] / r;
          a.dh += gain * first_[0][q] / n;
          a.dh_h += k_.slope[q] * first_[1][q] / n;
          a.u += first_[2][q] / n;
          a.u_h += r * first_[3][q] / n;
          a.u_dh += gain * first_[4][q] / n;
        }
      }
      across_[(size_t)g] = a;
      for (size_t q = begin; q < end; q++) {
        const double r = rstd(q);
        turn_[q] = r * (by_h(q) - k_.slope[q] * a.u_h);
        k_.level[q] = by_one(q) - k_.slope[q] * a.u;
        pull_[q] = -r * r * a.dh_h;
      }
    }
  }

  void set_rest(int64_t block) {
    collect(cut_, block, spread_sums_.data(), spread_);
    const double n = count();
    if (over_ == Over::nothing || n == 0) return;
    for (int64_t g = block * cut_.statistics; g < (block + 1) * cut_.statistics; g++) {
      const size_t begin = (size_t)(g * cut_.statistic_channels), end = begin + (size_t)cut_.statistic_channels;
      const Across& a = across_[(size_t)g];
      const double r = rstd(begin);
      double mean = pull_[begin] * a.u, by_h = pull_[begin] * a.u_h;
      for (size_t q = begin; q < end; q++) {
        mean += (turn_[q] * first_[0][q] + k_.slope[q] * spread_[0][q]) / n;
        by_h += r * (turn_[q] * first_[1][q] + k_.slope[q] * spread_[1][q]) / n;
      }
      const double tilt = -r * (by_h + r * r * (a.u_dh - a.u * a.dh - a.u_h * a.dh_h));
      for (size_t q = begin; q < end; q++) {
        base_[q] = -mean;
        k_.tilt[q] = tilt;
      }
    }
  }

  void differentiate_parameters() {
    weight.assign((size_t)cut_.channels, 0.);
    bias = weight;
    scale.assign(k_.mean.size(), 0.);
    shift = scale;
    for (size_t q = 0; in_.numel() && q < k_.mean.size(); q++) {
      const int64_t c = channel(q);
      const double r = rstd(q), growth = given_.growth_of((int64_t)q), dz_h = r * first_[1][q], z_h = r * spread_[1][q];
      // Over nothing, a set of coefficients has a statistic of its own in `across_`, of zeros.
      const Across a = over_ == Over::nothing ? Across{} : across_[over_ == Over::group ? statistic(q) : q];
      const double turned = r * (first_[4][q] - a.u * first_[0][q] - a.u_h * dz_h);
      weight[(size_t)c] += growth * (turned + z_h) + of(arriving_.scale, (int64_t)q) * dz_h;
      bias[(size_t)c] += growth * spread_[0][q] + of(arriving_.scale, (int64_t)q) * first_[0][q];
      scale[q] = given_.weight_of(c) * (turned + z_h) + of(arriving_.weight, c) * dz_h + of(arriving_.bias, c) * first_[0][q] + given_.bias_of(c) * spread_[0][q];
      shift[q] = spread_[0][q];
    }
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_act_double_backward(
    const std::optional<Tensor>& to_x, const std::optional<Tensor>& to_weight, const std::optional<Tensor>& to_bias, const std::optional<Tensor>& to_scale,
    const std::optional<Tensor>& to_shift, const Tensor& grad, const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, const Tensor& mean, const Tensor& rstd, const std::string& over, int64_t num_groups, double,
    const std::string& activation, double negative_slope, int64_t wanted) {
  const Over of = parse_over(over);
  const NormInput in(x, of, num_groups);
  const NormParameters given = parameters(in, weight, bias, scale, shift), arriving = parameters(in, to_weight, to_bias, to_scale, to_shift);
  const Dims statistics = of == Over::group ? Dims{in.sizes[0], num_groups} : Dims{in.cut.channels};
  const std::vector<double> means = in_double(mean, statistics), rstds = in_double(rstd, statistics);
  NormCoefficients k(in.cut);
  NormDoubleBackward p{};
  set_shared(p, in, k, activation, negative_slope);
  const Tensor g = in.alike(grad);
  std::optional<Tensor> u;
  if (to_x) u = in.alike(*to_x);
  p.grad = g.const_data_ptr();
  p.to_x = u ? u->const_data_ptr() : nullptr;
  const Tensor d_grad = in.like_x(wanted & 1), dx = in.like_x(wanted & 2);
  p.d_grad = wanted & 1 ? d_grad.mutable_data_ptr() : nullptr;
  p.dx = wanted & 2 ? dx.mutable_data_ptr() : nullptr;
  const DoubleBackward d(in, of, given, arriving, means, rstds, p, k);
  return {d_grad, dx, gradient(d.weight, weight, x, wanted & 4), gradient(d.bias, bias, x, wanted & 8), gradient(d.scale, scale, x, wanted & 16),
          gradient(d.shift, shift, x, wanted & 32)};
}

}  // namespace genmod
