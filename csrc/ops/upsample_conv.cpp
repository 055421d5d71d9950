// Upsampling convolutions on the CPU: matrix products, which are torch's, of tiles that stay in cache, and the kernels of
// cpu/upsample_conv.cpp between them and the images. Schemas, fakes, autograd and checks: genmod/ops/upsample_conv.py.
#include "cpu/upsample_conv.h"

#include "convolved_3x3.h"

#include <algorithm>
#include <array>
#include <tuple>

namespace genmod {
namespace {

constexpr int64_t kTileBytes = 2 << 20;  // of taps: they are written, read once and forgotten, so they should stay in cache
constexpr int64_t kGrainElements = 1 << 14;  // of work for a thread

template <class Params> void run(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t items, int64_t elements_per_item) {
  run_pieces(kernel, p, items, (double)elements_per_item, (double)kGrainElements);
}

void copy(StridedCopy p) {
  run(GENMOD_SELECT(upsample_kernels).copy, p, p.sizes[0], p.sizes[1] * p.sizes[2]);
}

// A matrix in the accumulation type; `transposed` if its columns are what is contiguous.
struct Matrix {
  void* data;
  int64_t rows, cols, step;
  bool transposed = false;

  Matrix t() const { return {data, cols, rows, step, !transposed}; }
};

// out = a b
void multiply(const Matrix& out, const Matrix& a, const Matrix& b, const Tensor& like, ScalarType type) {
  const auto view = [&](const Matrix& m) {
    const int64_t sizes[2] = {m.rows, m.cols}, strides[2] = {m.transposed ? 1 : m.step, m.transposed ? m.step : 1};
    return torch::stable::from_blob(m.data, {sizes, 2}, {strides, 2}, like.device(), type);
  };
  // Not through matmul, which autocast would run in half precision.
  std::array<StableIValue, 3> stack{torch::stable::detail::from(view(a)), torch::stable::detail::from(view(b)), torch::stable::detail::from(view(out))};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// The sizes of one convolution and how its work is cut into tiles, which depends on nothing but them.
struct Problem {
  Dtype dtype;
  ScalarType type;  // of sums
  int64_t item;     // bytes of one
  MemoryFormat format, weight_format;
  bool channels_last;
  int64_t batch, inputs, outputs, groups, height, width;
  int64_t samples = 0, rows = 0;  // of a tile: whole samples, or some rows of one

  Problem(const Tensor& x, const Tensor& weight, int64_t groups)
      : dtype(dtype_of(x)),
        type(accumulate_type(dtype)),
        item(dtype == Dtype::f64 ? 8 : 4),
        format(format_of(View(x))),
        weight_format(format_of(View(weight))),
        channels_last(format != MemoryFormat::Contiguous),
        batch(x.size(0)),
        inputs(x.size(1)),
        outputs(weight.size(0)),
        groups(groups),
        height(x.size(2)),
        width(x.size(3)) {
    STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && groups > 0 &&
                        inputs % groups == 0 && weight.size(1) == inputs / groups && outputs % groups == 0,
                    "genmod: expected x [N, C, H, W] and a weight [Cout, C / groups, 3, 3]");
    STD_TORCH_CHECK(dtype_of(weight) == dtype, "genmod: x and weight must have one dtype");
    if (empty()) return;
    const int64_t pixels = std::max<int64_t>(1, kTileBytes / (9 * out() * item));
    samples = std::min(batch, std::max<int64_t>(1, pixels / (height * width)));
    const int64_t tiles = samples > 1 ? 1 : (height * width + pixels - 1) / pixels;
    rows = std::min(height, std::max<int64_t>(4, (height + tiles - 1) / tiles));
  }

  bool empty() const { return !batch || !outputs || !height || !width; }  // nothing comes out
  int64_t in() const { return inputs / groups; }
  int64_t out() const { return outputs / groups; }
  int64_t pixels() const { return height * width; }
  bool wide() const { return dtype == Dtype::f32 || dtype == Dtype::f64; }
  Tensor scratch(int64_t elements, const Tensor& like) const { return genmod::empty({elements}, like, type); }

  // Taps of `rows` rows of `samples` samples.
  Image taps(void* data, int64_t samples, int64_t rows) const {
    const int64_t cols = samples * rows * width;
    return channels_last ? Image{data, rows * width * 9 * out(), 1, width * 9 * out(), 9 * out()} : Image{data, rows * width, cols, width, 1};
  }
  UpsampleTile tile(const Image& taps, int64_t tap, int64_t samples, char* image, int64_t n, int64_t group) const {
    const int64_t h = 2 * height, w = 2 * width, size = item_size(dtype);
    const int64_t offset = n * outputs * h * w + group * out() * (channels_last ? 1 : h * w);
    void* data = image + offset * size;
    UpsampleTile t{};
    t.dtype = dtype;
    t.channels_last = channels_last;
    t.samples = samples;
    t.channels = out();
    t.height = height;
    t.width = width;
    t.taps = taps;
    t.tap = tap;
    t.image = channels_last ? Image{data, outputs * h * w, 1, w * outputs, outputs} : Image{data, outputs * h * w, h * w, w, 1};
    return t;
  }
  int64_t work_per_item() const { return 9 * width * (channels_last ? out() : 1); }
};

// The weight in the order of the products: [group][tap][output][input].
struct Weight {
  Tensor dense;
  void* data;
  const Problem& p;

