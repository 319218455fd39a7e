// Storage types of 16 bits, the type each storage type is accumulated in, and the roundings between
// them: to nearest, ties to even, subnormals and infinities right whatever the processor's
// flush-to-zero setting.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/macros.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace pfn::math {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Accumulator<T>::type;

PFN_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

PFN_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

PFN_HD double widen(double value) { return value; }
PFN_HD float widen(float value) { return value; }

PFN_HD float widen(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

PFN_HD float widen(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // A subnormal m stands for m * 2^-24: put m under the exponent of 0.5 and take the 0.5 off.
  const uint32_t small = bits_of(float_of(0x3f000000u | magnitude) - 0.5f);
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t large = normal + (112u << 23);
  const uint32_t bits = magnitude < 0x0400u ? small : magnitude < 0x7c00u ? normal : large;
  return float_of(sign | bits);
#endif
}

// narrow(value, to) rounds an accumulated value to the storage type at `to`.
PFN_HD void narrow(double value, double* to) { *to = value; }
PFN_HD void narrow(float value, float* to) { *to = value; }

PFN_HD void narrow(float value, BFloat16* to) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>((is_nan ? bits | 0x00400000u : rounded) >> 16);
}

PFN_HD void narrow(float value, Half* to) {
#if defined(__CUDA_ARCH__)
  to->bits = __half_as_ushort(__float2half_rn(value));
#else
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the sum with 0.5 rounds at 2^-24, the unit of the subnormals.
  const uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t result = magnitude < 0x38800000u   ? small
                          : magnitude < 0x477ff000u ? normal
                                                    : special;
  to->bits = static_cast<uint16_t>(((bits >> 16) & 0x8000u) | result);
#endif
}

}  // namespace pfn::math
