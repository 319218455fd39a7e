// The sampler's arithmetic on vectors: logarithm, exponential and random words. Included by files
// that are compiled once per instruction set; nothing here has a symbol of its own.
#pragma once

#include <cstdint>

#include "cpu/lanes.h"
#include "math/gumbel.h"
#include "math/philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pfn::cpu::PFN_ISA {

using IndexLanes = int32_t __attribute__((vector_size(PFN_VECTOR_BYTES)));
using WideLanes = uint64_t __attribute__((vector_size(PFN_VECTOR_BYTES)));

constexpr int kFloats = PFN_VECTOR_BYTES / 4;  // lanes of a FloatLanes
constexpr int kWides = PFN_VECTOR_BYTES / 8;   // lanes of a WideLanes

// 0, 1, 2, ...
template <typename V>
PFN_INLINE V lane_numbers() {
  V lanes{};
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(lanes[0])); ++i) {
    lanes[i] = static_cast<decltype(+lanes[0])>(i);
  }
  return lanes;
}

// Whether any lane of a comparison's result is set.
PFN_INLINE bool any_lane(IndexLanes mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8(reinterpret_cast<__m256i>(mask)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8(reinterpret_cast<__m128i>(mask)) != 0;
#else
  int32_t any = 0;
  for (int i = 0; i < kFloats; ++i) {
    any |= mask[i];
  }
  return any != 0;
#endif
}
PFN_INLINE bool any_lane(bool mask) { return mask; }
PFN_INLINE bool every_lane(IndexLanes mask) { return !any_lane(~mask); }
PFN_INLINE bool every_lane(bool mask) { return mask; }

// Natural logarithms of kCount vectors of positive normal numbers, in place, within 1.5 units in
// the last place, near 1 as well. They go step by step together: one alone waits for its own
// results longer than the processor can look ahead.
template <int kCount>
PFN_INLINE void log_together(FloatLanes* x /* [kCount] */) {
  FloatLanes e[kCount], r[kCount], square[kCount], p[kCount], q[kCount];
  for (int n = 0; n < kCount; ++n) {
    // x = 2^e (1 + r) with 1 + r between sqrt(1/2) and sqrt(2).
    const IndexLanes bits = reinterpret_cast<IndexLanes>(x[n]) - 0x3f3504f3;
    e[n] = __builtin_convertvector(bits >> 23, FloatLanes);
    r[n] = reinterpret_cast<FloatLanes>((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    square[n] = r[n] * r[n];
  }
  // Minimax for (log(1 + r) - r + r^2 / 2) / r^3, relative error of the sum 6e-9; even and odd
  // powers apart, to halve the chain.
  for (int n = 0; n < kCount; ++n) {
    p[n] = square[n] * -0.07634509733f - 0.1316017761f;
    q[n] = square[n] * 0.1276157855f + 0.142017574f;
  }
  for (int n = 0; n < kCount; ++n) {
    p[n] = p[n] * square[n] - 0.1662335783f;
    q[n] = q[n] * square[n] + 0.2000122693f;
  }
  for (int n = 0; n < kCount; ++n) {
    p[n] = p[n] * square[n] - 0.2500082102f;
    q[n] = q[n] * square[n] + 0.3333333171f;
  }
  for (int n = 0; n < kCount; ++n) {
    // log 2 in two parts: the first times any e is exact.
    p[n] = p[n] * r[n] + q[n];
    FloatLanes low = e[n] * -2.12194440e-4f + (p[n] * r[n]) * square[n];
    low = square[n] * -0.5f + low;
    x[n] = e[n] * 0.693359375f + (r[n] + low);
  }
}

// Gumbel noise from kCount vectors of words: math::gumbel(), together.
template <int kCount>
PFN_INLINE void gumbel_together(const WordLanes* words, FloatLanes* noise /* [kCount] */) {
  for (int n = 0; n < kCount; ++n) {
    const IndexLanes odd = reinterpret_cast<IndexLanes>((words[n] >> 8) | 1u);
    noise[n] = __builtin_convertvector(odd, FloatLanes) * 0x1p-24f;
  }
  log_together<kCount>(noise);
  for (int n = 0; n < kCount; ++n) {
    noise[n] = -noise[n];
  }
  log_together<kCount>(noise);
  for (int n = 0; n < kCount; ++n) {
    noise[n] = -noise[n];
  }
}

// Exponentials of kCount vectors of numbers up to 88, in place, within 1.5 units in the last place;
// below -87.3 they are 0. Step by step together, as the logarithms.
template <int kCount>
PFN_INLINE void exp_together(FloatLanes* x /* [kCount] */) {
  constexpr float kLowest = -87.3f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  FloatLanes shifted[kCount], r[kCount], p[kCount];
  for (int n = 0; n < kCount; ++n) {
    const FloatLanes bounded = x[n] > kLowest ? x[n] : FloatLanes{} + kLowest;
    shifted[n] = bounded * 1.44269504f + kRound;
    const FloatLanes whole = shifted[n] - kRound;
    r[n] = whole * -0.693359375f + bounded;
    r[n] = whole * 2.12194440e-4f + r[n];
  }
  // Minimax for (exp(r) - 1 - r) / r^2, relative error of the sum 3e-9.
  for (int n = 0; n < kCount; ++n) {
    p[n] = r[n] * 0.001381461341f + 0.008368709816f;
  }
  for (int n = 0; n < kCount; ++n) {
    p[n] = p[n] * r[n] + 0.04166838736f;
  }
  for (int n = 0; n < kCount; ++n) {
    p[n] = p[n] * r[n] + 0.1666652069f;
  }
  for (int n = 0; n < kCount; ++n) {
    p[n] = p[n] * r[n] + 0.4999999345f;
  }
  for (int n = 0; n < kCount; ++n) {
    p[n] = (p[n] * r[n]) * r[n] + r[n] + 1.0f;
    // Unsigned, since lanes whose result nobody takes may carry past the largest integer.
    const WordLanes scale = reinterpret_cast<WordLanes>(shifted[n]) << 23;
    const FloatLanes y = reinterpret_cast<FloatLanes>(reinterpret_cast<WordLanes>(p[n]) + scale);
    x[n] = x[n] < kLowest ? FloatLanes{} : y;
  }
}

PFN_INLINE FloatLanes exp_lanes(FloatLanes x) {
  exp_together<1>(&x);
  return x;
}

// The first `count` lanes from memory, the others as in `rest`; nothing behind them is touched.
PFN_INLINE FloatLanes load_some(const float* from, int64_t count, FloatLanes rest) {
#if defined(__AVX512F__)
  PFN_WILL_READ(from, count * 4);
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1u);
  return _mm512_mask_loadu_ps(rest, mask, from);
#elif defined(__AVX2__)
  PFN_WILL_READ(from, count * 4);
  const IndexLanes wanted = lane_numbers<IndexLanes>() < static_cast<int32_t>(count);
  const FloatLanes read = _mm256_maskload_ps(from, reinterpret_cast<__m256i>(wanted));
  return wanted ? read : rest;
#else
  for (int i = 0; i < count; ++i) {
    rest[i] = from[i];
  }
  return rest;
#endif
}
PFN_INLINE double load_some(const double* from, int64_t count, double rest) {
  return count > 0 ? *from : rest;
}

// Writes the first `count` lanes.
PFN_INLINE void store_some(float* to, int64_t count, FloatLanes value) {
#if defined(__AVX512F__)
  PFN_WILL_WRITE(to, count * 4);
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), value);
#elif defined(__AVX2__)
  PFN_WILL_WRITE(to, count * 4);
  const IndexLanes wanted = lane_numbers<IndexLanes>() < static_cast<int32_t>(count);
  _mm256_maskstore_ps(to, reinterpret_cast<__m256i>(wanted), value);
#else
  for (int i = 0; i < count; ++i) {
    to[i] = value[i];
  }
#endif
}
PFN_INLINE void store_some(double* to, int64_t count, double value) {
  if (count > 0) {
    *to = value;
  }
}

