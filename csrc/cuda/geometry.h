// Launch geometry as pure functions: g++ compiles and tests what a launch on a GPU relies on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/macros.h"

namespace pfn::cuda {

constexpr int kThreads = 256;
constexpr int kWarpSize = 32;
constexpr int kVectorBytes = 16;

// What one launch takes on every GPU: blocks in x and y, shared memory that need not be asked for,
// arguments.
constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxGridY = 65535;
constexpr std::size_t kMaxSharedBytes = std::size_t{48} << 10;
constexpr std::size_t kMaxArgumentBytes = 4096;

// Blocks of a forward launch; each strides over the rest. Well below the limit of 2^31 - 1.
constexpr int64_t kMaxBlocks = 8192;
// Blocks of a backward launch: fewer, since each leaves a partial sum for every candidate. A
// constant, so that the order of sums is the same on every GPU.
constexpr int64_t kMaxReducingBlocks = 1024;

// Vectors of 16 bytes that a thread of the backward holds at once.
constexpr int kVectorsPerThread = 2;

PFN_HD constexpr int64_t divide_up(int64_t count, int64_t by) {
  return count / by + (count % by != 0 ? 1 : 0);
}

// number / by for numbers that are not negative. A GPU has no instruction for it: in 32 bits, where
// they suffice, it takes a fraction of what it takes in 64.
PFN_HD constexpr int64_t quotient(int64_t number, int64_t by) {
  if (((static_cast<uint64_t>(number) | static_cast<uint64_t>(by)) >> 32) != 0) return number / by;
  return static_cast<uint32_t>(number) / static_cast<uint32_t>(by);
}

// Blocks for `count` elements in tiles of `tile`; none for none.
PFN_HD constexpr int64_t blocks_for(int64_t count, int64_t tile, int64_t most) {
  return divide_up(count, tile) < most ? divide_up(count, tile) : most;
}

// Elements that a vector access moves: 16 bytes where every pointer allows it, else one.
template <typename T>
PFN_HD constexpr int vector_width(bool is_aligned) {
  return is_aligned ? kVectorBytes / static_cast<int>(sizeof(T)) : 1;
}

// Elements that one block of the forward, and of the backward, takes in one step.
PFN_HD constexpr int64_t forward_tile(int width) { return int64_t{kThreads} * width; }
PFN_HD constexpr int64_t backward_tile(int width) {
  return int64_t{kThreads} * width * kVectorsPerThread;
}

// First element of the vector that `thread` takes from `tile`; vectors of one warp are neighbours.
PFN_HD constexpr int64_t forward_offset(int64_t tile, int thread, int width) {
  return tile * forward_tile(width) + int64_t{thread} * width;
}
PFN_HD constexpr int64_t backward_offset(int64_t tile, int thread, int vector, int width) {
  return tile * backward_tile(width) + (int64_t{vector} * kThreads + thread) * width;
}

// Rows of partial sums that a backward over `count` elements of 16-byte vectors of T needs at most.
template <typename T>
PFN_HD constexpr int64_t partial_rows(int64_t count, bool is_aligned) {
  return blocks_for(count, backward_tile(vector_width<T>(is_aligned)), kMaxReducingBlocks);
}

}  // namespace pfn::cuda
