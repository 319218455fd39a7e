// Full convolutions on maps in blocks of lanes: sums over taps of matrix products whose inputs are
// read in place, shifted, never laid out again. Included once per instruction set.
#pragma once

#include <cstdint>

#include "cpu/image_kernels.h"
#include "cpu/image_products.h"
#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {

// The taps that one row of outputs sees: where each reads, and where its matrix begins.
struct TapList {
  // More are taken in several goes.
  static constexpr int kMost = 49;
  int count = 0;
  int64_t input[kMost];
  int64_t matrix[kMost];
};

// A row of outputs: `out_step` numbers apart, their inputs `kStep` pixels.
template <typename T>
struct OutputRow {
  const T* in;
  int64_t in_block;
  int64_t channels;
  const T* matrix;
  int64_t matrix_block;
  T* out;
  int64_t out_block;
  int64_t out_step;
  int64_t width;
};

// kPixels outputs times kBlocks output blocks.
template <int kPixels, int kBlocks, int kStep, typename T>
PFN_INLINE void convolve_tile(const OutputRow<T>& row, const TapList& taps, int64_t at, bool adds) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  T* out = row.out + at * row.out_step;
  V sums[kPixels][kBlocks];
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      sums[p][b] = adds ? load(out + p * row.out_step + b * row.out_block) : V{};
    }
  }
  for (int t = 0; t < taps.count; ++t) {
    const T* in = row.in + taps.input[t] + at * kStep * L;
    const T* w = row.matrix + taps.matrix[t];
    for (int64_t k = 0; k < row.channels; k += L, in += row.in_block) {
      const int64_t count = row.channels - k < L ? row.channels - k : L;
      add_lanes_of_block<kPixels, kBlocks>(in, kStep * L, w, row.matrix_block, count, sums);
      w += count * L;
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) store(out + p * row.out_step + b * row.out_block, sums[p][b]);
  }
}

// The row from `at` on, in tiles of kPixels and, for what is left, ever smaller ones.
template <int kPixels, int kBlocks, int kStep, typename T>
void convolve_tiles(const OutputRow<T>& row, const TapList& taps, int64_t at, bool adds) {
  for (; at + kPixels <= row.width; at += kPixels) {
    convolve_tile<kPixels, kBlocks, kStep>(row, taps, at, adds);
  }
  if constexpr (kPixels > 1) {
    if (at < row.width) convolve_tiles<(kPixels + 3) / 4, kBlocks, kStep>(row, taps, at, adds);
  }
}

template <int kStep, typename T>
void convolve_row(OutputRow<T> row, const TapList& taps, int64_t out_blocks, bool adds) {
  int64_t b = 0;
  // Two blocks at a time at most: the more pixels share a column of a large matrix, the less often
  // it is read.
  for (; b + 2 <= out_blocks; b += 2) {
    convolve_tiles<kSums / 2, 2, kStep>(row, taps, 0, adds);
    row.matrix += 2 * row.matrix_block;
    row.out += 2 * row.out_block;
  }
  if (b < out_blocks) convolve_tiles<kSums, 1, kStep>(row, taps, 0, adds);
}

template <typename T>
void convolve(const T* framed,
              const Frame& frame,
              const Window& window,
              int64_t channels,
              const T* matrix,
              T* out,
              int64_t height,
              int64_t width,
              int64_t out_blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t count = window.size * window.size, pixels = height * width;
  const T* origin = framed + (frame.first() - window.reach() * (frame.row() + 1)) * L;
  for (int64_t first = 0; first < count; first += TapList::kMost) {
    TapList taps;
    for (int64_t t = first; t < count && taps.count < TapList::kMost; ++t, ++taps.count) {
      const int64_t i = t / window.size, j = t % window.size;
      taps.input[taps.count] = (i * frame.row() + j) * window.dilation * L;
      taps.matrix[taps.count] = t * channels * L;
    }
    for (int64_t y = 0; y < height; ++y) {
      const OutputRow<T> row{origin + y * window.stride * frame.row() * L,
                             frame.pixels() * L,
                             channels,
                             matrix,
                             count * channels * L,
                             out + y * width * L,
                             pixels * L,
                             L,
                             width};
      if (window.stride == 1) {
        convolve_row<1>(row, taps, out_blocks, first > 0);
      } else {
        convolve_row<2>(row, taps, out_blocks, first > 0);
      }
    }
  }
}

