// What a thread reads for a strip: the rectified input under a window, and the gradient of a
// stage's output.
#pragma once

#include "cuda/node/unit.h"

namespace pfn::cuda {

// One channel of a stage's input behind norm and ReLU; zero outside of the map.
template <typename T>
class InputChannel {
 public:
  using Acc = math::acc_t<T>;

  PFN_DEVICE InputChannel(const StageUnit<T>& unit, int channel, int64_t sample)
      : unit_(unit), base_(sample * unit.input.sample + channel) {
    if (unit.norm == nullptr) return;
    mean_ = unit.norm[channel];
    scale_ = unit.norm[unit.in_channels + channel];
    shift_ = unit.norm[2 * unit.in_channels + channel];
  }

  // Where a row begins, and whether the map has it.
  struct Row {
    int64_t base;
    bool exists;
  };
  PFN_DEVICE Row row(int index) const {
    return {base_ + static_cast<int64_t>(index) * unit_.in_width * unit_.input.pixel,
            index >= 0 && index < unit_.in_height};
  }
  PFN_DEVICE Acc at(const Row& row, int column) const {
    if (!row.exists || column < 0 || column >= unit_.in_width) return Acc{0};
    Acc value = unit_.input.at(row.base + column * unit_.input.pixel);
    if (unit_.norm != nullptr) value = (value - mean_) * scale_ + shift_;
    return value < Acc{0} ? Acc{0} : value;  // NaN stays
  }

 private:
  const StageUnit<T>& unit_;
  int64_t base_;
  Acc mean_{}, scale_{}, shift_{};
};

// z of a depthwise window of stride 1 whose size the compiler knows: each line is read once.
template <int kSize, int kDilation, typename T>
PFN_DEVICE void depthwise_line(const InputChannel<T>& input,
                               const math::acc_t<T>* taps,
                               const Strip& strip,
                               math::acc_t<T> (&z)[kStrip]) {
  using Acc = math::acc_t<T>;
  constexpr int kReach = kDilation * (kSize - 1) / 2, kSpan = kDilation * (kSize - 1) + kStrip;
#pragma unroll 1
  for (int i = 0; i < kSize; ++i) {
    const auto row = input.row(strip.row + i * kDilation - kReach);
    Acc line[kSpan];
#pragma unroll
    for (int s = 0; s < kSpan; ++s) line[s] = input.at(row, strip.column - kReach + s);
#pragma unroll
    for (int j = 0; j < kSize; ++j) {
      const Acc tap = taps[i * kSize + j];
#pragma unroll
      for (int o = 0; o < kStrip; ++o) z[o] += tap * line[o + j * kDilation];
    }
  }
}

// z of any depthwise window.
template <typename T>
PFN_DEVICE void depthwise_any(const StageUnit<T>& unit,
                              const InputChannel<T>& input,
                              const math::acc_t<T>* taps,
                              const Strip& strip,
                              math::acc_t<T> (&z)[kStrip]) {
  using Acc = math::acc_t<T>;
  for (int i = 0; i < unit.size; ++i) {
    const auto row = input.row(strip.row * unit.stride + i * unit.dilation - unit.reach());
    for (int j = 0; j < unit.size; ++j) {
      const Acc tap = taps[i * unit.size + j];
#pragma unroll
      for (int o = 0; o < kStrip; ++o) {
        const int column = (strip.column + o) * unit.stride + j * unit.dilation - unit.reach();
        z[o] += tap * input.at(row, column);
      }
    }
  }
}

// What the stage's matrix multiplies at a strip of its output: z of one channel, under a window or
// a tap of a full convolution (`product`). Zero for pixels and channels that are not there.
template <typename T>
PFN_DEVICE void gather_z(const StageUnit<T>& unit,
                         const Strip& strip,
                         int product,
                         int channel,
                         math::acc_t<T> (&z)[kStrip]) {
  using Acc = math::acc_t<T>;
#pragma unroll
  for (int o = 0; o < kStrip; ++o) z[o] = Acc{0};
  if (strip.inside == 0 || channel >= unit.in_channels) return;
  const InputChannel<T> input(unit, channel, strip.sample);
  if (unit.taps == nullptr) {
    // One pixel: that of the tap, or of the window, of which the second stands one further on.
    const int tap_row = unit.is_full ? product / unit.size : 0;
    const int tap_column = unit.is_full ? product % unit.size : 0;
    const int offset = unit.is_full ? -unit.reach() : product;
    const auto row = input.row(strip.row * unit.stride + tap_row * unit.dilation + offset);
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      z[o] = input.at(row, (strip.column + o) * unit.stride + tap_column * unit.dilation + offset);
    }
  } else {
    const Acc* taps = unit.taps + static_cast<int64_t>(channel) * unit.taps_count();
    const int kind = unit.stride == 1 ? unit.size * 8 + unit.dilation : 0;
    switch (kind) {
      case 3 * 8 + 1:
        depthwise_line<3, 1>(input, taps, strip, z);
        break;
      case 5 * 8 + 1:
        depthwise_line<5, 1>(input, taps, strip, z);
        break;
      case 3 * 8 + 2:
        depthwise_line<3, 2>(input, taps, strip, z);
        break;
      case 5 * 8 + 2:
        depthwise_line<5, 2>(input, taps, strip, z);
        break;
      default:
        depthwise_any(unit, input, taps, strip, z);
    }
  }
#pragma unroll
  for (int o = 0; o < kStrip; ++o) {
    if (o >= strip.inside) z[o] = Acc{0};
  }
}

