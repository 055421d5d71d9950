// How a thread reaches memory: a pack of neighbours at once where layout and alignment allow, one by one elsewhere.
// Storage is any of four types, arithmetic float, or double for double.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../types.h"

namespace genmod {
namespace cuda {

template <class S> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };

// N neighbours, moved by accesses of up to 16 bytes. Kept in the storage type until they are used: a conversion right
// after a load would wait for it before the next load starts.
template <class S, int N> struct alignas(sizeof(S) * N < 16 ? sizeof(S) * N : 16) Pack { S v[N]; };

// The N that kernels use for tensors of type S. Doubles go one by one: a warp's accesses are wide enough without.
template <class S> constexpr int kPack = sizeof(S) == 8 ? 1 : 4;

// n / d for any 0 <= n < 2^63 without the hundred instructions of a 64-bit division: a multiplication by the rounded-up
// reciprocal 2^(63 + s) / d, s = ceil(log2 d), whose error is too small to matter (Granlund and Montgomery, PLDI 1994).
struct Divider {
  uint64_t reciprocal = 0;
  int shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) {
    while (((uint64_t)1 << shift) < (uint64_t)d) shift++;
    const unsigned __int128 power = (unsigned __int128)1 << (63 + shift);
    reciprocal = (uint64_t)((power + (uint64_t)d - 1) / (uint64_t)d);
  }
  __device__ int64_t quotient(int64_t n) const { return (int64_t)(__umul64hi(reciprocal, (uint64_t)n << 1) >> shift); }
};

// The flat output cut into rows of `cols` elements.
struct Columns {
  int64_t cols = 0;  // 0: all in one row
  Divider by;

  Columns() = default;
  Columns(int64_t cols, int64_t numel) : cols(cols == numel ? 0 : cols), by(cols) {}

  // How far into a tensor element `index` is, if its rows are `stride` apart.
  __device__ int64_t offset(int64_t index, int64_t stride) const {
    if (cols == 0) return index;
    const int64_t row = by.quotient(index);
    return index + row * (stride - cols);
  }
};

// Elements index .. index + N - 1 of a dense tensor, and of one in rows.
template <class S, int N> __device__ __forceinline__ Pack<S, N> load(const void* data, int64_t index) {
  return *reinterpret_cast<const Pack<S, N>*>(static_cast<const S*>(data) + index);
}
template <class S, int N>
__device__ __forceinline__ Pack<S, N> load_rows(const Rows& rows, const Columns& columns, int64_t index) {
  return load<S, N>(rows.data, columns.offset(index, rows.stride));
}
template <class S, int N> __device__ __forceinline__ void store(void* data, int64_t index, const Pack<S, N>& x) {
  *reinterpret_cast<Pack<S, N>*>(static_cast<S*>(data) + index) = x;
}

// Whether packs of N neighbours of a tensor never cross a row and are aligned; an absent tensor never objects.
template <class S, int N> bool packs_fit(const void* data, const Columns& columns, int64_t stride) {
  const bool rows_fit = columns.cols == 0 || (columns.cols % N == 0 && stride % N == 0);
  return data == nullptr || (rows_fit && reinterpret_cast<uintptr_t>(data) % alignof(Pack<S, N>) == 0);
}

}  // namespace cuda
}  // namespace genmod
