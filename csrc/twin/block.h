// CUDA kernels on the CPU: the block, its barriers and its shuffles, over fibers. What a GPU leaves
// undefined is an error here: threads that wait at different barriers, a barrier or a shuffle that
// some thread does not come to. What it leaves open, the order of threads and blocks, is chosen by
// the environment variable PFN_TWIN_ORDER (forward, backward, random): results must not depend on
// it. Shared memory begins as NaN.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "cuda/geometry.h"
#include "cuda/runtime.h"

namespace pfn::twin {

enum class Waits { nothing, warp, block };

// Runs body(thread) for every thread of a block, all from barrier to barrier. Throws
// std::runtime_error where they cannot all pass one, and what a body throws.
void run_block(int threads, const std::function<void(int thread)>& body);

// From inside of a body: until every thread of the warp, or of the block, has come to the barrier
// in that line. Behind it the others can read `value`.
void wait(Waits what, int line, const void* value = nullptr, std::size_t bytes = 0);
// What a thread brought along to the last barrier of its warp, or of the block.
const void* brought_by(int thread, Waits what);

// Blocks of a launch in the order that was asked for.
int64_t nth_block(int64_t n, int64_t count);

class Block {
 public:
  Block(int thread, int64_t x, int64_t y, int64_t blocks, int threads)
      : thread_(thread), threads_(threads), x_(x), y_(y), blocks_(blocks) {}

  int thread() const { return thread_; }
  int64_t x() const { return x_; }
  int64_t y() const { return y_; }
  int64_t blocks() const { return blocks_; }

  void sync(int line = __builtin_LINE()) const { wait(Waits::block, line); }
  void sync_warp(int line = __builtin_LINE()) const { wait(Waits::warp, line); }
  bool all(bool holds, int line = __builtin_LINE()) const {
    wait(Waits::block, line, &holds, sizeof(holds));
    for (int thread = 0; thread < threads_; ++thread) {
      if (!*static_cast<const bool*>(brought_by(thread, Waits::block))) return false;
    }
    return true;
  }

  template <typename T>
  T shuffle_xor(T value, int lanes, int line = __builtin_LINE()) const {
    return exchange(value, lane() ^ lanes, line);
  }
  template <typename T>
  T shuffle_down(T value, int lanes, int line = __builtin_LINE()) const {
    const int from = lane() + lanes;
    return exchange(value, from < cuda::kWarpSize ? from : lane(), line);
  }

 private:
  int lane() const { return thread_ % cuda::kWarpSize; }

  template <typename T>
  T exchange(T value, int from, int line) const {
    static_assert(std::is_arithmetic_v<T>, "what a shuffle of a GPU takes");
    wait(Waits::warp, line, &value, sizeof(T));
    std::memcpy(&value, brought_by(thread_ - lane() + from, Waits::warp), sizeof(T));
    return value;
  }

  int thread_, threads_;
  int64_t x_, y_, blocks_;
};

// Sixteen bytes that move at once; an address that is not aligned to them is an error.
struct __attribute__((aligned(16), may_alias)) Vector {
  uint32_t words[4];
};
void check_aligned(const void* vector);
inline Vector load_vector(const Vector* from) {
  check_aligned(from);
  return *from;
}
inline void store_vector(Vector* to, Vector value) {
  check_aligned(to);
  *to = value;
}

template <typename Kernel>
cudaError_t launch(const Kernel& kernel, int64_t x, int64_t y, cudaStream_t) {
  using Shared = typename Kernel::Shared;
  static_assert(std::is_trivial_v<Shared> && sizeof(Shared) <= cuda::kMaxSharedBytes);
  static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= cuda::kMaxArgumentBytes);
  static_assert(Kernel::kThreads % cuda::kWarpSize == 0 && Kernel::kThreads <= 1024);
  if (x > cuda::kMaxGridX || y > cuda::kMaxGridY) return cudaErrorInvalidConfiguration;
  alignas(16) static thread_local unsigned char memory[sizeof(Shared)];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  for (int64_t n = 0; n < x * y; ++n) {
    const int64_t at = nth_block(n, x * y);
    std::memset(memory, 0xff, sizeof(memory));
    run_block(Kernel::kThreads, [&](int thread) {
      kernel.run(Block(thread, at % x, at / x, x, Kernel::kThreads), shared);
    });
  }
  return cudaSuccess;
}

}  // namespace pfn::twin
