// Loads and stores of 16 bytes, and sums over a warp.
#pragma once

#include <cstdint>

#include "cuda/block.h"
#include "cuda/geometry.h"
#include "math/accumulate.h"

namespace pfn::cuda {

#if defined(PFN_TWIN)
using twin::load_vector;
using twin::store_vector;
using twin::Vector;
#else
using Vector = uint4;
PFN_DEVICE Vector load_vector(const Vector* from) { return __ldcs(from); }
PFN_DEVICE void store_vector(Vector* to, Vector value) { *to = value; }
#endif

// kCount values of a storage type, moved 16 bytes at a time where they fill that.
template <typename T, int kCount>
struct Values {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr bool kWide = kBytes % kVectorBytes == 0;

  alignas(kWide ? kVectorBytes : sizeof(T)) T values[kCount];

  // Reads from an address that is aligned to 16 bytes where kCount values fill that.
  PFN_DEVICE void load(const T* from) {
    if constexpr (kWide) {
      Vector* to = reinterpret_cast<Vector*>(values);
#pragma unroll
      for (int i = 0; i < kBytes / kVectorBytes; ++i) {
        to[i] = load_vector(reinterpret_cast<const Vector*>(from) + i);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) values[i] = from[i];
    }
  }

  PFN_DEVICE void store(T* to) const {
    if constexpr (kWide) {
      const Vector* from = reinterpret_cast<const Vector*>(values);
#pragma unroll
      for (int i = 0; i < kBytes / kVectorBytes; ++i) {
        store_vector(reinterpret_cast<Vector*>(to) + i, from[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] = values[i];
    }
  }

  // The same for the first `count` values at the end of a tensor; the others read as zero.
  PFN_DEVICE void load_some(const T* from, int64_t count) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) {
        values[i] = from[i];
      } else {
        math::narrow(math::acc_t<T>{0}, &values[i]);
      }
    }
  }

  PFN_DEVICE void store_some(T* to, int64_t count) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < count) to[i] = values[i];
    }
  }

  // `left` values remain in the tensor at this address; none or less are left untouched.
  PFN_DEVICE void load_up_to(const T* from, int64_t left) {
    if (left >= kCount) {
      load(from);
    } else {
      load_some(from, left);
    }
  }

  PFN_DEVICE void store_up_to(T* to, int64_t left) const {
    if (left >= kCount) {
      store(to);
    } else {
      store_some(to, left);
    }
  }
};

// Sum over the lanes of a full warp in a fixed order; lane 0 holds it.
template <typename T>
PFN_DEVICE T warp_sum(const Block& block, T value) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) value += block.shuffle_down(value, lanes);
  return value;
}

}  // namespace pfn::cuda