template <typename T>
void convolve_input(const T* framed,
                    const Frame& frame,
                    const Window& window,
                    int64_t channels,
                    const T* matrix,
                    T* grad,
                    int64_t height,
                    int64_t width,
                    int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t size = window.size, stride = window.stride, reach = window.reach();
  const T* first = framed + frame.first() * L;
  for (int64_t y = 0; y < height; ++y) {
    // Inputs of one parity see the same taps, at neighbouring outputs.
    for (int64_t parity = 0; parity < stride && parity < width; ++parity) {
      OutputRow<T> row{first,
                       frame.pixels() * L,
                       channels,
                       matrix,
                       channels * L,
                       grad + (y * width + parity) * L,
                       height * width * L,
                       stride * L,
                       (width - parity + stride - 1) / stride};
      TapList taps;
      for (int64_t t = 0; t < size * size; ++t) {
        const int64_t from_y = y + reach - t / size * window.dilation;
        const int64_t from_x = parity + reach - t % size * window.dilation;
        if (from_y % stride != 0 || from_x % stride != 0) continue;
        taps.input[taps.count] = (from_y / stride * frame.row() + from_x / stride) * L;
        taps.matrix[taps.count] = t * blocks * channels * L;
        if (++taps.count < TapList::kMost) continue;
        convolve_row<1>(row, taps, blocks, true);
        taps.count = 0;
      }
      convolve_row<1>(row, taps, blocks, true);
    }
  }
}

// A count of blocks as a type.
template <int kCount>
struct Blocks {
  static constexpr int value = kCount;
};

// Of `height` rows of outputs: kRows channels of the gradient, neighbours in one block,
// times kBlocks blocks of the input under one tap.
template <int kRows, int kBlocks, typename T>
PFN_INLINE void convolve_matrix_tile(const T* grad,
                                     int64_t grad_row,
                                     const T* in,
                                     int64_t in_row,
                                     int64_t in_step,
                                     int64_t in_block,
                                     int64_t height,
                                     int64_t width,
                                     T* sum,
                                     int64_t sum_row) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  V sums[kRows][kBlocks] = {};
  for (int64_t y = 0; y < height; ++y, grad += grad_row, in += in_row) {
    const T* from = in;
    for (int64_t x = 0; x < width; ++x, from += in_step) {
      V column[kBlocks];
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) column[b] = load(from + b * in_block);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const T value = grad[x * L + r];
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) sums[r][b] += column[b] * value;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) {
      T* to = sum + r * sum_row + b * L;
      store(to, load(to) + sums[r][b]);
    }
  }
}

template <typename T>
void convolve_matrix(const T* framed,
                     const Frame& frame,
                     const Window& window,
                     int64_t in_blocks,
                     const T* framed_grad,
                     const Frame& grad_frame,
                     int64_t channels,
                     T* sum) {
  constexpr int64_t L = kLanes<T>;
  const int64_t size = window.size, sum_row = size * size * in_blocks * L;
  const int64_t in_block = frame.pixels() * L, grad_block = grad_frame.pixels() * L;
  const int64_t width = grad_frame.width, in_step = window.stride * L;
  const int64_t in_row = window.stride * frame.row() * L, grad_row = grad_frame.row() * L;
  const T* origin = framed + (frame.first() - window.reach() * (frame.row() + 1)) * L;
  const T* first = framed_grad + grad_frame.first() * L;
  // As many rows as stay in the first-level cache under all taps; and so few pixels in one running
  // sum that its rounding stays small.
  const int64_t band = width < 256 ? 256 / width : 1;
  for (int64_t y = 0; y < grad_frame.height; y += band) {
    const int64_t rows = grad_frame.height - y < band ? grad_frame.height - y : band;
    for (int64_t t = 0; t < size * size; ++t) {
      const int64_t tap = (t / size * frame.row() + t % size) * window.dilation * L;
      for (int64_t c = 0; c < channels; c += L) {
        const T* grad = first + c / L * grad_block + y * grad_row;
        const int64_t count = channels - c < L ? channels - c : L;
        const auto rows_of = [&](auto blocks, int64_t b) __attribute__((always_inline)) {
          constexpr int kBlocks = decltype(blocks)::value;
          constexpr int kRows = kSums / kBlocks < L ? kSums / kBlocks : static_cast<int>(L);
          const T* in = origin + tap + y * in_row + b * in_block;
          T* to = sum + c * sum_row + (t * in_blocks + b) * L;
          int64_t r = 0;
          for (; r + kRows <= count; r += kRows) {
            convolve_matrix_tile<kRows, kBlocks>(grad + r, grad_row, in, in_row, in_step, in_block,
                                                 rows, width, to + r * sum_row, sum_row);
          }
          for (; r < count; ++r) {
            convolve_matrix_tile<1, kBlocks>(grad + r, grad_row, in, in_row, in_step, in_block,
                                             rows, width, to + r * sum_row, sum_row);
          }
        };
        int64_t b = 0;
        for (; b + 2 <= in_blocks; b += 2) rows_of(Blocks<2>{}, b);
        if (b < in_blocks) rows_of(Blocks<1>{}, b);
      }
    }
  }
}

}  // namespace pfn::cpu::PFN_ISA
