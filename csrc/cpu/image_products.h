// Matrix products over the channels of a map in blocks of lanes. Included once per instruction set.
#pragma once

#include <cstdint>

#include "cpu/image_kernels.h"
#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {

// Running sums held in registers: pixels times output blocks, or rows times column blocks.
#if defined(__AVX512F__)
constexpr int kSums = 16;
#else
constexpr int kSums = 8;
#endif

// sums += columns of the matrix times `count` channels, neighbours in one block, of kPixels pixels
// that are `step` numbers apart. A loop whose length is known has no end that could be
// mispredicted.
template <int kPixels, int kBlocks, typename T>
PFN_INLINE void add_lanes_of_block(const T* in,
                                   int64_t step,
                                   const T* matrix,
                                   int64_t matrix_block,
                                   int64_t count,
                                   lanes_t<T> (&sums)[kPixels][kBlocks]) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  const auto add = [&](int64_t lane) __attribute__((always_inline)) {
    V column[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) column[b] = load(matrix + lane * L + b * matrix_block);
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
      const T value = in[p * step + lane];
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) sums[p][b] += column[b] * value;
    }
  };
  if (count == L) {
#pragma GCC unroll 16
    for (int64_t lane = 0; lane < L; ++lane) add(lane);
  } else {
    for (int64_t lane = 0; lane < count; ++lane) add(lane);
  }
}

// kPixels pixels times kBlocks output blocks.
template <int kPixels, int kBlocks, typename T>
PFN_INLINE void product_tile(const T* in,
                             int64_t block,
                             int64_t channels,
                             const T* matrix,
                             int64_t matrix_block,
                             T* to,
                             int64_t to_block) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  V sums[kPixels][kBlocks] = {};
  for (int64_t k = 0; k < channels; k += L, in += block) {
    const int64_t count = channels - k < L ? channels - k : L;
    add_lanes_of_block<kPixels, kBlocks>(in, L, matrix + k * L, matrix_block, count, sums);
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) store(to + p * L + b * to_block, sums[p][b]);
  }
}

template <int kBlocks, typename T>
void product_blocks(const T* x,
                    int64_t channels,
                    const T* matrix,
                    T* to,
                    int64_t to_block,
                    int64_t height,
                    int64_t width,
                    int64_t row) {
  constexpr int64_t L = kLanes<T>;
  constexpr int kPixels = kSums / kBlocks;
  const int64_t block = height * width * L, matrix_block = channels * L;
  for (int64_t y = 0; y < height; ++y, x += width * L, to += row * L) {
    int64_t p = 0;
    for (; p + kPixels <= width; p += kPixels) {
      product_tile<kPixels, kBlocks>(x + p * L, block, channels, matrix, matrix_block, to + p * L,
                                     to_block);
    }
    for (; p < width; ++p) {
      product_tile<1, kBlocks>(x + p * L, block, channels, matrix, matrix_block, to + p * L,
                               to_block);
    }
  }
}

template <typename T>
void product(const T* x,
             int64_t channels,
             const T* matrix,
             T* framed,
             const Frame& frame,
             int64_t out_blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t block = frame.pixels() * L, row = frame.row();
  T* to = framed + frame.first() * L;
  // Without a frame all rows are one.
  const int64_t height = frame.border == 0 ? 1 : frame.height;
  const int64_t width = frame.border == 0 ? frame.pixels() : frame.width;
  int64_t b = 0;
  for (; b + 4 <= out_blocks; b += 4) {
    product_blocks<4>(x, channels, matrix + b * channels * L, to + b * block, block, height, width,
                      row);
  }
  for (; b + 2 <= out_blocks; b += 2) {
    product_blocks<2>(x, channels, matrix + b * channels * L, to + b * block, block, height, width,
                      row);
  }
  for (; b < out_blocks; ++b) {
    product_blocks<1>(x, channels, matrix + b * channels * L, to + b * block, block, height, width,
                      row);
  }
}

// kRows channels of a, neighbours in one block, times kBlocks blocks of b.
template <int kRows, int kBlocks, typename T>
PFN_INLINE void outer_tile(const T* a, const T* b, int64_t pixels, T* sum, int64_t sum_row) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  // Few pixels at a time go into one running sum, so that its rounding stays small.
  constexpr int64_t kFew = 256;
  for (int64_t few = 0; few < pixels; few += kFew) {
    const int64_t end = pixels < few + kFew ? pixels : few + kFew;
    V sums[kRows][kBlocks] = {};
    for (int64_t p = few; p < end; ++p) {
      V column[kBlocks];
#pragma GCC unroll 4
      for (int i = 0; i < kBlocks; ++i) column[i] = load(b + (i * pixels + p) * L);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const T value = a[p * L + r];
#pragma GCC unroll 4
        for (int i = 0; i < kBlocks; ++i) sums[r][i] += column[i] * value;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kBlocks; ++i) {
        T* to = sum + r * sum_row + i * L;
        store(to, load(to) + sums[r][i]);
      }
    }
  }
}

template <int kBlocks, typename T>
void outer_rows(
    const T* a, int64_t a_channels, const T* b, int64_t pixels, T* sum, int64_t sum_row) {
  constexpr int64_t L = kLanes<T>;
  constexpr int kRows = kSums / kBlocks < L ? kSums / kBlocks : L;
  for (int64_t k = 0; k < a_channels; k += L, a += pixels * L) {
    const int64_t count = a_channels - k < L ? a_channels - k : L;
    int64_t r = 0;
    for (; r + kRows <= count; r += kRows) {
      outer_tile<kRows, kBlocks>(a + r, b, pixels, sum + (k + r) * sum_row, sum_row);
    }
    for (; r < count; ++r) {
      outer_tile<1, kBlocks>(a + r, b, pixels, sum + (k + r) * sum_row, sum_row);
    }
  }
}

template <typename T>
void outer(const T* a, int64_t a_channels, const T* b, int64_t b_blocks, int64_t pixels, T* sum) {
  constexpr int64_t L = kLanes<T>;
  const int64_t sum_row = b_blocks * L;
  int64_t i = 0;
  for (; i + 4 <= b_blocks; i += 4) {
    outer_rows<4>(a, a_channels, b + i * pixels * L, pixels, sum + i * L, sum_row);
  }
  for (; i + 2 <= b_blocks; i += 2) {
    outer_rows<2>(a, a_channels, b + i * pixels * L, pixels, sum + i * L, sum_row);
  }
  for (; i < b_blocks; ++i) {
    outer_rows<1>(a, a_channels, b + i * pixels * L, pixels, sum + i * L, sum_row);
  }
}

}  // namespace pfn::cpu::PFN_ISA
