// Tensors in, raw pointers to the kernels, tensors out: the family's dispatcher ops on the CPU.
// Schemas, fakes and autograd are in genmod/ops/aggregate.py; arguments were checked there too.
#include "cpu/aggregate.h"
#include "cpu/dip.h"

#include "parallel.h"
#include "tensors.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <tuple>
#include <vector>

namespace genmod {
namespace {

// Runs a kernel over `count` pieces of `work` element-operations each, on as many threads as that is worth.
template <class Params> void run(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t count, double work) {
  run_pieces(kernel, p, count, work, 100000);
}

const AggregateKernels& kernels() { return GENMOD_SELECT(aggregate_kernels); }

const Tensor& matrix(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2, "genmod: expected a matrix");
  return t;
}

// A matrix, dense and in the type of the arithmetic.
struct Matrix {
  Dtype dtype;
  bool wide;
  int64_t rows, dims;
  Tensor dense;

  explicit Matrix(const Tensor& t) : dtype(dtype_of(t)), wide(dtype == Dtype::f64), rows(matrix(t).size(0)), dims(t.size(1)), dense(densified(t, MemoryFormat::Contiguous)) {
    if (item_size(dtype) == 2) {
      Tensor widened = scratch(rows, dims);
      run(kernels().widen, Cast{dtype, dense.const_data_ptr(), widened.mutable_data_ptr()}, rows * dims, 1);
      dense = widened;
    }
  }
  Tensor scratch(int64_t n, int64_t m) const { return empty({n, m}, dense, accumulate_type(dtype)); }
  const void* data() const { return dense.const_data_ptr(); }
  void check_like(const Matrix& other) const {
    STD_TORCH_CHECK(dtype == other.dtype && dims == other.dims, "genmod: expected matrices of one dtype and as many columns");
  }

  // A result in the type of the arithmetic, in the type of the matrix.
  Tensor narrowed(const Tensor& result) const {
    if (item_size(dtype) != 2) return result;
    Tensor out = empty(result.sizes(), result, dtype == Dtype::bf16 ? ScalarType::BFloat16 : ScalarType::Half);
    run(kernels().narrow, Cast{dtype, result.const_data_ptr(), out.mutable_data_ptr()}, result.numel(), 1);
    return out;
  }
  Tensor nothing() const {
    return empty({0}, dense, dtype == Dtype::bf16 ? ScalarType::BFloat16 : dtype == Dtype::f16 ? ScalarType::Half : accumulate_type(dtype));
  }
};

Tensor scalar(double value, const Matrix& like) {
  Tensor out = empty({}, like.dense, accumulate_type(like.dtype));
  if (like.wide) *(double*)out.mutable_data_ptr() = value;
  else *(float*)out.mutable_data_ptr() = (float)value;
  return out;
}

double value_of(const std::optional<Tensor>& t, const Matrix& like) {
  if (!t) return 0;
  STD_TORCH_CHECK(t->numel() == 1 && t->scalar_type() == accumulate_type(like.dtype), "genmod: the gradient of a loss is one number, float32 (float64 for float64 inputs)");
  return t->scalar_type() == ScalarType::Double ? *(const double*)t->const_data_ptr() : *(const float*)t->const_data_ptr();
}

// --- Total correlation.

// Inputs laid out for the kernels, and what has to stay alive meanwhile.
struct Batch {
  Matrix z, mean, logvar;
  Tensor columns;  // centre, scale and offset
  TotalCorrelation p{};

