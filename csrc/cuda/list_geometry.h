// Launch geometry of passes over lists of tensors as pure functions: g++ compiles and tests what a
// launch relies on.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/geometry.h"
#include "math/macros.h"
#include "math/tensor_list.h"

namespace pfn::cuda {

// Vectors of 16 bytes that a thread takes of a tile, one after the other.
constexpr int kListVectors = 4;

// Values of a tile. A segment begins a tile of its own, so that none crosses a tensor's end.
PFN_HD constexpr int64_t list_tile(int value_bytes) {
  return int64_t{kThreads} * (kVectorBytes / value_bytes) * kListVectors;
}

PFN_HD constexpr int64_t list_tiles(int64_t numel, int value_bytes) {
  return divide_up(numel, list_tile(value_bytes));
}

// Place in its segment of the vector of `width` values that a thread takes of a tile at a step, of
// which there are list_steps.
PFN_HD constexpr int list_steps(int width, int value_bytes) {
  return kVectorBytes / value_bytes / width * kListVectors;
}
PFN_HD constexpr int64_t list_offset(
    int64_t tile, int step, int thread, int width, int value_bytes) {
  return tile * list_tile(value_bytes) + (int64_t{step} * kThreads + thread) * width;
}

// Segments of which pointers, size and first tile travel in the parameter block of one launch; 256
// bytes are left for the rest.
PFN_HD constexpr int list_segments(int lists) {
  return (static_cast<int>(kMaxArgumentBytes) - 256) / (8 * (lists + 2));
}

// The last of `count` segments whose first tile is not behind `tile`.
PFN_HD constexpr int list_segment_of(const int64_t* first_tiles, int count, int64_t tile) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (first_tiles[middle] <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace pfn::cuda