// One channel of the gradient of a stage's output, a g + b (y - mean) + c.
template <typename T>
class OutputGradient {
 public:
  using Acc = math::acc_t<T>;

  PFN_DEVICE OutputGradient(const StageUnit<T>& unit, const NodeSizes& sizes, int channel)
      : unit_(unit),
        sizes_(sizes),
        channel_(channel),
        a_(unit.through[channel]),
        b_(unit.through[sizes.channels + channel]),
        mean_(unit.through[2 * sizes.channels + channel]),
        c_(unit.through[3 * sizes.channels + channel]) {}

  PFN_DEVICE Acc at(int64_t sample, int row, int column) const {
    const int64_t pixel = static_cast<int64_t>(row) * sizes_.width + column;
    const Acc g = unit_.grad.at(sample * unit_.grad.sample + pixel * unit_.grad.pixel + channel_);
    const int64_t before = sample * sizes_.height * sizes_.width;
    const Acc y = unit_.y[(before + pixel) * sizes_.channels + channel_];
    return a_ * g + b_ * (y - mean_) + c_;
  }

 private:
  const StageUnit<T>& unit_;
  const NodeSizes& sizes_;
  int channel_;
  Acc a_, b_, mean_, c_;
};

// The gradients of the outputs to which a strip of z belongs; of a full convolution those outputs
// to which a strip of its input hands on through one tap.
template <typename T>
PFN_DEVICE void gather_gradient(const StageUnit<T>& unit,
                                const NodeSizes& sizes,
                                const Strip& strip,
                                int tap,
                                bool is_turned,
                                int channel,
                                math::acc_t<T> (&e)[kStrip]) {
  using Acc = math::acc_t<T>;
#pragma unroll
  for (int o = 0; o < kStrip; ++o) e[o] = Acc{0};
  if (strip.inside == 0 || channel >= sizes.channels) return;
  const OutputGradient<T> gradient(unit, sizes, channel);
  if (!is_turned) {
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      if (o < strip.inside) e[o] = gradient.at(strip.sample, strip.row, strip.column + o);
    }
    return;
  }
  const int row = strip.row + unit.reach() - tap / unit.size * unit.dilation;
  if (row < 0 || row % unit.stride != 0 || row / unit.stride >= sizes.height) return;
#pragma unroll
  for (int o = 0; o < kStrip; ++o) {
    const int column = strip.column + o + unit.reach() - tap % unit.size * unit.dilation;
    const bool meets = o < strip.inside && column >= 0 && column % unit.stride == 0 &&
                       column / unit.stride < sizes.width;
    if (meets) e[o] = gradient.at(strip.sample, row / unit.stride, column / unit.stride);
  }
}

}  // namespace pfn::cuda
