// Work on the CPU is cut into chunks of a flat, dense output; any range of chunks may run on any thread.
#pragma once
#include <stdint.h>

namespace genmod {

constexpr int64_t kChunk = 1024;  // elements; a multiple of Philox's 64-element block, small enough for level-1 cache

inline int64_t chunk_count(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

}  // namespace genmod
