// Large results in huge pages, where the system gives them to whoever asks ("madvise" in
// /sys/kernel/mm/transparent_hugepage/enabled). The allocator takes memory of this size from the system for each call, and
// a fault for every 4 KiB of it takes longer than many a kernel. PyTorch asks for its own under THP_MEM_ALLOC_ENABLE=1.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace genmod {

inline void ask_for_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = ((uintptr_t)data + kPage - 1) & ~(kPage - 1), end = ((uintptr_t)data + bytes) & ~(kPage - 1);
  if (end >= begin + 2 * kPage) madvise((void*)begin, end - begin, MADV_HUGEPAGE);  // refused, it changes nothing
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace genmod
