// CUDA kernels on the CPU: the block, its barriers and its shuffles, over fibers. What a GPU leaves
// undefined is an error here: a barrier that a thread of the block has left, a shuffle without a
// whole warp. What it leaves open, the order of threads and blocks, is chosen by the environment
// variable PFN_TWIN_ORDER (forward, backward, random): results must not depend on it. Shared memory
// begins as NaN.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>

#include "cuda/geometry.h"
#include "cuda/runtime.h"

namespace pfn::twin {

// The fibers of one block at a time.
class Fibers {
 public:
  enum class Waits { nothing, warp, block };

  // Runs body(thread) for every thread, all from barrier to barrier. Throws std::runtime_error where
  // a barrier cannot be passed.
  static void run(int threads, const std::function<void(int thread)>& body);

  // From inside of a body: until every thread of the block, or of the warp, has come as far.
  static void wait(Waits what);
  // Sixteen bytes for each thread, which shuffles and votes go through.
  static unsigned char* slot(int thread);
  static int threads();
};

// Blocks of a launch in the order that was asked for.
int64_t nth_block(int64_t n, int64_t count);

class Block {
 public:
  Block(int thread, int64_t x, int64_t y, int64_t blocks)
      : thread_(thread), x_(x), y_(y), blocks_(blocks) {}

  int thread() const { return thread_; }
  int64_t x() const { return x_; }
  int64_t y() const { return y_; }
  int64_t blocks() const { return blocks_; }

  void sync() const { Fibers::wait(Fibers::Waits::block); }
  void sync_warp() const { Fibers::wait(Fibers::Waits::warp); }
  bool all(bool holds) const {
    *Fibers::slot(thread_) = holds;
    sync();
    bool result = true;
    for (int thread = 0; thread < Fibers::threads(); ++thread) {
      result = result && *Fibers::slot(thread) != 0;
    }
    sync();
    return result;
  }

  template <typename T>
  T shuffle_xor(T value, int lanes) const {
    return exchange(value, lane() ^ lanes);
  }
  template <typename T>
  T shuffle_down(T value, int lanes) const {
    const int from = lane() + lanes;
    return exchange(value, from < cuda::kWarpSize ? from : lane());
  }

 private:
  int lane() const { return thread_ % cuda::kWarpSize; }

  template <typename T>
  T exchange(T value, int from) const {
    static_assert(sizeof(T) <= 16);
    std::memcpy(Fibers::slot(thread_), &value, sizeof(T));
    sync_warp();
    std::memcpy(&value, Fibers::slot(thread_ - lane() + from), sizeof(T));
    sync_warp();
    return value;
  }

  int thread_;
  int64_t x_, y_, blocks_;
};

template <typename Kernel>
cudaError_t launch(const Kernel& kernel, int64_t x, int64_t y, cudaStream_t) {
  alignas(16) static thread_local unsigned char memory[sizeof(typename Kernel::Shared)];
  auto& shared = *reinterpret_cast<typename Kernel::Shared*>(memory);
  for (int64_t n = 0; n < x * y; ++n) {
    const int64_t at = nth_block(n, x * y);
    std::memset(memory, 0xff, sizeof(memory));
    Fibers::run(Kernel::kThreads,
                [&](int thread) { kernel.run(Block(thread, at % x, at / x, x), shared); });
  }
  return cudaSuccess;
}

}  // namespace pfn::twin