// Words stand in the low halves of 64-bit lanes, where the processor multiplies them; the high
// halves hold rubbish that no product reads.
struct WideWords {
  using Word = WideLanes;
  PFN_HD void multiply(uint32_t factor, WideLanes x, WideLanes* high, WideLanes* low) {
#if defined(__AVX512F__)
    const __m512i f = _mm512_set1_epi64(static_cast<int64_t>(factor));
    // The unmasked form makes g++ 12 warn about its own header (GCC bug 105593).
    *low =
        reinterpret_cast<WideLanes>(_mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(x), f));
#elif defined(__AVX2__)
    const __m256i f = _mm256_set1_epi64x(static_cast<int64_t>(factor));
    *low = reinterpret_cast<WideLanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(x), f));
#elif defined(__SSE2__)
    const __m128i f = _mm_set1_epi64x(static_cast<int64_t>(factor));
    *low = reinterpret_cast<WideLanes>(_mm_mul_epu32(reinterpret_cast<__m128i>(x), f));
#else
    *low = (x & 0xffffffffu) * static_cast<uint64_t>(factor);
#endif
    *high = *low >> 32;
  }
};

PFN_INLINE WordLanes pack(WideLanes even, WideLanes odd) {
  return reinterpret_cast<WordLanes>((even & 0xffffffffu) | (odd << 32));
}