  Weight(const Problem& p, const Tensor& like) : dense(p.scratch(9 * p.outputs * p.in(), like)), data(dense.mutable_data_ptr()), p(p) {}

  void pack(const Tensor& weight) const {
    const Tensor from = densified(weight, p.weight_format);
    transfer(StridedCopy::widens, (char*)from.const_data_ptr());
  }
  void unpack(const Tensor& weight) const { transfer(StridedCopy::narrows, (char*)weight.mutable_data_ptr()); }

  Matrix matrix(int64_t group) const { return {(char*)data + group * 9 * p.out() * p.in() * p.item, 9 * p.out(), p.in(), p.in()}; }

 private:
  void transfer(decltype(StridedCopy::widens) kind, char* weight) const {
    const int64_t in = p.in(), out = p.out();
    const bool taps_first = p.weight_format != MemoryFormat::Contiguous;
    for (int64_t group = 0; group < p.groups; group++) {
      void *theirs = weight + group * out * 9 * in * item_size(p.dtype), *ours = matrix(group).data;
      StridedCopy c{kind, p.dtype, theirs, ours, {out, 9, in}, {9 * in, taps_first ? in : 1, taps_first ? 1 : 9}, {in, out * in, 1}};
      if (kind == StridedCopy::narrows) {
        std::swap(c.from_strides, c.to_strides);
        c.from = ours;
        c.to = theirs;
      }
      copy(c);
    }
  }
};

// Pixels of x, or of its gradient, as matrices [input, pixel] (channels_last: [pixel, input]) in the accumulation type:
// in place where they lie so, through a buffer where they do not.
struct Pixels {
  const Problem& p;
  char* data;
  bool direct;
  Tensor buffer;

  Pixels(const Problem& p, const Tensor& x, void* data) : p(p), data((char*)data), direct(p.wide() && (p.channels_last || p.samples == 1)) {
    if (!direct) buffer = p.scratch(p.samples * p.rows * p.width * p.inputs, x);
  }

  Matrix matrix(int64_t n, int64_t samples, int64_t row, int64_t rows, int64_t group) const {
    const int64_t pixels = samples * rows * p.width, channel = group * p.in();
    char* base = direct ? data + offset(n, row) * p.item : (char*)buffer.mutable_data_ptr();
    if (p.channels_last) return {base + channel * p.item, pixels, p.in(), p.inputs};
    const int64_t step = direct ? p.pixels() : pixels;
    return {base + channel * step * p.item, p.in(), pixels, step};
  }
  void fetch(int64_t n, int64_t samples, int64_t row, int64_t rows) const { transfer(StridedCopy::widens, n, samples, row, rows); }
  void deliver(int64_t n, int64_t samples, int64_t row, int64_t rows) const { transfer(StridedCopy::narrows, n, samples, row, rows); }

 private:
  int64_t offset(int64_t n, int64_t row) const { return n * p.inputs * p.pixels() + row * p.width * (p.channels_last ? p.inputs : 1); }

