// How a group norm is cut into blocks of threads: arithmetic on the host, and what of it the kernels are told.
//
// A unit of work is a group of a sample, or in channels_last several neighbouring ones, so that what a block reads of a
// position is long enough for the memory. The blocks of a cluster take a share of a unit each and keep it in their
// shared memory, as much as fits, between measuring and normalising it. Where clusters cannot, a unit is cut into short
// pieces, which are measured by one launch and normalised by another.
#pragma once
#include <stdint.h>

#include <algorithm>

namespace genmod {
namespace cuda {

// So many threads to a block leave each 80 registers with two blocks to a processor.
constexpr int kMaxThreads = 384, kWarp = 32, kMaxTogether = 32;

// What is to be cut. A pack is `pack` neighbouring elements.
struct NormShape {
  int64_t samples, channels, space, groups;
  bool channels_last;
  int itemsize, pack, arithmetic;  // bytes of an element as stored, and as computed with

  int64_t of_group() const { return channels / groups; }
  int64_t units(int together) const { return samples * (groups / together); }
};

// What counts of the GPU.
struct NormDevice {
  int processors;
  int64_t shared_of_block, shared_of_processor;  // bytes
  int largest_cluster;
};

struct NormCut {
  bool split;      // measured and normalised by launches of their own
  int of_group;    // channels of a group
  int units;       // of a sample
  int threads;
  int blocks;      // to a unit: a cluster, or if it is split as many as it takes
  int together;    // groups in a unit
  int slices;      // channels_last, split: parts that the channels of a wide group are cut into
  int width;       // channels_last: packs in a row of a block's tile
  int64_t share;   // of a block: packs (contiguous) or positions (channels_last)
  int kept;        // packs that each thread keeps in shared memory
  int packs;       // that a thread has at most
  bool folds;      // channels_last: threads of a warp that have the same column are a power of two apart
  int parts, stats, table, columns, slots, bytes;  // where things are in shared memory, and its size
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int align16(int64_t bytes) { return (int)((bytes + 15) / 16 * 16); }

// Where things are in shared memory, once `kept` and the shape of a tile are known.
inline void lay_out(const NormShape& s, NormCut& c) {
  const int64_t across = s.channels_last ? (int64_t)c.width * s.pack : 0;  // channels of a tile
  const int64_t lanes = c.folds ? c.threads / kWarp : s.channels_last ? c.threads / c.width : 0;  // sums to a column
  c.parts = align16(3 * kWarp * s.arithmetic);  // after the totals of up to 32 warps, three at a time
  c.stats = c.parts + align16(4 * s.arithmetic * c.together);
  c.table = c.stats + align16(4 * s.arithmetic * c.together);
  c.columns = c.table + align16(2 * s.arithmetic * across);
  c.slots = c.columns + (c.together > 1 ? align16(s.arithmetic * lanes * across) : 0);
  const int64_t bytes = c.slots + (int64_t)c.kept * c.threads * s.pack * s.itemsize;
  c.bytes = bytes > INT32_MAX ? INT32_MAX : (int)bytes;
}

// Threads enough for about `each` packs apiece, and for a whole row.
inline int threads_for(int64_t packs, int width, int each) {
  int threads = 128;
  while (threads < kMaxThreads && (threads * each < packs || threads < width)) threads += 128;
  return threads;
}

inline int64_t packs_of(const NormShape& s, const NormCut& c, int64_t share) {
  return s.channels_last ? share * c.width : share;
}

inline NormCut new_cut(const NormShape& s, int together) {
  NormCut c{};
  c.of_group = (int)s.of_group();
  c.units = (int)(s.groups / together);
  c.together = together;
  c.slices = 1;
  return c;
}

inline void set_folds(const NormShape& s, NormCut& c) {
  c.folds = s.channels_last && c.width <= kWarp && (c.width & (c.width - 1)) == 0;
}

// Cuts a unit among `blocks`, each of which keeps its share whole.
inline void share_out(const NormShape& s, NormCut& c, int blocks) {
  const int64_t length = s.channels_last ? s.space : s.of_group() * s.space / s.pack;
  c.blocks = blocks;
  c.share = ceil_div(length, blocks);
  c.threads = threads_for(packs_of(s, c, c.share), c.width, 4);
  set_folds(s, c);
  const int64_t packs = ceil_div(c.share, s.channels_last ? c.threads / c.width : c.threads);
  c.packs = packs > INT32_MAX ? INT32_MAX : (int)packs;
  c.kept = c.packs;
  lay_out(s, c);
}

// How many groups may be taken together: divisors of their number that make rows of whole packs.
inline bool may_go_together(const NormShape& s, int together) {
  if (!s.channels_last) return together == 1;
  const int64_t across = s.of_group() * together;
  return s.groups % together == 0 && across % s.pack == 0 && (together == 1 || across / s.pack <= kMaxThreads);
}

// The fewest that make rows of at least `bytes`; those of the longest rows if none does.
inline int together_for(const NormShape& s, int64_t bytes) {
  int found = 0;
  for (int k = 1; k <= kMaxTogether && k <= s.groups; k++) {
    if (!may_go_together(s, k)) continue;
    found = k;
    if (s.of_group() * k * s.itemsize >= bytes) break;
  }
  return found;
}

// In short pieces; always possible.
inline NormCut split(const NormShape& s, int together) {
  NormCut c = new_cut(s, together);
  c.split = true;
  const int64_t across = s.of_group() * together / s.pack;
  if (s.channels_last) {
    c.slices = (int)ceil_div(across, kMaxThreads);
    c.width = (int)ceil_div(across, c.slices);
  }
  const int64_t packs = s.channels_last ? s.space * c.width : s.of_group() * s.space / s.pack;
  c.threads = threads_for(packs, c.width, 4);
  const int64_t rows = s.channels_last ? c.threads / c.width : c.threads;  // that the threads take at once
  set_folds(s, c);
  lay_out(s, c);
  const int64_t left = std::min<int64_t>(32 << 10, (48 << 10) - c.slots);  // 48 KB are what a block may always have
  const int64_t each = std::max<int64_t>(1, left / (c.threads * s.pack * s.itemsize));
  const int64_t length = s.channels_last ? s.space : packs;
  c.share = std::max<int64_t>(1, std::min(rows * each, length));
  c.blocks = (int)ceil_div(std::max<int64_t>(length, 1), c.share);
  c.packs = c.kept = (int)ceil_div(c.share, rows);
  lay_out(s, c);
  return c;
}

// In clusters of up to `largest` blocks (of exactly so many if `forced`), `together` groups at a time. False if less
// than half of a unit could be kept, or if its rows are too long for the block.
inline bool in_clusters(const NormShape& s, const NormDevice& d, int together, int largest, bool forced, NormCut& c) {
  c = new_cut(s, together);
  const int64_t across = s.of_group() * together / s.pack;
  if (s.channels_last && across > kMaxThreads) return false;
  c.width = s.channels_last ? (int)across : 0;
  // Two blocks to a processor: one measures while the other waits or writes. A kilobyte of each is the system's.
  const int64_t half = std::min(d.shared_of_block, d.shared_of_processor / 2 - 1024);
  const int first = forced ? largest : 1;
  bool fits = false;
  for (const int64_t limit : {half, d.shared_of_block})
    for (int blocks = first; blocks <= largest && !fits; blocks *= 2) {
      share_out(s, c, blocks);
      fits = c.bytes <= limit;
    }
  if (!fits) {  // the rest is read twice, and the second time from the level-2 cache, if that is large enough
    share_out(s, c, largest);
    if (c.share > INT32_MAX) return false;
    const int64_t pack_bytes = (int64_t)c.threads * s.pack * s.itemsize;
    c.kept = (int)std::max<int64_t>(0, (d.shared_of_block - c.slots) / pack_bytes);
    if (!forced && 2 * (int64_t)c.kept < c.packs) return false;
    lay_out(s, c);
    return c.bytes <= d.shared_of_block;
  }
  // More blocks than a group needs, while twice as many still run at once, two to a processor, and a share is worth it.
  while (!forced && c.blocks < largest && s.units(together) * c.blocks <= d.processors &&
         packs_of(s, c, c.share) * s.pack * s.itemsize >= (8 << 10))
    share_out(s, c, 2 * c.blocks);
  return true;
}

// Whether so few clusters would leave most of a large tensor's work to a part of the GPU.
inline bool too_few_blocks(const NormShape& s, const NormDevice& d, const NormCut& c) {
  const int64_t bytes = s.samples * s.channels * s.space * s.itemsize;
  return 2 * s.units(c.together) * c.blocks < d.processors && bytes > (2 << 20);
}

// The choice. `cluster` and `together` are those of GroupNorm.
inline NormCut choose(const NormShape& s, const NormDevice& d, int cluster, int together) {
  const bool given = together > 0 && may_go_together(s, together);
  NormCut c;
  if (cluster >= 0) {
    const int largest = cluster > 0 ? std::min(cluster, d.largest_cluster) : d.largest_cluster;
    int before = 0;
    for (const int64_t bytes : {128, 64, 32}) {  // of a row: a line of the cache, down to what memory gives at least
      const int k = given ? together : together_for(s, bytes);
      const bool found = k != before && in_clusters(s, d, k, largest, cluster > 0, c);
      if (found && (cluster > 0 || !too_few_blocks(s, d, c))) return c;
      before = k;
    }
  }
  return split(s, given ? together : together_for(s, 128));
}

}  // namespace cuda
}  // namespace genmod
