// y = matrix * z for the stages of a node, with z formed in shared memory and never stored.
#pragma once

#include "cuda/node/gather.h"
#include "cuda/node/tile.h"

namespace pfn::cuda {

// The numbers of a stage's matrix for one product and one of its inner channels; zero where there
// are none.
template <typename T>
PFN_DEVICE math::acc_t<T> matrix_at(
    const StageUnit<T>& unit, int channels, int product, int channel, int in_channel) {
  using Acc = math::acc_t<T>;
  if (channel >= channels || in_channel >= unit.in_channels) return Acc{0};
  const int taps = unit.is_full ? unit.taps_count() : 1;
  const int64_t at = static_cast<int64_t>(channel) * unit.in_channels + in_channel;
  if (unit.is_full) return unit.matrix[at * taps + product];
  if (channel < unit.rows) return product == 0 ? unit.matrix[at] : Acc{0};
  const int64_t skipped = static_cast<int64_t>(unit.rows) * unit.in_channels;
  return product == 1 ? unit.shifted[at - skipped] : Acc{0};
}

// Grid: tiles of the outputs; stages times pieces of kC channels.
template <typename T, int kC, bool kTensor>
struct StageForward {
  using Acc = math::acc_t<T>;
  using Shape = TileShape<kC, kTensor>;
  using Shared = Operands<Acc, kC, kTensor>;
  static constexpr int kThreads = Shape::kThreads, kBlocks = sizeof(Acc) == 8 ? 1 : 3;

  Units<T> units;
  NodeSizes sizes;
  int pieces;  // of channels

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const StageUnit<T>& unit = units.at[block.y() / pieces];
    if (unit.selected.is_off()) return;
    const int first_channel = static_cast<int>(block.y() % pieces) * kC;
    const Strips strips = make_strips(sizes.samples, sizes.height, sizes.width);
    const int64_t first_strip = block.x() * Shape::kStrips;
    const int thread = block.thread();
    Acc y[kStrip][4] = {};
    for (int product = 0; product < unit.products(); ++product) {
      for (int first = 0; first < unit.in_channels; first += kDepth) {
        for_each_pixel_operand<Shape>(thread, [&](int k, int strip) {
          Acc z[kStrip];
          gather_z(unit, strip_at(strips, first_strip + strip), product, first + k, z);
#pragma unroll
          for (int o = 0; o < kStrip; ++o) {
            shared.pixels[k][strip * kStrip + o] = factor<kTensor>(z[o]);
          }
        });
        for (int i = thread; i < kDepth * kC; i += kThreads) {
          const int k = i % kDepth, channel = i / kDepth;
          shared.channels[k][channel] = factor<kTensor>(
              matrix_at(unit, sizes.channels, product, first_channel + channel, first + k));
        }
        block.sync();
        multiply(block, shared, y);
        block.sync();
      }
    }
    write_tile<Shape>(strips, first_strip, first_channel, sizes.channels, thread, y, unit.y);
  }
};

}  // namespace pfn::cuda
