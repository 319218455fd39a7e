// The tile of a block: some strips of pixels times kC channels, four by four of them in each
// thread.
#pragma once

#include "cuda/block.h"
#include "cuda/node/unit.h"

namespace pfn::cuda {

constexpr int kDepth = 16;  // inner channels of a product that are in shared memory at once

template <int kC>
struct TileShape {
  static constexpr int kThreads = 256;
  static constexpr int kPixels = 4096 / kC;
  static constexpr int kStrips = kPixels / kStrip;
  static constexpr int kChannelGroups = kC / 4;
  // Rows of shared memory are four numbers longer, so that their banks differ.
  static constexpr int kPixelRow = kPixels + 4;
  static constexpr int kChannelRow = kC + 4;

  // The strip and the first of the four channels of a thread.
  PFN_MEMBER static constexpr int strip_of(int thread) { return thread / kChannelGroups; }
  PFN_MEMBER static constexpr int channel_of(int thread) { return thread % kChannelGroups * 4; }
};

// A tile of blocks in which shared memory holds the operands of one step of a product.
template <typename Acc, int kC>
struct Operands {
  using Shape = TileShape<kC>;
  Acc pixels[kDepth][Shape::kPixelRow];
  Acc channels[kDepth][Shape::kChannelRow];
};

// sum[pixel][channel] += the product of the operands.
template <typename Acc, int kC>
PFN_DEVICE void multiply(const Operands<Acc, kC>& operands, int thread, Acc (&sum)[kStrip][4]) {
  const int pixel = TileShape<kC>::strip_of(thread) * kStrip;
  const int channel = TileShape<kC>::channel_of(thread);
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

// Calls put(k, strip of the tile) for every row of the operand of pixels, spread over the threads
// so that neighbours take neighbouring channels.
template <int kC, typename Put>
PFN_DEVICE void for_each_pixel_operand(int thread, Put&& put) {
  constexpr int kStep = TileShape<kC>::kThreads / kDepth;
  for (int strip = thread / kDepth; strip < TileShape<kC>::kStrips; strip += kStep) {
    put(thread % kDepth, strip);
  }
}

// Writes the sums of a thread to a map [pixels, channels], of which the tile begins at a strip and
// a channel.
template <int kC, typename Acc>
PFN_DEVICE void write_tile(const Strips& strips,
                           int64_t first_strip,
                           int first_channel,
                           int channels,
                           int thread,
                           const Acc (&sum)[kStrip][4],
                           Acc* map) {
  const Strip strip = strip_at(strips, first_strip + TileShape<kC>::strip_of(thread));
  const int channel = first_channel + TileShape<kC>::channel_of(thread);
#pragma unroll
  for (int o = 0; o < kStrip; ++o) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (o < strip.inside && channel + i < channels) {
        map[(strip.pixel + o) * channels + channel + i] = sum[o][i];
      }
    }
  }
}

}  // namespace pfn::cuda
