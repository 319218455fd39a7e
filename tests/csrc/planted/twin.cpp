// Wrong on purpose: what the CPU's twin of CUDA must show. Reverses each tile of 64 numbers and
// adds them up; prints the numbers, the sums and the total, or what was refused.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

#include "cuda/block.h"
#include "cuda/vector_io.cuh"

namespace {

using namespace pfn::cuda;

enum Mistake {
  kNone,
  kOffByOne,
  kNoBarrierBeforeReading,
  kNoBarrierBeforeWritingAgain,
  kNoBarrierBetweenWarps,
  kNoBarrierInWarp,
  kUnwritten,
  kOrderOfBlocks,
  kBarrierOfSome,
  kReturnBeforeBarrier,
  kTwoBarriers,
  kShuffleOfSome,
  kMisaligned,
  kTooManyBlocks,
};

constexpr int kTile = 64, kTiles = 4, kBlocks = 2;

template <int kMistake>
struct Reverse {
  static constexpr int kThreads = kTile;
  struct Shared {
    float tile[kTile];
    float doubled[kTile];
    float sums[kTile / kWarpSize];
  };

  const float* in;
  float* out;
  float* sums;
  float* total;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const int thread = block.thread();
    for (int64_t tile = block.x(); tile < kTiles; tile += block.blocks()) {
      if (kMistake != kUnwritten || thread != 7) shared.tile[thread] = in[tile * kTile + thread];
      if (kMistake == kReturnBeforeBarrier && thread == kTile - 1) return;
      if (kMistake == kTwoBarriers && thread % 2 == 1) {
        block.sync();
      } else if (kMistake != kNoBarrierBeforeReading) {
        block.sync();
      }
      const int from = kTile - 1 - thread;
      const float value = shared.tile[kMistake == kOffByOne ? from ^ 1 : from];
      add_up(block, shared, tile, value);
      out[tile * kTile + thread] = shared.tile[kMistake == kOffByOne ? from ^ 1 : from];
      if (kMistake == kBarrierOfSome && thread < kWarpSize) block.sync();
      if (kMistake != kNoBarrierBeforeWritingAgain) block.sync();
    }
  }

  PFN_DEVICE void add_up(const Block& block, Shared& shared, int64_t tile, float value) const {
    const int thread = block.thread();
    // The neighbour in the warp doubles it.
    shared.doubled[thread ^ 1] = 2 * value;
    if (kMistake != kNoBarrierInWarp) block.sync_warp();
    float sum = shared.doubled[thread] / 2;
    if (kMistake != kShuffleOfSome || thread % kWarpSize < 16) sum = warp_sum(block, sum);
    if (thread % kWarpSize == 0) shared.sums[thread / kWarpSize] = sum;
    if (kMistake != kNoBarrierBetweenWarps) block.sync();
    if (thread == 0) sums[tile] = shared.sums[0] + shared.sums[1];
    if (thread == 0 && kMistake == kOrderOfBlocks) *total = *total / 2 + shared.sums[0];
    if (thread == 0 && kMistake == kMisaligned)
      load_vector(reinterpret_cast<const Vector*>(in + 1));
  }
};

template <int kMistake>
int run() {
  std::vector<float> in(kTile * kTiles), out(in.size()), sums(kTiles);
  float total = 0;
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  const Reverse<kMistake> kernel{in.data(), out.data(), sums.data(), &total};
  try {
    const auto status = launch(kernel, kBlocks, kMistake == kTooManyBlocks ? 65536 : 1, nullptr);
    if (status != cudaSuccess) std::printf("refused: %s\n", cudaGetErrorString(status));
  } catch (const std::exception& error) {
    std::printf("refused: %s\n", error.what());
  }
  for (const float value : out) std::printf("%g ", value);
  for (const float value : sums) std::printf("%g ", value);
  std::printf("%.9g\n", total);
  return 0;
}

template <int... kMistakes>
int choose(int mistake, std::integer_sequence<int, kMistakes...>) {
  int (*const runs[])() = {run<kMistakes>...};
  return runs[mistake]();
}

}  // namespace

int main(int, char** arguments) {
  return choose(std::atoi(arguments[1]), std::make_integer_sequence<int, kTooManyBlocks + 1>{});
}
