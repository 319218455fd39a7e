// Vectors of accumulator lanes and their loads and stores from every storage type, without regard
// to alignment. Included by files that are compiled once per instruction set; nothing here has a
// symbol of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/accumulate.h"
#include "math/macros.h"

#if defined(PFN_X86_64)
#include <immintrin.h>
#endif

namespace pfn::cpu::PFN_ISA {

#define PFN_INLINE static inline __attribute__((always_inline))

using FloatLanes = float __attribute__((vector_size(PFN_VECTOR_BYTES)));
using DoubleLanes = double __attribute__((vector_size(PFN_VECTOR_BYTES)));
using WordLanes = uint32_t __attribute__((vector_size(PFN_VECTOR_BYTES)));
using HalfWordLanes = uint16_t __attribute__((vector_size(PFN_VECTOR_BYTES / 2)));

template <typename T>
struct LanesOf {
  using type = FloatLanes;
};
template <>
struct LanesOf<double> {
  using type = DoubleLanes;
};

// The vector that values of storage type T are accumulated in, and how many values it holds.
template <typename T>
using lanes_t = typename LanesOf<T>::type;
template <typename T>
constexpr int kLanes = PFN_VECTOR_BYTES / static_cast<int>(sizeof(math::acc_t<T>));

template <typename V, typename T>
PFN_INLINE V load_as(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

PFN_INLINE WordLanes choose(WordLanes mask, WordLanes yes, WordLanes no) {
  return (mask & yes) | (~mask & no);
}

PFN_INLINE DoubleLanes load(const double* from) { return load_as<DoubleLanes>(from); }
PFN_INLINE FloatLanes load(const float* from) { return load_as<FloatLanes>(from); }

PFN_INLINE FloatLanes load(const math::BFloat16* from) {
  const WordLanes bits = __builtin_convertvector(load_as<HalfWordLanes>(from), WordLanes) << 16;
  return reinterpret_cast<FloatLanes>(bits);
}

PFN_INLINE FloatLanes load(const math::Half* from) {
#if defined(__AVX512F__)
  // The zero-masked forms: GCC 12 warns about the undefined value inside the plain ones.
  return _mm512_maskz_cvtph_ps(0xffff, load_as<__m256i>(from));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load_as<__m128i>(from));
#else
  // math::widen, lane by lane.
  const WordLanes word = __builtin_convertvector(load_as<HalfWordLanes>(from), WordLanes);
  const WordLanes magnitude = word & 0x7fffu;
  const FloatLanes above = reinterpret_cast<FloatLanes>(magnitude | 0x3f000000u);
  const WordLanes small = reinterpret_cast<WordLanes>(above - 0.5f);
  const WordLanes normal = (magnitude << 13) + (112u << 23);
  const WordLanes finite = choose(reinterpret_cast<WordLanes>(magnitude < 0x0400u), small, normal);
  const WordLanes bits =
      choose(reinterpret_cast<WordLanes>(magnitude < 0x7c00u), finite, normal + (112u << 23));
  return reinterpret_cast<FloatLanes>(bits | ((word & 0x8000u) << 16));
#endif
}

// Lanes rounded to the storage type that the second argument points to.
PFN_INLINE DoubleLanes narrowed(DoubleLanes value, const double*) { return value; }
PFN_INLINE FloatLanes narrowed(FloatLanes value, const float*) { return value; }

PFN_INLINE HalfWordLanes narrowed(FloatLanes value, const math::BFloat16*) {
  // math::narrow, lane by lane.
  const WordLanes bits = reinterpret_cast<WordLanes>(value);
  const WordLanes rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const WordLanes is_nan = reinterpret_cast<WordLanes>((bits & 0x7fffffffu) > 0x7f800000u);
  return __builtin_convertvector(choose(is_nan, bits | 0x00400000u, rounded) >> 16, HalfWordLanes);
}

PFN_INLINE HalfWordLanes narrowed(FloatLanes value, const math::Half*) {
#if defined(__AVX512F__)
  return reinterpret_cast<HalfWordLanes>(
      _mm512_maskz_cvtps_ph(0xffff, value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return reinterpret_cast<HalfWordLanes>(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
  // math::narrow, lane by lane.
  const WordLanes bits = reinterpret_cast<WordLanes>(value);
  const WordLanes magnitude = bits & 0x7fffffffu;
  const FloatLanes above = reinterpret_cast<FloatLanes>(magnitude) + 0.5f;
  const WordLanes small = reinterpret_cast<WordLanes>(above) - 0x3f000000u;
  const WordLanes normal = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  const WordLanes is_nan = reinterpret_cast<WordLanes>(magnitude > 0x7f800000u);
  const WordLanes special = 0x7c00u + (is_nan & 0x0200u);
  const WordLanes finite =
      choose(reinterpret_cast<WordLanes>(magnitude < 0x38800000u), small, normal);
  const WordLanes bits16 =
      choose(reinterpret_cast<WordLanes>(magnitude < 0x477ff000u), finite, special);
  return __builtin_convertvector(bits16 | ((bits >> 16) & 0x8000u), HalfWordLanes);
#endif
}

template <typename T>
PFN_INLINE void store(T* to, lanes_t<T> value) {
  const auto result = narrowed(value, to);
  __builtin_memcpy(to, &result, sizeof(result));
}

// stream() stores past the caches, for outputs too large to be found there again: it spares the
// read of each line that an ordinary store makes. It needs is_streamable(to), and end_streams()
// before the data is handed on.
template <typename T>
PFN_INLINE bool is_streamable(const T* to) {
  return reinterpret_cast<std::uintptr_t>(to) % (kLanes<T> * sizeof(T)) == 0;
}

template <typename T>
PFN_INLINE void stream(T* to, lanes_t<T> value) {
  const auto result = narrowed(value, to);
  PFN_WILL_WRITE(to, sizeof(result));
#if defined(__AVX512F__)
  if constexpr (sizeof(result) == 64) {
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(result));
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof(result) == 32) {
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(result));
  }
#endif
#if defined(PFN_X86_64)
  if constexpr (sizeof(result) == 16) {
    return _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(result));
  }
#endif
  __builtin_memcpy(to, &result, sizeof(result));
}

PFN_INLINE void end_streams() {
#if defined(PFN_X86_64)
  _mm_sfence();
#endif
}

// The first `count` values at `from`, the other lanes zero; and the store that fits it.
template <typename T>
PFN_INLINE lanes_t<T> load_some(const T* from, int64_t count) {
  T whole[kLanes<T>] = {};
  __builtin_memcpy(whole, from, static_cast<std::size_t>(count) * sizeof(T));
  return load(whole);
}

template <typename T>
PFN_INLINE void store_some(T* to, lanes_t<T> value, int64_t count) {
  T whole[kLanes<T>];
  store(whole, value);
  __builtin_memcpy(to, whole, static_cast<std::size_t>(count) * sizeof(T));
}

// The sum of all lanes in double, in the order of the lanes.
template <typename V>
PFN_INLINE double sum_of_lanes(V value) {
  double sum = 0.0;
  for (int lane = 0; lane < static_cast<int>(sizeof(V) / sizeof(value[0])); ++lane) {
    sum += static_cast<double>(value[lane]);
  }
  return sum;
}

}  // namespace pfn::cpu::PFN_ISA
