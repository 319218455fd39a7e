// Launch geometry of the sampler as pure functions: g++ compiles and tests what a launch relies on.
#pragma once

#include <cstdint>

#include "cuda/geometry.h"
#include "math/macros.h"

namespace pfn::cuda {

// Rows that one thread samples in registers: this short, and for so few ranks.
constexpr int64_t kMaxThreadColumns = 64;
constexpr int64_t kMaxThreadTop = 4;
constexpr int kRowThreads = 128;
// Up to here a warp is enough for a row that a block works on together.
constexpr int64_t kMaxWarpColumns = 256;

// Whether one thread samples a whole row and needs no memory for its keys.
PFN_HD constexpr bool samples_in_registers(int64_t columns, int64_t k) {
  return columns <= kMaxThreadColumns && k <= kMaxThreadTop;
}

// Threads that share a row.
PFN_HD constexpr int threads_per_row(int64_t columns) {
  return columns <= kMaxWarpColumns ? kWarpSize : kThreads;
}

// Counter blocks of four columns in one row.
PFN_HD constexpr int64_t counters_per_row(int64_t columns) { return divide_up(columns, 4); }

// First item of a thread in a grid-stride loop, and the stride.
PFN_HD constexpr int64_t first_item(int64_t block, int threads, int thread) {
  return block * threads + thread;
}

}  // namespace pfn::cuda