  void transfer(decltype(StridedCopy::widens) kind, int64_t n, int64_t samples, int64_t row, int64_t rows) const {
    if (direct) return;
    const int64_t part = rows * p.width;
    void *theirs = data + offset(n, row) * item_size(p.dtype), *ours = buffer.mutable_data_ptr();
    StridedCopy c{kind, p.dtype, theirs, ours, {p.inputs, samples, part}, {p.pixels(), p.inputs * p.pixels(), 1}, {samples * part, part, 1}};
    if (p.channels_last) {
      // One sample's rows, or whole samples: contiguous either way.
      c = {kind, p.dtype, theirs, ours, {samples * part, 1, p.inputs}, {p.inputs, 0, 1}, {p.inputs, 0, 1}};
    }
    if (kind == StridedCopy::narrows) {
      std::swap(c.from_strides, c.to_strides);
      c.from = ours;
      c.to = theirs;
    }
    copy(c);
  }
};

// Taps that the tile before computed already, from row `kept` of the buffer on, move to its start.
void keep(const Problem& p, const Image& taps, int64_t rows, int64_t kept) {
  const int64_t row = p.width * (p.channels_last ? 9 * p.out() : 1);
  char* from = (char*)taps.data + kept * row * p.item;
  const int64_t lines = p.channels_last ? 1 : 9 * p.out(), step = p.channels_last ? 0 : taps.channel;
  copy({StridedCopy::moves, p.dtype, from, taps.data, {lines, 1, rows * row}, {step, 0, 1}, {step, 0, 1}});
}

// All nine taps of each pixel, and their sums: see genmod/reference/upsample_conv.py.
Tensor by_taps(const Problem& p, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t groups) {
  Tensor y = empty({p.batch, p.outputs, 2 * p.height, 2 * p.width}, x, x.scalar_type(), p.format);
  if (p.empty()) return y;
  const Tensor dense = densified(x, p.format);
  const Weight w(p, x);
  w.pack(weight);
  std::optional<Tensor> b;
  if (bias) b = torch::stable::to(torch::stable::contiguous(*bias), p.type);

  constexpr int64_t overlap = 2;  // rows: a tile's sums need the last two of the tile before
  const int64_t room = p.rows == p.height ? p.height : p.rows + overlap;
  const Tensor buffer = p.scratch(p.samples * room * p.width * 9 * p.out(), x);
  const Pixels pixels(p, x, const_cast<void*>(dense.const_data_ptr()));
  for (int64_t n = 0; n < p.batch; n += p.samples) {
    const int64_t samples = std::min(p.samples, p.batch - n);
    const Image taps = p.taps(buffer.mutable_data_ptr(), samples, room);
    const int64_t tap = p.channels_last ? p.out() : p.out() * taps.channel;
    for (int64_t group = 0; group < p.groups; group++) {
      int64_t held = 0;  // the row that lies first in the buffer
      for (int64_t row = 0; row < p.height; row += p.rows) {
        const int64_t end = std::min(row + p.rows, p.height), first = std::max<int64_t>(0, row - overlap);
        if (row > 0) keep(p, taps, row - first, first - held);
        held = first;
        pixels.fetch(n, samples, row, end - row);
        const Matrix m = pixels.matrix(n, samples, row, end - row, group);
        char* out = (char*)taps.data + (row - first) * taps.row * p.item;
        if (p.channels_last) multiply({out, m.rows, 9 * p.out(), 9 * p.out()}, m, w.matrix(group).t(), x, p.type);
        else multiply({out, 9 * p.out(), m.cols, taps.channel}, w.matrix(group), m, x, p.type);
        UpsampleTile t = p.tile(taps, tap, samples, (char*)y.mutable_data_ptr(), n, group);
        t.first = first;
        t.begin = row == 0 ? 0 : row - 1;
        t.end = end == p.height ? end : end - 1;
        t.bias = b ? (const char*)b->const_data_ptr() + group * p.out() * p.item : nullptr;
        run(GENMOD_SELECT(upsample_kernels).combine, t, upsample_items(t), p.work_per_item());
      }
    }
  }
  return y;
}

// Minimal filtering transforms the weight at each call, which with few pixels is most of its work, and fills its registers
// with output channels.
constexpr int64_t kPairsPerPixel = 256;  // of an input and an output channel
constexpr int64_t kFewOutputs = 12;

Tensor upsample_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t groups) {
  const Problem p(x, weight, groups);
  STD_TORCH_CHECK(!bias || (has_sizes(*bias, {p.outputs}) && dtype_of(*bias) == p.dtype), "genmod: bias must have as many elements as there are output channels");
  if ((groups == 1 && p.outputs < kFewOutputs) || p.in() * p.out() > kPairsPerPixel * p.batch * p.pixels()) return by_taps(p, x, weight, bias, groups);
  return convolved_3x3(x, weight, bias, groups, false, true);
}

Tensor bias_gradient(const Tensor& grad, const Problem& p) {
  const int64_t dims[3] = {0, 2, 3};
  return torch::stable::to(torch::stable::sum(grad, torch::headeronly::IntHeaderOnlyArrayRef(dims, 3), false, p.type), grad.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> upsample_conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, int64_t groups, int64_t wanted) {
  const Problem p(x, weight, groups);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == p.batch && grad.size(1) == p.outputs && grad.size(2) == 2 * p.height && grad.size(3) == 2 * p.width &&
                      dtype_of(grad) == p.dtype,
                  "genmod: the gradient must have the shape and dtype of the result");
  const bool want_x = wanted & 1, want_weight = wanted & 2, want_bias = wanted & 4;
  Tensor d_x = want_x ? empty(x.sizes(), x, x.scalar_type(), p.format) : empty({0}, x, x.scalar_type());
  Tensor d_weight = want_weight ? empty(weight.sizes(), x, x.scalar_type(), p.weight_format) : empty({0}, x, x.scalar_type());
  Tensor d_bias = want_bias ? bias_gradient(grad, p) : empty({0}, x, x.scalar_type());
  if (p.empty()) {
    if (want_x) torch::stable::zero_(d_x);
    if (want_weight) torch::stable::zero_(d_weight);
    return {d_x, d_weight, d_bias};
  }
  if (!(want_x || want_weight)) return {d_x, d_weight, d_bias};

  const Tensor image = densified(grad, p.format), dense = want_weight ? densified(x, p.format) : x;
  const Weight w(p, x), sum(p, x), part(p, x);
  if (want_x) w.pack(weight);
  const Tensor buffer = p.scratch(p.samples * p.rows * p.width * 9 * p.out(), x);
  const Pixels pixels(p, x, want_weight ? const_cast<void*>(dense.const_data_ptr()) : nullptr);
  const Pixels out(p, x, want_x ? d_x.mutable_data_ptr() : nullptr);
  for (int64_t n = 0; n < p.batch; n += p.samples) {
    const int64_t samples = std::min(p.samples, p.batch - n);
    for (int64_t row = 0; row < p.height; row += p.rows) {
      const int64_t rows = std::min(p.rows, p.height - row);
      const bool start = n == 0 && row == 0;
      const Image taps = p.taps(buffer.mutable_data_ptr(), samples, rows);
      const int64_t tap = p.channels_last ? p.out() : p.out() * taps.channel;
      if (want_weight) pixels.fetch(n, samples, row, rows);
      for (int64_t group = 0; group < groups; group++) {
        UpsampleTile t = p.tile(taps, tap, samples, (char*)image.const_data_ptr(), n, group);
        t.first = t.begin = row;
        t.end = row + rows;
        run(GENMOD_SELECT(upsample_kernels).spread, t, upsample_items(t), p.work_per_item());
        const int64_t cols = samples * rows * p.width;
        // [pixel, tap and output] or, in contiguous memory, the transpose.
        const Matrix spread = p.channels_last ? Matrix{taps.data, cols, 9 * p.out(), 9 * p.out()} : Matrix{taps.data, 9 * p.out(), cols, cols};
        if (want_x) {
          const Matrix m = out.matrix(n, samples, row, rows, group);
          if (p.channels_last) multiply(m, spread, w.matrix(group), x, p.type);
          else multiply(m, w.matrix(group).t(), spread, x, p.type);
        }
        if (want_weight) {
          const Matrix m = pixels.matrix(n, samples, row, rows, group), to = (start ? sum : part).matrix(group);
          if (p.channels_last) multiply(to, spread.t(), m, x, p.type);
          else multiply(to, spread, m.t(), x, p.type);
          if (!start) copy({StridedCopy::adds, p.dtype, to.data, sum.matrix(group).data, {to.rows, 1, to.cols}, {to.cols, 0, 1}, {to.cols, 0, 1}});
        }
      }
      if (want_x) out.deliver(n, samples, row, rows);
    }
  }
  if (want_weight) sum.unpack(d_weight);
  return {d_x, d_weight, d_bias};
}

}  // namespace
}  // namespace genmod

STABLE_TORCH_LIBRARY_IMPL(genmod, CPU, m) {
  m.impl("upsample_conv2d", GENMOD_BOX(&genmod::upsample_conv2d));
  m.impl("upsample_conv2d_backward", GENMOD_BOX(&genmod::upsample_conv2d_backward));
}
