// Backward of the stages of a node: the gradient of z, or of a full convolution's input; those of
// matrices and of taps in parts, one for each split of the pixels.
#pragma once

#include "cuda/node/outer.h"
#include "cuda/node/stage_forward.h"

namespace pfn::cuda {

// below = e * matrix with e, the output's gradient, formed in shared memory. Grid: tiles of z, or
// of the input of a full convolution; stages times pieces of kC channels.
template <typename T, int kC, bool kTensor>
struct StageBelow {
  using Acc = math::acc_t<T>;
  using Shape = TileShape<kC, kTensor>;
  using Shared = Operands<Acc, kC, kTensor>;
  static constexpr int kThreads = Shape::kThreads, kBlocks = sizeof(Acc) == 8 ? 1 : 3;

  Units<T> units;
  NodeSizes sizes;
  int pieces;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const StageUnit<T>& unit = units.at[block.y() / pieces];
    const int first_place = static_cast<int>(block.y() % pieces) * kC;
    const Strips strips = unit.is_full ? make_strips(sizes.samples, unit.in_height, unit.in_width)
                                       : make_strips(sizes.samples, sizes.height, sizes.width);
    const int64_t first_strip = block.x() * Shape::kStrips;
    if (first_strip >= strips.count || first_place >= unit.z_channels()) return;
    if (unit.selected.is_off()) return;
    const int thread = block.thread();
    Acc sum[kStrip][4] = {};
    const int taps = unit.is_full ? unit.taps_count() : 1;
    for (int tap = 0; tap < taps; ++tap) {
      for (int first = 0; first < sizes.channels; first += kDepth) {
        for_each_pixel_operand<Shape>(thread, [&](int k, int strip) {
          Acc e[kStrip];
          gather_gradient(unit, sizes, strip_at(strips, first_strip + strip), tap, unit.is_full,
                          first + k, e);
#pragma unroll
          for (int o = 0; o < kStrip; ++o) {
            shared.pixels[k][strip * kStrip + o] = factor<kTensor>(e[o]);
          }
        });
        for (int i = thread; i < kDepth * kC; i += kThreads) {
          const int place = first_place + i % kC;
          // z holds the channels of one window after those of the other.
          const int product = unit.is_full ? tap : place / unit.in_channels;
          const int in_channel = unit.is_full ? place : place % unit.in_channels;
          const Acc number = place < unit.z_channels() ? matrix_at(unit, sizes.channels, product,
                                                                   first + i / kC, in_channel)
                                                       : Acc{0};
          shared.channels[i / kC][i % kC] = factor<kTensor>(number);
        }
        block.sync();
        multiply(block, shared, sum);
        block.sync();
      }
    }
    write_tile<Shape>(strips, first_strip, first_place, unit.z_channels(), thread, sum, unit.below);
  }
};

// Strips of split `index` of `count` into `splits`.
PFN_HD int64_t split_begin(int64_t count, int64_t index, int64_t splits) {
  return count / splits * index + (index < count % splits ? index : count % splits);
}

// matrix_parts = e z^T over the pixels of a split. Grid: splits; stages times steps of the product
// times pieces of kC output channels.
template <typename T, int kC, bool kTensor>
struct StageMatrix {
  using Acc = math::acc_t<T>;
  static constexpr int kThreads = 256, kBlocks = sizeof(Acc) == 8 ? 1 : 2;
  using Shape = OuterShape<kC, kTensor>;
  static constexpr int kStripsAtOnce = Shape::kPixels / kStrip;

  union Shared {
    OuterOperands<Acc, kC> operands;
    Acc parts[Shape::kGroups][kDepth * kC];
  };

