// TORCH_BOX for functions that take strings. Its own conversion leaks a std::string at each call up to PyTorch 2.13
// (pytorch/pytorch#191340), 48 bytes that also keep the memory around them from being used again. Here the string is
// taken from its handle, which is then released.
#pragma once
#include <torch/csrc/stable/library.h>

#include <string>
#include <type_traits>

namespace genmod {

// How an argument of a function arrives, and what becomes of it.
template <class T> struct Argument {
  using Boxed = T;
  static const T& take(const T& value) { return value; }
};
template <> struct Argument<std::string> {
  using Boxed = StringHandle;
  static std::string take(StringHandle handle) {
    size_t length;
    const char* data;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    const std::string text(data, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
template <class P> using ArgumentOf = Argument<std::remove_cv_t<std::remove_reference_t<P>>>;

template <auto FUNCTION> struct Box;
template <class R, class... P, R (*FUNCTION)(P...)> struct Box<FUNCTION> {
  static R call(const typename ArgumentOf<P>::Boxed&... arguments) { return FUNCTION(ArgumentOf<P>::take(arguments)...); }
};

}  // namespace genmod

#define GENMOD_BOX(function) TORCH_BOX(&::genmod::Box<function>::call)