  Batch(const Tensor& z_, const Tensor& mean_, const Tensor& logvar_, int64_t dataset_size, const std::string& estimator, int64_t first_row)
      : z(z_), mean(mean_), logvar(logvar_) {
    z.check_like(mean);
    z.check_like(logvar);
    STD_TORCH_CHECK(mean.rows == logvar.rows, "genmod: mean and logvar must have one shape");
    STD_TORCH_CHECK(first_row >= 0 && z.rows <= mean.rows && first_row <= mean.rows - z.rows, "genmod: the rows of z must be rows of mean");
    const int64_t stride = stride_of(mean.rows), size = z.dims * stride * (z.wide ? 8 : 4);
    columns = mean.scratch(3 * z.dims, stride);
    char* data = (char*)columns.mutable_data_ptr();
    const Posterior posterior{z.wide, mean.rows, z.dims, stride, mean.data(), logvar.data(), data, data + size, data + 2 * size};
    run(kernels().posterior, posterior, tiles_of(mean.rows), (double)(kTile * z.dims * 4));
    p.wide = z.wide;
    p.rows = z.rows;
    p.batch = mean.rows;
    p.dims = z.dims;
    p.stride = stride;
    p.first_row = first_row;
    p.z = z.data();
    p.centre = posterior.centre;
    p.scale = posterior.scale;
    p.offset = posterior.offset;
    set_weights((double)dataset_size, estimator);
  }

  void set_weights(double n, const std::string& estimator) {
    if (estimator == "mws") {
      p.rest = -std::log2(n * (double)p.batch);
      return;
    }
    STD_TORCH_CHECK(estimator == "mss", "genmod: estimator must be 'mss' or 'mws', got '", estimator, "'");
    const double others = (double)(p.batch - 1);
    p.rest = -std::log2(others);
    p.own = std::log2(others / n);
    p.successor = std::log2((n - others) / n);
  }
  Normalizers normalizers(char* data) const { return {data, data + p.rows * (p.dims + 1) * (p.wide ? 8 : 4)}; }
  double pairs() const { return (double)p.stride * (double)p.dims; }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> total_correlation(const Tensor& z, const Tensor& mean, const Tensor& logvar, int64_t dataset_size,
                                                             const std::string& estimator, int64_t first_row) {
  Batch batch(z, mean, logvar, dataset_size, estimator, first_row);
  TotalCorrelation& p = batch.p;
  Tensor normalizers = empty({2, p.rows, p.dims + 1}, batch.z.dense, accumulate_type(batch.z.dtype));
  std::vector<double> terms((size_t)(3 * p.rows));
  p.normalizers = batch.normalizers((char*)normalizers.mutable_data_ptr());
  p.terms = terms.data();
  run(kernels().total_correlation, p, row_blocks(p.rows), batch.pairs() * kRowBlock);
  double totals[3] = {};
  for (int64_t i = 0; i < p.rows; i++)
    for (int64_t k = 0; k < 3; k++) totals[k] += terms[(size_t)(3 * i + k)];
  const auto mean_of = [&](double total) { return scalar(total / (double)p.batch, batch.z); };
  return {mean_of(totals[0]), mean_of(totals[1]), mean_of(totals[2]), normalizers};
}

std::tuple<Tensor, Tensor, Tensor> total_correlation_backward(const std::optional<Tensor>& grad_mutual_information, const std::optional<Tensor>& grad_total_correlation,
                                                              const std::optional<Tensor>& grad_dimension_kl, const Tensor& z, const Tensor& mean, const Tensor& logvar,
                                                              const Tensor& normalizers, int64_t dataset_size, const std::string& estimator, int64_t first_row, int64_t wanted) {
  Batch batch(z, mean, logvar, dataset_size, estimator, first_row);
  TotalCorrelationBackward b{};
  b.forward = batch.p;
  TotalCorrelation& p = b.forward;
  STD_TORCH_CHECK(has_sizes(normalizers, {2, p.rows, p.dims + 1}) && normalizers.scalar_type() == accumulate_type(batch.z.dtype), "genmod: normalizers must be those of the forward pass");
  const Tensor dense = torch::stable::contiguous(normalizers);
  p.normalizers = batch.normalizers((char*)const_cast<void*>(dense.const_data_ptr()));
  const double share = 1. / (double)p.batch;
  const double information = value_of(grad_mutual_information, batch.z) * share, correlation = value_of(grad_total_correlation, batch.z) * share, kl = value_of(grad_dimension_kl, batch.z) * share;
  b.to_joint = correlation - information;
  b.to_marginals = kl - correlation;
  b.to_own = information;
  b.to_prior = kl;
  b.partitions = std::min<int64_t>(16, tiles_of(p.batch));
  Tensor partial = batch.z.scratch(b.partitions, p.rows * p.dims);
  Tensor d_z = batch.z.scratch(p.rows, p.dims), d_mean = batch.z.scratch(p.batch, p.dims), d_logvar = batch.z.scratch(p.batch, p.dims);
  b.partial = partial.mutable_data_ptr();
  b.d_z = d_z.mutable_data_ptr();
  b.d_mean = d_mean.mutable_data_ptr();
  b.d_logvar = d_logvar.mutable_data_ptr();
  run(kernels().total_correlation_columns, b, b.partitions, batch.pairs() / (double)b.partitions * (double)p.rows);
  run(kernels().total_correlation_rows, b, p.rows, (double)(p.dims * b.partitions));
  const auto result = [&](const Tensor& t, int bit) { return wanted >> bit & 1 ? batch.z.narrowed(t) : batch.z.nothing(); };
  return {result(d_z, 0), result(d_mean, 1), result(d_logvar, 2)};
}

// --- Maximum mean discrepancy.

// A sample as rows, and transposed as columns.
struct Points {
  Matrix rows;
  int64_t stride;
  Tensor columns;

