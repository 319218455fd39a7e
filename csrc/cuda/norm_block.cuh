// What the kernels of norm_mixed_sum share: numbers of any type, sums over the
// threads of a block.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/block.h"
#include "cuda/norm_launch.h"
#include "cuda/pack.h"
#include "cuda/vector_io.cuh"
#include "math/accumulate.h"

namespace pfn::cuda {

constexpr int kWarps = kThreads / kWarpSize;

PFN_DEVICE double read_number(const void* from, NumberType type, int64_t index) {
  switch (type) {
    case NumberType::float64:
      return static_cast<const double*>(from)[index];
    case NumberType::float32:
      return static_cast<double>(static_cast<const float*>(from)[index]);
    case NumberType::float16:
      return static_cast<double>(math::widen(static_cast<const math::Half*>(from)[index]));
    default:
      return static_cast<double>(math::widen(static_cast<const math::BFloat16*>(from)[index]));
  }
}

PFN_DEVICE void write_number(double value, void* to, NumberType type, int64_t index) {
  switch (type) {
    case NumberType::float64:
      static_cast<double*>(to)[index] = value;
      return;
    case NumberType::float32:
      static_cast<float*>(to)[index] = static_cast<float>(value);
      return;
    case NumberType::float16:
      math::narrow(static_cast<float>(value), static_cast<math::Half*>(to) + index);
      return;
    default:
      math::narrow(static_cast<float>(value), static_cast<math::BFloat16*>(to) + index);
  }
}

// Sum over the lanes of a warp in a fixed order; every lane has it.
PFN_DEVICE double norm_warp_sum(const Block& block, double value) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) value += block.shuffle_xor(value, lanes);
  return value;
}

// A mean in the accumulator's type, and what that leaves out: the rounding of a large mean would be
// a shift of every value.
template <typename Acc>
PFN_DEVICE double mean_below(double mean) {
  return std::isfinite(mean) ? mean - static_cast<double>(static_cast<Acc>(mean)) : 0.0;
}

// Adds up, for each slot of a thread, what the threads of its columns hold: rows of threads are
// folded in halves, so that the sums are found with the first. With runs, whose threads have one
// slot and one channel, every thread is a row. Begins and ends with a barrier.
template <int kArrays, int kSlots, typename T>
PFN_DEVICE void norm_fold(const Block& block,
                          const NormTiles& tiles,
                          T (&sums)[kArrays][kThreads * kSlots]) {
  const int row_threads = tiles.runs ? 1 : tiles.lanes;
  const int first = block.thread() * kSlots;
  block.sync();
  for (int live = tiles.runs ? kThreads : tiles.rows; live > 1;) {
    const int half = (live + 1) / 2;
    if (block.thread() < (live - half) * row_threads) {
#pragma unroll
      for (int s = 0; s < kArrays; ++s) {
#pragma unroll
        for (int i = 0; i < kSlots; ++i) {
          sums[s][first + i] += sums[s][first + i + half * row_threads * kSlots];
        }
      }
    }
    live = half;
    block.sync();
  }
}

// Calls leave(slot, from, entry) for the slots of this thread whose sums are of use: where the sum
// is found, and where its entry stands.
template <int kSlots, typename Leave>
PFN_DEVICE void norm_leave(const Block& block,
                           const NormTiles& tiles,
                           const NormPlace& place,
                           Leave&& leave) {
  const int64_t row = place.piece * norm_entries(tiles);
  if (tiles.runs) {
    if (block.thread() == 0) leave(0, 0, row + place.tile);
    return;
  }
  const int64_t column = norm_thread(tiles, place, block.thread()).column;
  if (block.thread() >= tiles.lanes || column >= place.end) return;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) leave(i, block.thread() * kSlots + i, row + column + i);
}

// Reads without the advice that vector_io.cuh gives, to keep it for nobody: it is read again.
template <typename T, int kCount>
PFN_DEVICE void load_kept(const T* from, Values<T, kCount>& to) {
#if !defined(PFN_TWIN)
  if constexpr (Values<T, kCount>::kWide) {
#pragma unroll
    for (int i = 0; i < Values<T, kCount>::kBytes / kVectorBytes; ++i) {
      reinterpret_cast<Vector*>(to.values)[i] = reinterpret_cast<const Vector*>(from)[i];
    }
    return;
  }
#endif
  to.load(from);
}

// Coefficients of a vector: one for all its elements with runs, else one each, side by side.
template <bool kRuns, int kWidth, typename Acc>
PFN_DEVICE Values<Acc, kWidth> coefficients(const Acc* from) {
  Values<Acc, kWidth> result;
  if constexpr (kRuns) {
    const Acc one = *from;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.values[i] = one;
  } else {
    load_kept(from, result);
  }
  return result;
}

// Calls launch_with(width, runs), constants of their types, for the kernel that the tiles ask for.
template <typename X, typename Function>
cudaError_t norm_dispatch(const NormTiles& tiles, Function&& launch_with) {
  const std::integral_constant<int, vector_width<X>(true)> wide{};
  const std::integral_constant<int, 1> one{};
  if (tiles.width == wide) {
    return tiles.runs ? launch_with(wide, std::true_type{}) : launch_with(wide, std::false_type{});
  }
  return tiles.runs ? launch_with(one, std::true_type{}) : launch_with(one, std::false_type{});
}

}  // namespace pfn::cuda
