// The adversarial family on the CPU. Every sum is kept per chunk, so results do not depend on the number of threads.
#pragma once
#include "../adversarial_types.h"
#include "chunks.h"
#include "isa.h"

namespace genmod {

// One side of a loss: weight * curve(sign * x + shift) over `numel` logits, each with derivative * scale.
struct AdversarialSide {
  const void* x = nullptr;  // dense; null: this side is not there
  void* d = nullptr;        // dense, or null: not wanted
  int64_t numel = 0;
  double sign = 0, shift = 0, weight = 0, scale = 1;
};

struct Adversarial {
  Dtype dtype;
  Curve curve;
  bool paired;              // one side, that of real.x - fake.x; its derivative by fake is minus that by real
  AdversarialSide real, fake;
  int64_t numel;            // of the larger side
  void* loss;               // per element in the accumulation type, or null
  double* sums;             // per chunk, those of the real side and then of the fake one, without their scale; or null
  const void* grad;         // of the loss, in the accumulation type, or null for 1
  bool grad_per_element;
  bool narrow;              // derivatives are written in the logits' type; else in the accumulation type
};

struct AdversarialKernels {
  void (*run)(const Adversarial&, int64_t first_chunk, int64_t last_chunk);
};

GENMOD_DECLARE(AdversarialKernels, adversarial_kernels)

}  // namespace genmod