  Units<T> units;
  NodeSizes sizes;
  int steps;   // the most of any stage
  int pieces;  // of output channels

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const int64_t job = block.y() / pieces;
    const StageUnit<T>& unit = units.at[job / steps];
    const int first_channel = static_cast<int>(block.y() % pieces) * kC;
    const int step = static_cast<int>(job % steps);
    const int steps_each = (unit.in_channels + kDepth - 1) / kDepth;
    const int product = step / steps_each, first = step % steps_each * kDepth;
    if (unit.matrix_parts == nullptr || product >= unit.products()) return;
    if (unit.selected.is_off()) return;
    const Strips strips = make_strips(sizes.samples, sizes.height, sizes.width);
    const int64_t end = split_begin(strips.count, block.x() + 1, block.blocks());
    const int thread = block.thread();
    const int group = Shape::group_of(thread);
    Acc sum[Shape::kRows][4] = {};
    for (int64_t from = split_begin(strips.count, block.x(), block.blocks()); from < end;
         from += kStripsAtOnce) {
      for (int i = thread; i < (kDepth + kC) * kStripsAtOnce; i += kThreads) {
        const bool is_z = i < kDepth * kStripsAtOnce;
        const int j = is_z ? i : i - kDepth * kStripsAtOnce, width = is_z ? kDepth : kC;
        const int channel = j % width, place = j / width;
        const Strip strip = strip_at(strips, from + place < end ? from + place : strips.count);
        Acc values[kStrip];
        if (is_z) {
          gather_z(unit, strip, product, first + channel, values);
        } else {
          gather_gradient(unit, sizes, strip, 0, false, first_channel + channel, values);
        }
        Acc* to = is_z ? shared.operands.z[channel] : shared.operands.e[channel];
#pragma unroll
        for (int o = 0; o < kStrip; ++o) to[place * kStrip + o] = factor<kTensor>(values[o]);
      }
      block.sync();
      for (int pixel = group * Shape::kPixelsAtOnce; pixel < Shape::kPixels;
           pixel += Shape::kGroups * Shape::kPixelsAtOnce) {
        multiply_outer<kTensor>(block, shared.operands, pixel, sum);
      }
      block.sync();
    }
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        shared.parts[group][Shape::channel_of(thread, i) * kDepth + Shape::inner_of(thread, k)] =
            sum[i][k];
      }
    }
    block.sync();
    for (int i = thread; i < kDepth * kC; i += kThreads) {
      const int channel = first_channel + i / kDepth, in_channel = first + i % kDepth;
      if (channel >= sizes.channels || in_channel >= unit.in_channels) continue;
      // A factorised reduction: the first window has the first rows.
      if (!unit.is_full && (channel < unit.rows) != (product == 0)) continue;
      Acc total{0};
      for (int g = 0; g < Shape::kGroups; ++g) total += shared.parts[g][i];
      const int64_t taps = unit.is_full ? unit.taps_count() : 1;
      const int64_t at = (static_cast<int64_t>(channel) * unit.in_channels + in_channel) * taps;
      const int64_t numbers = static_cast<int64_t>(sizes.channels) * unit.in_channels * taps;
      unit.matrix_parts[block.x() * numbers + at + (unit.is_full ? product : 0)] = total;
    }
  }
};

// taps_parts = what the windows saw times the gradient of z, over the pixels of a split. Grid:
// splits; stages times pieces of kDepth channels.
template <typename T>
struct StageTaps {
  using Acc = math::acc_t<T>;
  static constexpr int kThreads = 256, kBlocks = 4;
  using Shared = NothingShared;

  Units<T> units;
  NodeSizes sizes;
  int pieces;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const StageUnit<T>& unit = units.at[block.y() / pieces];
    const int thread = block.thread();
    const int channel = static_cast<int>(block.y() % pieces) * kDepth + thread % kDepth;
    if (unit.taps_parts == nullptr || channel >= unit.in_channels) return;
    if (unit.selected.is_off()) return;
    const Strips strips = make_strips(sizes.samples, sizes.height, sizes.width);
    const int64_t begin = split_begin(strips.count, block.x(), block.blocks());
    const int64_t end = split_begin(strips.count, block.x() + 1, block.blocks());
    const int64_t numbers = static_cast<int64_t>(unit.in_channels) * unit.taps_count();
    for (int tap = thread / kDepth; tap < unit.taps_count(); tap += kThreads / kDepth) {
      const int down = tap / unit.size * unit.dilation - unit.reach();
      const int right = tap % unit.size * unit.dilation - unit.reach();
      double sum = 0.0;
      for (int64_t index = begin; index < end; ++index) {
        const Strip strip = strip_at(strips, index);
        const InputChannel<T> input(unit, channel, strip.sample);
        const auto row = input.row(strip.row * unit.stride + down);
        Acc part{0};
        for (int o = 0; o < strip.inside; ++o) {
          const Acc seen = input.at(row, (strip.column + o) * unit.stride + right);
          part += seen * unit.below[(strip.pixel + o) * unit.in_channels + channel];
        }
        sum += static_cast<double>(part);
      }
      unit.taps_parts[block.x() * numbers + static_cast<int64_t>(channel) * unit.taps_count() +
                      tap] = static_cast<Acc>(sum);
    }
  }
};

// A gradient, added up from its parts in their order.
template <typename Acc>
struct PartsUnit {
  const Acc* parts;  // [splits, count]
  Acc* grad;         // [grad_count], of the numbers from `first` on
  int64_t first;
  int64_t grad_count;
  int64_t count;
  int64_t splits;
  Selected selected;  // without it the gradient is zero
};

constexpr int kPartsUnits = 64;

// Grid: blocks over the numbers; gradients.
template <typename Acc>
struct SumParts {
  static constexpr int kThreads = 128;
  using Shared = NothingShared;

  PartsUnit<Acc> at[kPartsUnits];

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const PartsUnit<Acc>& unit = at[block.y()];
    const int64_t splits = unit.selected.is_off() ? 0 : unit.splits;
    for (int64_t i = block.x() * kThreads + block.thread(); i < unit.grad_count;
         i += block.blocks() * kThreads) {
      double sum = 0.0;
      for (int64_t split = 0; split < splits; ++split) {
        sum += static_cast<double>(unit.parts[split * unit.count + unit.first + i]);
      }
      unit.grad[i] = static_cast<Acc>(sum);
    }
  }
};

}  // namespace pfn::cuda
