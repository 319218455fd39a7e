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

// One thread of the block that runs: what it waits for, and what it brought along to its last two
// barriers of either kind, for the others to read behind them. Nobody is further ahead.
struct Thread {
  Waits waits = Waits::nothing;
  int line = 0;
  bool is_done = true;
  int warp_barriers = 0, block_barriers = 0;
  double for_warp[2], for_block[2];
  float left[2][4], right[2][2];  // factors for tensor cores, brought to a barrier of the warp
};

// The fibers of one thread of the CPU, kept between blocks.
class Fibers {
 public:
  static Fibers& here();

  // Runs body(thread) for every thread of a block, all from barrier to barrier. Throws
  // std::runtime_error where they cannot all pass one, and what a body throws.
  void run(int threads, const std::function<void(int thread)>& body);

  // From inside of a body: until every thread of the warp, or of the block, has come to the barrier
  // in that line.
  void wait(Waits what, int line);

  Thread& at(int thread) { return threads_[thread]; }

 private:
  struct Places;
  Fibers();
  ~Fibers();
  void resume(int thread);
  bool release(int first, int last, Waits what);
  void run_warp(int first);
  void run_warps(int threads);
  static void live();

  Thread threads_[1024];
  Places* places_;
  int64_t turn_ = 0;
};

// 0 to count - 1 in the order that was asked for; the random one is another at every turn.
class Sequence {
 public:
  Sequence(int64_t count, int64_t turn);
  int64_t next() {
    const int64_t now = at_;
    at_ = at_ + step_ < count_ ? at_ + step_ : at_ + step_ - count_;
    return now;
  }

 private:
  int64_t count_, at_, step_;
};

// Throws std::runtime_error where a factor for a tensor core is not rounded to TF32.
void check_tf32(const float* factors, int count);

class Block {
 public:
  Block(Fibers& fibers, int thread, int threads, int64_t x, int64_t y, int64_t blocks)
      : fibers_(fibers), thread_(thread), threads_(threads), x_(x), y_(y), blocks_(blocks) {}

  int thread() const { return thread_; }
  int64_t x() const { return x_; }
  int64_t y() const { return y_; }
  int64_t blocks() const { return blocks_; }

  void sync(int line = __builtin_LINE()) const { fibers_.wait(Waits::block, line); }
  void sync_warp(int line = __builtin_LINE()) const { fibers_.wait(Waits::warp, line); }
  bool all(bool holds, int line = __builtin_LINE()) const {
    const int place = fibers_.at(thread_).block_barriers++ % 2;
    fibers_.at(thread_).for_block[place] = holds ? 1 : 0;
    fibers_.wait(Waits::block, line);
    for (int thread = 0; thread < threads_; ++thread) {
      holds = holds && fibers_.at(thread).for_block[place] != 0;
    }
    return holds;
  }

  template <typename T>
  T shuffle_xor(T value, int lanes, int line = __builtin_LINE()) const {
    return exchange(value, lane() ^ lanes, line);
  }
  template <typename T>
  T shuffle(T value, int from, int line = __builtin_LINE()) const {
    return exchange(value, from, line);
  }
  template <typename T>
  T shuffle_down(T value, int lanes, int line = __builtin_LINE()) const {
    const int from = lane() + lanes;
    return exchange(value, from < cuda::kWarpSize ? from : lane(), line);
  }

  // mma.sync.m16n8k8 of TF32: products are exact, and added up in float32 one by one in the order
  // of the steps, where a GPU leaves order and rounding open. An operand that is not rounded is an
  // error: the hardware would cut it off.
  void multiply_tensors(const float (&left)[4],
                        const float (&right)[2],
                        float (&sum)[4],
                        int line = __builtin_LINE()) const {
    Thread& mine = fibers_.at(thread_);
    const int place = mine.warp_barriers++ % 2;
    std::memcpy(mine.left[place], left, sizeof(left));
    std::memcpy(mine.right[place], right, sizeof(right));
    check_tf32(left, 4);
    check_tf32(right, 2);
    fibers_.wait(Waits::warp, line);
    for (int i = 0; i < 4; ++i) {
      // PTX ISA: with group = lane / 4 and number = lane % 4, the product's rows are group and,
      // behind its second number, group + 8; its columns 2 number and 2 number + 1.
      const int row = lane() / 4 + (i > 1 ? 8 : 0), column = lane() % 4 * 2 + (i & 1);
      for (int k = 0; k < 8; ++k) {
        // a0 and a1 are of steps 0 to 3, a1 and a3 of rows 8 to 15; b0 is of steps 0 to 3.
        const Thread& of_row = warp_lane(row % 8 * 4 + k % 4);
        const Thread& of_column = warp_lane(column * 4 + k % 4);
        sum[i] += of_row.left[place][row / 8 + (k > 3 ? 2 : 0)] * of_column.right[place][k / 4];
      }
    }
  }

 private:
  const Thread& warp_lane(int number) const { return fibers_.at(thread_ - lane() + number); }
  int lane() const { return thread_ % cuda::kWarpSize; }

  template <typename T>
  T exchange(T value, int from, int line) const {
    static_assert(std::is_arithmetic_v<T>, "what a shuffle of a GPU takes");
    const int place = fibers_.at(thread_).warp_barriers++ % 2;
    std::memcpy(&fibers_.at(thread_).for_warp[place], &value, sizeof(T));
    fibers_.wait(Waits::warp, line);
    std::memcpy(&value, &fibers_.at(thread_ - lane() + from).for_warp[place], sizeof(T));
    return value;
  }

  Fibers& fibers_;
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
  Fibers& fibers = Fibers::here();
  Sequence blocks(x * y, 1);
  for (int64_t n = 0; n < x * y; ++n) {
    const int64_t at = blocks.next();
    std::memset(memory, 0xff, sizeof(memory));
    fibers.run(Kernel::kThreads, [&](int thread) {
      kernel.run(Block(fibers, thread, Kernel::kThreads, at % x, at / x, x), shared);
    });
  }
  return cudaSuccess;
}

}  // namespace pfn::twin
