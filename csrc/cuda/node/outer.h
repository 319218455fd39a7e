// The products that make the gradient of a matrix: kC output channels times kDepth inner ones,
// added up over pixels, which groups of threads share out.
#pragma once

#include "cuda/node/tile.h"

namespace pfn::cuda {

// With tensor cores a warp has 16 output channels, otherwise a thread has four by four numbers.
template <int kC, bool kTensor>
struct OuterShape {
  static constexpr int kThreads = 256, kPixels = 64, kRow = kPixels + 4;
  static constexpr int kGroup = kTensor ? kC / 16 * kWarpSize : kDepth / 4 * (kC / 4);
  static constexpr int kGroups = kThreads / kGroup;
  static constexpr int kRows = kTensor ? 2 : 4;  // of what a thread adds up; columns are four
  // Pixels that a group takes at once.
  static constexpr int kPixelsAtOnce = kTensor ? kTensorSteps : kStrip;

  PFN_MEMBER static constexpr int group_of(int thread) { return thread / kGroup; }
  // The output channel in row `row` and the inner one in column `column` of a thread.
  PFN_MEMBER static constexpr int channel_of(int thread, int row) {
    const int place = thread % kGroup;
    return kTensor ? place / kWarpSize * 16 + product_row(place % kWarpSize, row)
                   : place / (kDepth / 4) * 4 + row;
  }
  PFN_MEMBER static constexpr int inner_of(int thread, int column) {
    const int place = thread % kGroup;
    return kTensor ? column / 2 * 8 + product_column(place % kWarpSize, column % 2)
                   : place % (kDepth / 4) * 4 + column;
  }
};

template <typename Acc, int kC>
struct OuterOperands {
  Acc z[kDepth][OuterShape<kC, false>::kRow];
  Acc e[kC][OuterShape<kC, false>::kRow];
};

// sum[channel][inner] += e z^T over the pixels from `pixel` on that a group takes at once.
template <bool kTensor, typename Acc, int kC, int kRows>
PFN_DEVICE void multiply_outer(const Block& block,
                               const OuterOperands<Acc, kC>& operands,
                               int pixel,
                               Acc (&sum)[kRows][4]) {
  using Shape = OuterShape<kC, kTensor>;
  const int thread = block.thread();
  if constexpr (kTensor) {
    const int lane = thread % kWarpSize, channel = thread % Shape::kGroup / kWarpSize * 16;
    float left[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = operands.e[channel + left_row(lane, i)][pixel + left_step(lane, i)];
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float right[2], part[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        right[i] = operands.z[n * 8 + right_column(lane)][pixel + right_step(lane, i)];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) part[i] = sum[i / 2][n * 2 + i % 2];
      multiply_tensors(block, left, right, part);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i / 2][n * 2 + i % 2] = part[i];
    }
  } else {
    const int channel = Shape::channel_of(thread, 0), inner = Shape::inner_of(thread, 0);
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Acc e = operands.e[channel + i][pixel + o];
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[i][k] += e * operands.z[inner + k][pixel + o];
      }
    }
  }
}

}  // namespace pfn::cuda
