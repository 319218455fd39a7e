// Reductions over the threads that share a row.
#pragma once

#include <cstdint>

#include "cuda/block.h"
#include "math/topk.h"

namespace pfn::cuda {

// What the warps of a block tell each other; nothing where the block is one warp.
template <typename T, int kBlock>
struct WarpValues {
  T values[kBlock / kWarpSize];
};
template <typename T>
struct WarpValues<T, kWarpSize> {};

template <typename T, int kBlock>
struct WarpPicks : WarpValues<T, kBlock> {
  int32_t columns[kBlock / kWarpSize];
};
template <typename T>
struct WarpPicks<T, kWarpSize> : WarpValues<T, kWarpSize> {};

template <typename T>
struct Pick {
  T key;
  int32_t column;
};

template <typename T>
PFN_DEVICE Pick<T> better(const Pick<T>& a, const Pick<T>& b) {
  return math::ranks_before(b.key, b.column, a.key, a.column) ? b : a;
}

// The best pick of a block, known to all its threads.
template <int kBlock, typename T>
PFN_DEVICE Pick<T> best_of_block(const Block& block, WarpPicks<T, kBlock>& shared, Pick<T> mine) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const Pick<T> other{block.shuffle_xor(mine.key, lanes), block.shuffle_xor(mine.column, lanes)};
    mine = better(mine, other);
  }
  if constexpr (kBlock > kWarpSize) {
    block.sync();
    if (block.thread() % kWarpSize == 0) {
      shared.values[block.thread() / kWarpSize] = mine.key;
      shared.columns[block.thread() / kWarpSize] = mine.column;
    }
    block.sync();
    mine = Pick<T>{shared.values[0], shared.columns[0]};
    for (int warp = 1; warp < kBlock / kWarpSize; ++warp) {
      mine = better(mine, Pick<T>{shared.values[warp], shared.columns[warp]});
    }
  }
  return mine;
}

// The sum over a block in a fixed order, known to all its threads.
template <int kBlock, typename T>
PFN_DEVICE T sum_of_block(const Block& block, WarpValues<T, kBlock>& shared, T mine) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) mine += block.shuffle_xor(mine, lanes);
  if constexpr (kBlock > kWarpSize) {
    block.sync();
    if (block.thread() % kWarpSize == 0) shared.values[block.thread() / kWarpSize] = mine;
    block.sync();
    mine = T{};
    for (int warp = 0; warp < kBlock / kWarpSize; ++warp) mine += shared.values[warp];
  }
  return mine;
}

}  // namespace pfn::cuda
