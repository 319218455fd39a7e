// Backs fresh output memory with pages in one call instead of one fault per page.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace pfn::cpu {

// Outputs smaller than this are left to ordinary faults.
constexpr std::size_t kPopulateBytes = std::size_t{1} << 18;

// Large outputs come from the allocator without pages behind them whenever the memory before them
// went back to the system; a fault for every 4 KiB then costs more than the arithmetic. One look
// at the middle page tells. Only a hint: nothing depends on it, and old kernels may refuse it.
inline void back_with_memory(void* data, std::size_t bytes) {
#if defined(__linux__)
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif
  if (bytes < kPopulateBytes) return;
  static const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(data) & ~(page - 1);
  const std::uintptr_t end = reinterpret_cast<std::uintptr_t>(data) + bytes;
  const std::uintptr_t middle = (begin + (end - begin) / 2) & ~(page - 1);
  unsigned char is_backed = 1;
  if (mincore(reinterpret_cast<void*>(middle), page, &is_backed) == 0 && (is_backed & 1) == 0) {
    // The pages at both ends hold bytes of ours, so they are mapped and writable as well.
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_POPULATE_WRITE);
  }
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace pfn::cpu