  explicit Points(const Tensor& t) : rows(t), stride(stride_of(rows.rows)), columns(rows.scratch(rows.dims, stride)) {
    const Transpose p{rows.wide, rows.rows, rows.dims, stride, rows.data(), columns.mutable_data_ptr()};
    run(kernels().transpose, p, tiles_of(rows.rows), (double)(kTile * rows.dims));
  }
};

struct Discrepancy {
  Points x, y;
  std::optional<Points> all_x, all_y;
  PairKernel kernel;
  const std::vector<double>& widths;

  Discrepancy(const Tensor& x_, const Tensor& y_, const std::optional<Tensor>& all_x_, const std::optional<Tensor>& all_y_, int64_t first_x, int64_t first_y, const std::string& name, const std::vector<double>& widths)
      : x(x_), y(y_), kernel(name == "rbf" ? PairKernel::rbf : PairKernel::imq), widths(widths) {
    STD_TORCH_CHECK(name == "imq" || name == "rbf", "genmod: kernel must be 'imq' or 'rbf', got '", name, "'");
    if (all_x_) all_x.emplace(*all_x_);
    if (all_y_) all_y.emplace(*all_y_);
    for (const Points* other : std::initializer_list<const Points*>{&y, &columns_x(), &columns_y()}) x.rows.check_like(other->rows);
    STD_TORCH_CHECK(inside(x, first_x, columns_x()) && inside(y, first_y, columns_y()), "genmod: the rows of x and y must be rows of all_x and all_y");
  }
  static bool inside(const Points& some, int64_t first, const Points& all) {
    return first >= 0 && some.rows.rows <= all.rows.rows && first <= all.rows.rows - some.rows.rows;
  }
  const Points& columns_x() const { return all_x ? *all_x : x; }
  const Points& columns_y() const { return all_y ? *all_y : y; }

  static double within(const Points& all, bool unbiased) {
    const double n = (double)all.rows.rows;
    return 1 / (n * (unbiased ? n - 1 : n));
  }
  double between() const { return -2 / ((double)columns_x().rows.rows * (double)columns_y().rows.rows); }

  PairSum pairs(const Points& row, const Points& column) const {
    PairSum p{};
    p.wide = row.rows.wide;
    p.kernel = kernel;
    p.rows = row.rows.rows;
    p.columns = column.rows.rows;
    p.dims = row.rows.dims;
    p.stride = column.stride;
    p.widths = widths.data();
    p.width_count = (int64_t)widths.size();
    p.row = row.rows.data();
    p.column = column.columns.const_data_ptr();
    return p;
  }
  static double work(const PairSum& p) { return (double)(kRowBlock * p.columns) * (double)(p.dims + 4 * p.width_count); }

  double sum(const Points& row, const Points& column, bool skip, int64_t first) const {
    PairSum p = pairs(row, column);
    p.skip = skip;
    p.first = first;
    std::vector<double> sums((size_t)row_blocks(p.rows));
    p.sums = sums.data();
    run(kernels().pair_sum, p, row_blocks(p.rows), work(p));
    double total = 0;
    for (double s : sums) total += s;
    return total;
  }

  struct Part { const Points& others; double factor; };

