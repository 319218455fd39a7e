// The tile of a block: some strips of pixels times kC channels, four by four of them in each
// thread. With tensor cores a warp has 32 pixels times 16 channels together.
#pragma once

#include "cuda/block.h"
#include "cuda/node/tensor_core.h"
#include "cuda/node/unit.h"

namespace pfn::cuda {

constexpr int kDepth = 16;  // inner channels of a product that are in shared memory at once

template <int kC, bool kTensor>
struct TileShape {
  static constexpr int kThreads = 256;
  static constexpr int kPixels = 4096 / kC;
  static constexpr int kStrips = kPixels / kStrip;
  // Rows of shared memory are longer, so that the banks differ of what a warp reads at once.
  static constexpr int kPad = kTensor ? 8 : 4;
  static constexpr int kPixelRow = kPixels + kPad;
  static constexpr int kChannelRow = kC + kPad;

  // The first pixel and channel of a warp with tensor cores.
  PFN_MEMBER static constexpr int warp_pixel(int thread) {
    return thread / kWarpSize / (kC / 16) * 32;
  }
  PFN_MEMBER static constexpr int warp_channel(int thread) {
    return thread / kWarpSize % (kC / 16) * 16;
  }
  // The pixel in row `row` and the channel in column `column` of what a thread adds up.
  PFN_MEMBER static constexpr int pixel_of(int thread, int row) {
    const int lane = thread % kWarpSize;
    return kTensor ? warp_pixel(thread) + row / 2 * 16 + product_row(lane, row % 2)
                   : thread / (kC / 4) * kStrip + row;
  }
  PFN_MEMBER static constexpr int channel_of(int thread, int column) {
    const int lane = thread % kWarpSize;
    return kTensor ? warp_channel(thread) + column / 2 * 8 + product_column(lane, column % 2)
                   : thread % (kC / 4) * 4 + column;
  }
};

// What a product takes of a factor.
template <bool kTensor, typename Acc>
PFN_DEVICE Acc factor(Acc value) {
  if constexpr (kTensor) {
    return math::round_tf32(value);
  } else {
    return value;
  }
}

// A tile of blocks in which shared memory holds the operands of one step of a product.
template <typename Acc, int kC, bool kTensor>
struct Operands {
  using Shape = TileShape<kC, kTensor>;
  Acc pixels[kDepth][Shape::kPixelRow];
  Acc channels[kDepth][Shape::kChannelRow];
};

// sum[pixel][channel] += the product of the operands.
template <typename Acc, int kC>
PFN_DEVICE void multiply(const Block& block,
                         const Operands<Acc, kC, false>& operands,
                         Acc (&sum)[kStrip][4]) {
  const int pixel = TileShape<kC, false>::pixel_of(block.thread(), 0);
  const int channel = TileShape<kC, false>::channel_of(block.thread(), 0);
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    Acc a[kStrip], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = operands.pixels[k][pixel + i];
      b[i] = operands.channels[k][channel + i];
    }
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[o][i] += a[o] * b[i];
    }
  }
}

// The same on tensor cores: two by two products, step by step.
template <int kC>
PFN_DEVICE void multiply(const Block& block,
                         const Operands<float, kC, true>& operands,
                         float (&sum)[kStrip][4]) {
  const int lane = block.thread() % kWarpSize;
  const int pixel = TileShape<kC, true>::warp_pixel(block.thread());
  const int channel = TileShape<kC, true>::warp_channel(block.thread());
#pragma unroll
  for (int step = 0; step < kDepth; step += kTensorSteps) {
    float right[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        right[n][i] =
            operands.channels[step + right_step(lane, i)][channel + n * 8 + right_column(lane)];
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        left[i] = operands.pixels[step + left_step(lane, i)][pixel + m * 16 + left_row(lane, i)];
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float part[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) part[i] = sum[m * 2 + i / 2][n * 2 + i % 2];
        multiply_tensors(block, left, right[n], part);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m * 2 + i / 2][n * 2 + i % 2] = part[i];
      }
    }
  }
}

// Calls put(k, strip of the tile) for every row of the operand of pixels, spread over the threads
// so that neighbours take neighbouring channels.
template <typename Shape, typename Put>
PFN_DEVICE void for_each_pixel_operand(int thread, Put&& put) {
  constexpr int kStep = Shape::kThreads / kDepth;
  for (int strip = thread / kDepth; strip < Shape::kStrips; strip += kStep) {
    put(thread % kDepth, strip);
  }
}

// Writes the sums of a thread to a map [pixels, channels], of which the tile begins at a strip and
// a channel.
template <typename Shape, typename Acc>
PFN_DEVICE void write_tile(const Strips& strips,
                           int64_t first_strip,
                           int first_channel,
                           int channels,
                           int thread,
                           const Acc (&sum)[kStrip][4],
                           Acc* map) {
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    const int pixel = Shape::pixel_of(thread, row);
    const Strip strip = strip_at(strips, first_strip + pixel / kStrip);
    if (pixel % kStrip >= strip.inside) continue;
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const int channel = first_channel + Shape::channel_of(thread, column);
      if (channel >= channels) continue;
      map[(strip.pixel + pixel % kStrip) * channels + channel] = sum[row][column];
    }
  }
}

}  // namespace pfn::cuda
