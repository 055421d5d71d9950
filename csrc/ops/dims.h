// Sizes or strides, for the usual number of dimensions without the allocation that a vector makes: a small call makes a
// dozen of them, and they would take as long as its kernel.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

namespace genmod {

class Dims {
 public:
  Dims() = default;
  Dims(std::initializer_list<int64_t> values) : Dims(values.begin(), values.size()) {}
  Dims(const torch::headeronly::IntHeaderOnlyArrayRef& values) : Dims(values.data(), values.size()) {}

  operator torch::headeronly::IntHeaderOnlyArrayRef() const { return {data(), count_}; }
  int64_t& operator[](int64_t i) { return (count_ > kFew ? many_.data() : few_)[i]; }
  int64_t operator[](int64_t i) const { return data()[i]; }
  int64_t back() const { return data()[count_ - 1]; }
  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  const int64_t* data() const { return count_ > kFew ? many_.data() : few_; }
  const int64_t* begin() const { return data(); }
  const int64_t* end() const { return data() + count_; }
  bool operator==(const Dims& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }
  bool operator!=(const Dims& other) const { return !(*this == other); }

 private:
  static constexpr size_t kFew = 5;
  size_t count_ = 0;
  int64_t few_[kFew];
  std::vector<int64_t> many_;  // all of them, if there are more

  Dims(const int64_t* values, size_t count) : count_(count) {
    if (count > kFew) many_.assign(values, values + count);
    else std::copy_n(values, count, few_);
  }
};

}  // namespace genmod
