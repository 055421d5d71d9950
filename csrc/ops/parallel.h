// Runs a kernel over pieces of work, on as many threads as that is worth.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace genmod {

// `work` is that of a piece, in operations or whatever `least`, what a thread takes at least, is given in.
template <class Params>
void run_pieces(void (*kernel)(const Params&, int64_t, int64_t), const Params& p, int64_t pieces, double work, double least) {
  const int64_t grain = std::max<int64_t>(1, (int64_t)(least / std::max(work, 1.0)));
  if (pieces <= grain) return kernel(p, 0, pieces);
  torch::stable::parallel_for(0, pieces, grain, [&](int64_t first, int64_t last) { kernel(p, first, last); });
}

}  // namespace genmod