// Encrypts counters of which the first two words, block and row, are set.
template <int kCounters>
PFN_INLINE void encrypt(const math::PhiloxSeed& seed, WideLanes (*words)[4]) {
  for (int n = 0; n < kCounters; ++n) {
    words[n][2] = WideLanes{} + seed.offset[0];
    words[n][3] = WideLanes{} + seed.offset[1];
  }
  math::philox4x32_together<WideWords, kCounters>(words, seed.key[0], seed.key[1]);
}

// Words of one block of four columns for kFloats rows: words[i] holds column i, lane = row.
PFN_INLINE void words_of_rows(const math::PhiloxSeed& seed,
                              uint32_t block,
                              uint32_t first_row,
                              WordLanes* words /* [4] */) {
  const WideLanes even_row = lane_numbers<WideLanes>() * 2 + first_row;
  WideLanes w[2][4];
  for (int odd = 0; odd < 2; ++odd) {
    w[odd][0] = WideLanes{} + block;
    w[odd][1] = even_row + static_cast<uint32_t>(odd);
  }
  encrypt<2>(seed, w);
  for (int i = 0; i < 4; ++i) {
    words[i] = pack(w[0][i], w[1][i]);
  }
}

// (a0, b0, a1, b1, ...) of the lower and the upper lanes.
PFN_INLINE void interleave(WideLanes a, WideLanes b, WideLanes* lower, WideLanes* upper) {
#if defined(__clang__)
#define PFN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PFN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, WideLanes{__VA_ARGS__})
#endif
#if PFN_VECTOR_BYTES == 64
  *lower = PFN_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  *upper = PFN_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif PFN_VECTOR_BYTES == 32
  *lower = PFN_SHUFFLE(a, b, 0, 4, 1, 5);
  *upper = PFN_SHUFFLE(a, b, 2, 6, 3, 7);
#else
  *lower = PFN_SHUFFLE(a, b, 0, 2);
  *upper = PFN_SHUFFLE(a, b, 1, 3);
#endif
#undef PFN_SHUFFLE
}

// Counters encrypted together along a row.
constexpr int kTogether = 2;

