// Loads and stores of 16 bytes, and sums over a warp.
#pragma once

#include <cstdint>

#include "cuda/geometry.h"
#include "math/accumulate.h"

namespace pfn::cuda {

// kCount values of a storage type, moved 16 bytes at a time where they fill that.
template <typename T, int kCount>
struct Values {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWide = kBytes % kVectorBytes == 0;

  alignas(kWide ? kVectorBytes : sizeof(T)) T values[kCount];

  // Reads from an address that is aligned to 16 bytes where kCount values fill that.
  __device__ __forceinline__ void load(const T* from) {
    if constexpr (kWide) {
      uint4* to = reinterpret_cast<uint4*>(values);
#pragma unroll
      for (int i = 0; i < kBytes / kVectorBytes; ++i) {
        to[i] = __ldcs(reinterpret_cast<const uint4*>(from) + i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = from[i];
    }
  }

  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kWide) {
      const uint4* from = reinterpret_cast<const uint4*>(values);
#pragma unroll
      for (int i = 0; i < kBytes / kVectorBytes; ++i) reinterpret_cast<uint4*>(to)[i] = from[i];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = values[i];
    }
  }

  // The same for the first `count` values at the end of a tensor; the others read as zero.
  __device__ __forceinline__ void load_some(const T* from, int64_t count) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) {
        values[i] = from[i];
      } else {
        math::narrow(math::acc_t<T>{0}, &values[i]);
      }
    }
  }

  __device__ __forceinline__ void store_some(T* to, int64_t count) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) to[i] = values[i];
    }
  }

  // `left` values remain in the tensor at this address; none or less are left untouched.
  __device__ __forceinline__ void load_up_to(const T* from, int64_t left) {
    if (left >= kCount) {
      load(from);
    } else {
      load_some(from, left);
    }
  }

  __device__ __forceinline__ void store_up_to(T* to, int64_t left) const {
    if (left >= kCount) {
      store(to);
    } else {
      store_some(to, left);
    }
  }
};

// Sum over the lanes of a full warp in a fixed order; lane 0 holds it.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  return value;
}

}  // namespace pfn::cuda
