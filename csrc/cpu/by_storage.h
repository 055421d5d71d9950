// Entry points of kernels: what is told at run time becomes a type.
#pragma once
#include "../types.h"

// name##_any(p, first, last) runs the statements with S, the type of the elements in memory.
#define GENMOD_BY_STORAGE(name, Params, ...)                                     \
  static void name##_any(const Params& p, int64_t first, int64_t last) {         \
    const auto run = [&](auto storage) {                                         \
      using S = decltype(storage);                                               \
      __VA_ARGS__                                                                \
    };                                                                           \
    switch (p.dtype) {                                                           \
      case Dtype::f32: return run(float{});                                      \
      case Dtype::f64: return run(double{});                                     \
      case Dtype::bf16: return run(bf16{});                                      \
      case Dtype::f16: return run(f16{});                                        \
    }                                                                            \
  }