// Words of 2 * kTogether * kFloats neighbouring columns of a row, from a multiple of four on.
PFN_INLINE void words_of_columns(const math::PhiloxSeed& seed,
                                 uint32_t first_block,
                                 uint32_t row,
                                 WordLanes* words /* [2 * kTogether] */) {
  WideLanes w[kTogether][4];
  for (int n = 0; n < kTogether; ++n) {
    w[n][0] = lane_numbers<WideLanes>() + (first_block + static_cast<uint32_t>(n * kWides));
    w[n][1] = WideLanes{} + row;
  }
  encrypt<kTogether>(seed, w);
  for (int n = 0; n < kTogether; ++n) {
    WideLanes lower, upper;
    interleave(reinterpret_cast<WideLanes>(pack(w[n][0], w[n][1])),
               reinterpret_cast<WideLanes>(pack(w[n][2], w[n][3])), &lower, &upper);
    words[2 * n] = reinterpret_cast<WordLanes>(lower);
    words[2 * n + 1] = reinterpret_cast<WordLanes>(upper);
  }
}

// What math/ templates need, on a vector of floats.
struct Lanes {
  using Value = FloatLanes;
  using Number = float;
  using Index = IndexLanes;
  using Word = WordLanes;
  static constexpr int kWidth = kFloats;
  static constexpr int kVectors = 2 * kTogether;  // vectors that one call of words() fills
  template <typename T>
  PFN_HD FloatLanes load_row(const T* from) {
    return load(from);
  }
  PFN_HD FloatLanes from_word(WordLanes n) {
    return __builtin_convertvector(reinterpret_cast<IndexLanes>(n), FloatLanes);
  }
  PFN_HD void gumbel(const WordLanes* words, FloatLanes* noise /* [kVectors] */) {
    gumbel_together<kVectors>(words, noise);
  }
  PFN_HD void exp_all(FloatLanes* x /* [kVectors] */) { exp_together<kVectors>(x); }
  PFN_HD FloatLanes exp(FloatLanes x) { return exp_lanes(x); }
  PFN_HD FloatLanes log(FloatLanes x) {
    log_together<1>(&x);
    return x;
  }
  PFN_HD void words(const math::PhiloxSeed& seed, uint32_t block, uint32_t row, WordLanes* words) {
    words_of_columns(seed, block, row, words);
  }
};

// The same, one double at a time.
struct OneDouble : math::Scalar<double> {
  static constexpr int kWidth = 1;
  static constexpr int kVectors = 4;
  PFN_HD double load_row(const double* from) { return *from; }
  PFN_HD void words(const math::PhiloxSeed& seed, uint32_t block, uint32_t row, uint32_t* words) {
    math::philox_words(seed, block, row, words);
  }
  PFN_HD void gumbel(const uint32_t* words, double* noise /* [kVectors] */) {
    for (int i = 0; i < kVectors; ++i) {
      noise[i] = math::gumbel<math::Scalar<double>>(words[i]);
    }
  }
  PFN_HD void exp_all(double* x /* [kVectors] */) {
    for (int i = 0; i < kVectors; ++i) {
      x[i] = exp(x[i]);
    }
  }
};

template <typename T>
struct RowLanesOf {
  using type = Lanes;
};
template <>
struct RowLanesOf<double> {
  using type = OneDouble;
};

// The arithmetic that walks along a row of T.
template <typename T>
using row_lanes_t = typename RowLanesOf<T>::type;

PFN_INLINE IndexLanes columns_from(int32_t first, FloatLanes) {
  return lane_numbers<IndexLanes>() + first;
}
PFN_INLINE int32_t columns_from(int32_t first, double) { return first; }

PFN_INLINE float sum_lanes(FloatLanes value) {
  // Halves onto halves, so that the order depends on nothing but the width.
  float lanes[kFloats];
  __builtin_memcpy(lanes, &value, sizeof(lanes));
  for (int half = kFloats / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lanes[i] += lanes[i + half];
    }
  }
  return lanes[0];
}
PFN_INLINE double sum_lanes(double value) { return value; }

// Columns summed in one vector before the sum moves on to double: bounds the error of long rows.
constexpr int64_t kSumBlock = 1024;

}  // namespace pfn::cpu::PFN_ISA
