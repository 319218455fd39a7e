// TF32, what a tensor core takes of a float32 number: its sign and exponent, and ten bits of its
// mantissa.
#pragma once

#include "math/accumulate.h"

namespace pfn::math {

// Rounded to nearest, ties away from zero; NaN stays.
PFN_HD float round_tf32(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return float_of(bits);
#else
  const uint32_t bits = bits_of(value);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return float_of((is_nan ? bits | 0x00400000u : bits + 0x00001000u) & 0xffffe000u);
#endif
}

}  // namespace pfn::math
