// Runs a kernel over the chunks of a dense output, on as many threads as that is worth.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "cpu/chunks.h"

namespace genmod {

constexpr int64_t kGrain = 16;  // chunks a thread takes at least: below that, waking it costs more than it saves

template <class Params> void run(void (*kernel)(const Params&, int64_t, int64_t), const Params& p) {
  const int64_t chunks = chunk_count(p.numel);
  if (chunks <= kGrain) return kernel(p, 0, chunks);
  torch::stable::parallel_for(0, chunks, kGrain, [&](int64_t first, int64_t last) { kernel(p, first, last); });
}

}  // namespace genmod
