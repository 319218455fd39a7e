// Random bits -> uniform numbers inside (0, 1) -> Gumbel noise, for one number or a vector of them.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/macros.h"

namespace pfn::math {

// The arithmetic that the sampler's templates use, for one number. Vectors bring the same names.
template <typename T>
struct Scalar;

template <>
struct Scalar<float> {
  using Value = float;
  using Number = float;
  using Index = int32_t;
  using Word = uint32_t;
  PFN_HD float from_word(uint32_t n) { return static_cast<float>(n); }
  PFN_HD float log(float x) { return ::logf(x); }
  PFN_HD float exp(float x) { return ::expf(x); }
};

template <>
struct Scalar<double> {
  using Value = double;
  using Number = double;
  using Index = int32_t;
  using Word = uint32_t;
  PFN_HD double from_word(uint32_t n) { return static_cast<double>(n); }
  PFN_HD double log(double x) { return ::log(x); }
  PFN_HD double exp(double x) { return ::exp(x); }
};

// u = ((word >> 8) | 1) * 2^-24: the 2^23 odd multiples of 2^-24, exact in float, never 0 or 1.
template <typename L>
PFN_HD typename L::Value open_uniform(typename L::Word word) {
  return L::from_word((word >> 8) | 1u) * static_cast<typename L::Number>(0x1p-24f);
}

// G = -log(-log u), between -2.8116 and 16.6356. Large values come from u near 1, so the inner
// logarithm must keep its relative accuracy there.
template <typename L>
PFN_HD typename L::Value gumbel(typename L::Word word) {
  return -L::log(-L::log(open_uniform<L>(word)));
}

}  // namespace pfn::math