  // The gradient of points by what each of `parts` pulls them to.
  Tensor pull(const Points& points, const std::vector<Part>& parts) const {
    Tensor out = points.rows.scratch(points.rows.rows, points.rows.dims);
    torch::stable::zero_(out);
    for (const Part& part : parts) {
      const PairPull b{pairs(points, part.others), 2 * part.factor, out.mutable_data_ptr()};
      run(kernels().pair_pull, b, row_blocks(b.pairs.rows), 2 * work(b.pairs));
    }
    return points.rows.narrowed(out);
  }
};

Tensor mmd(const Tensor& x, const Tensor& y, const std::optional<Tensor>& all_x, const std::optional<Tensor>& all_y, int64_t first_x, int64_t first_y,
           const std::string& kernel, std::vector<double> widths, bool unbiased) {
  const Discrepancy m(x, y, all_x, all_y, first_x, first_y, kernel, widths);
  const double total = Discrepancy::within(m.columns_x(), unbiased) * m.sum(m.x, m.columns_x(), unbiased, first_x) +
                       Discrepancy::within(m.columns_y(), unbiased) * m.sum(m.y, m.columns_y(), unbiased, first_y) + m.between() * m.sum(m.x, m.columns_y(), false, 0);
  return scalar(total, m.x.rows);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mmd_backward(const Tensor& grad, const Tensor& x, const Tensor& y, const std::optional<Tensor>& all_x,
                                                        const std::optional<Tensor>& all_y, int64_t first_x, int64_t first_y, const std::string& kernel,
                                                        std::vector<double> widths, bool unbiased, int64_t wanted) {
  const Discrepancy m(x, y, all_x, all_y, first_x, first_y, kernel, widths);
  const double g = value_of(grad, m.x.rows), of_x = g * Discrepancy::within(m.columns_x(), unbiased), of_y = g * Discrepancy::within(m.columns_y(), unbiased), of_both = g * m.between();
  const auto want = [&](int bit) { return (wanted >> bit & 1) != 0; };
  Tensor d_x = m.x.rows.nothing(), d_y = m.y.rows.nothing(), d_all_x = m.x.rows.nothing(), d_all_y = m.y.rows.nothing();
  // A pair pulls its row, and its column just as much the other way; a point that is both is pulled twice.
  if (want(0)) d_x = m.pull(m.x, {{m.columns_x(), m.all_x ? of_x : 2 * of_x}, {m.columns_y(), of_both}});
  if (want(1)) d_y = m.all_y ? m.pull(m.y, {{*m.all_y, of_y}}) : m.pull(m.y, {{m.y, 2 * of_y}, {m.x, of_both}});
  if (want(2) && m.all_x) d_all_x = m.pull(*m.all_x, {{m.x, of_x}});
  if (want(3) && m.all_y) d_all_y = m.pull(*m.all_y, {{m.y, of_y}, {m.x, of_both}});
  return {d_x, d_y, d_all_x, d_all_y};
}

// --- Disentangled inferred priors.

const DipKernels& covariance_kernels() { return GENMOD_SELECT(dip_kernels); }

// Means, and log-variances where they are given, laid out for the kernels.
struct Posteriors {
  Matrix mean;
  std::optional<Matrix> logvar;

  Posteriors(const Tensor& mean_, const std::optional<Tensor>& logvar_) : mean(mean_) {
    if (!logvar_) return;
    logvar.emplace(*logvar_);
    mean.check_like(*logvar);
    STD_TORCH_CHECK(mean.rows == logvar->rows, "genmod: mean and logvar must have one shape");
  }
  template <class Params> Params params(double lambda_od, double lambda_d) const {
    Params p{};
    p.wide = mean.wide;
    p.rows = mean.rows;
    p.dims = mean.dims;
    p.mean = mean.data();
    p.logvar = logvar ? logvar->data() : nullptr;
    p.lambda_od = lambda_od;
    p.lambda_d = lambda_d;
    return p;
  }
  int64_t item() const { return mean.wide ? 8 : 4; }
  double work() const { return (double)(kPart * mean.dims); }  // of a part, element by element
};

std::tuple<Tensor, Tensor> dip(const Tensor& mean, const std::optional<Tensor>& logvar, double lambda_od, double lambda_d) {
  const Posteriors given(mean, logvar);
  Covariance p = given.params<Covariance>(lambda_od, lambda_d);
  const int64_t parts = parts_of(p.rows), tiles = covariance_tiles_of(p.dims);
  std::vector<double> sums((size_t)(parts * 2 * p.dims)), variance((size_t)p.dims), penalties((size_t)tiles);
  Tensor moments = given.mean.scratch(p.dims + 1, p.dims);
  p.sums = sums.data();
  run(covariance_kernels().sum, p, parts, given.work() * (logvar ? 4 : 1));
  char* average = (char*)moments.mutable_data_ptr() + p.dims * p.dims * given.item();
  for (int64_t d = 0; d < p.dims; d++) {
    double of_means = 0, of_variances = 0;
    for (int64_t part = 0; part < parts; part++) {
      of_means += sums[(size_t)(part * 2 * p.dims + d)];
      of_variances += sums[(size_t)(part * 2 * p.dims + p.dims + d)];
    }
    if (p.wide) ((double*)average)[d] = of_means / (double)p.rows;
    else ((float*)average)[d] = (float)(of_means / (double)p.rows);
    variance[(size_t)d] = of_variances / (double)p.rows;
  }
  p.variance = variance.data();
  p.average = average;
  p.covariance = moments.mutable_data_ptr();
  p.penalties = penalties.data();
  run(covariance_kernels().covariance, p, tiles, (double)(p.rows * kBand * kPanel) / 16);
  double penalty = 0;
  for (double of_tile : penalties) penalty += of_tile;
  return {scalar(penalty, given.mean), moments};
}

std::tuple<Tensor, Tensor> dip_backward(const Tensor& grad, const Tensor& mean, const std::optional<Tensor>& logvar, const Tensor& moments, double lambda_od, double lambda_d, int64_t wanted) {
  const Posteriors given(mean, logvar);
  CovarianceBackward b = given.params<CovarianceBackward>(lambda_od, lambda_d);
  STD_TORCH_CHECK(has_sizes(moments, {b.dims + 1, b.dims}) && moments.scalar_type() == accumulate_type(given.mean.dtype), "genmod: moments must be those of the forward pass");
  const Tensor dense = torch::stable::contiguous(moments);
  b.covariance = dense.const_data_ptr();
  b.average = (const char*)dense.const_data_ptr() + b.dims * b.dims * given.item();
  b.to_logvar = value_of(grad, given.mean) / (double)b.rows;
  b.to_mean = 2 * b.to_logvar;
  Tensor slope = given.mean.scratch(b.dims, padded(b.dims)), variance_slope = given.mean.scratch(1, b.dims);
  b.slope = slope.mutable_data_ptr();
  b.variance_slope = variance_slope.mutable_data_ptr();
  Tensor results[2] = {given.mean.nothing(), given.mean.nothing()};
  if (wanted & 1) {
    results[0] = given.mean.scratch(b.rows, b.dims);
    b.d_mean = results[0].mutable_data_ptr();
  }
  if (wanted & 2 && logvar) {
    results[1] = given.mean.scratch(b.rows, b.dims);
    b.d_logvar = results[1].mutable_data_ptr();
  }
  run(covariance_kernels().slope, b, b.dims, (double)b.dims);
  run(covariance_kernels().pull, b, parts_of(b.rows), given.work() * (double)(b.dims + 64) / 16);
  if (b.d_mean) results[0] = given.mean.narrowed(results[0]);
  if (b.d_logvar) results[1] = given.mean.narrowed(results[1]);
  return {results[0], results[1]};
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("total_correlation", GENMOD_BOX(&genmod::total_correlation));
  m.impl("total_correlation_backward", GENMOD_BOX(&genmod::total_correlation_backward));
  m.impl("mmd", GENMOD_BOX(&genmod::mmd));
  m.impl("mmd_backward", GENMOD_BOX(&genmod::mmd_backward));
  m.impl("dip", GENMOD_BOX(&genmod::dip));
  m.impl("dip_backward", GENMOD_BOX(&genmod::dip_backward));
}
