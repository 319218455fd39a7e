// The kernels of a node that take one number of a map at a time: pools, the sum of all branches,
// the gradient of a hidden map, and that of an input.
#pragma once

#include "cuda/block.h"
#include "cuda/node/gather.h"

namespace pfn::cuda {

constexpr int kMapThreads = 256;

// Which number of maps [samples, height, width, channels] a thread has in its turn.
struct MapPlace {
  int64_t sample, pixel;  // pixel: of the sample
  int row, column, channel;
};

PFN_HD MapPlace map_place(int64_t index, int height, int width, int channels) {
  const int64_t map = static_cast<int64_t>(height) * width, number = quotient(index, channels);
  const int64_t sample = quotient(number, map), pixel = number - sample * map;
  const int64_t row = quotient(pixel, width);
  return {sample, pixel, static_cast<int>(row), static_cast<int>(pixel - row * width),
          static_cast<int>(index - number * channels)};
}

// Calls take(number, place) for the numbers of such maps that fall to a thread, in steps of the
// grid.
template <typename Take>
PFN_DEVICE void for_each_number(
    const Block& block, int64_t samples, int height, int width, int channels, Take&& take) {
  const int64_t count = samples * height * width * channels;
  for (int64_t i = block.x() * kMapThreads + block.thread(); i < count;
       i += block.blocks() * kMapThreads) {
    take(i, map_place(i, height, width, channels));
  }
}
template <typename Take>
PFN_DEVICE void for_each_number(const Block& block, const NodeSizes& sizes, Take&& take) {
  for_each_number(block, sizes.samples, sizes.height, sizes.width, sizes.channels, take);
}

// The rows (or columns) of an input of `size` that a 3 x 3 window over output `at` covers.
struct PoolSpan {
  int first, last;
};

PFN_HD PoolSpan pool_span(int at, int stride, int size) {
  const int centre = at * stride;
  return {centre > 0 ? centre - 1 : 0, centre + 1 < size ? centre + 1 : size - 1};
}

// The outputs, of `size`, whose windows cover row (or column) `at` of the input.
PFN_HD PoolSpan pools_over(int at, int stride, int size) {
  const int last = (at + 1) / stride;
  return {at > 0 ? (at - 1 + stride - 1) / stride : 0, last < size ? last : size - 1};
}

template <typename T>
struct PoolUnit {
  Map<T> x;
  int in_height;
  int in_width;
  int stride;
  bool is_max;
  math::acc_t<T>* y;  // [pixels, channels]
  Selected selected;
};

constexpr int kPoolUnits = 40;

// 3 x 3 pools; padding does not count. Grid: blocks over the numbers; pools.
template <typename T>
struct PoolForward {
  using Acc = math::acc_t<T>;
  static constexpr int kThreads = kMapThreads;
  using Shared = NothingShared;

  PoolUnit<T> at[kPoolUnits];
  NodeSizes sizes;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const PoolUnit<T>& unit = at[block.y()];
    if (unit.selected.is_off()) return;
    for_each_number(block, sizes, [&](int64_t i, const MapPlace& place) {
      const PoolSpan rows = pool_span(place.row, unit.stride, unit.in_height);
      const PoolSpan columns = pool_span(place.column, unit.stride, unit.in_width);
      Acc sum{0}, most = -static_cast<Acc>(HUGE_VALF);
      for (int row = rows.first; row <= rows.last; ++row) {
        for (int column = columns.first; column <= columns.last; ++column) {
          const int64_t pixel = static_cast<int64_t>(row) * unit.in_width + column;
          const Acc x =
              unit.x.at(place.sample * unit.x.sample + pixel * unit.x.pixel + place.channel);
          sum += x;
          most = x > most || x != x ? x : most;  // NaN stays
        }
      }
      const int covered = (rows.last - rows.first + 1) * (columns.last - columns.first + 1);
      unit.y[i] = unit.is_max ? most : sum / static_cast<Acc>(covered);
    });
  }
};

// One summand of the node's output: weight * ((y - mean) * scale + shift).
template <typename T>
struct TermUnit {
  Map<T> y;
  const math::acc_t<T>* weight;
  const math::acc_t<T>* table;  // [3, channels]: mean, scale, shift; null for the identity
  Selected selected;
};

constexpr int kTermUnits = 60;

// Grid: blocks over the numbers; 1.
template <typename T>
struct Combine {
  using Acc = math::acc_t<T>;
  static constexpr int kThreads = kMapThreads;
  using Shared = NothingShared;

  TermUnit<T> at[kTermUnits];
  NodeSizes sizes;
  int terms;
  bool adds;  // to what is there
  T* out;
  int64_t sample;  // numbers from one sample of the output to the next
  int64_t pixel;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    for_each_number(block, sizes, [&](int64_t, const MapPlace& place) {
      T* to = out + place.sample * sample + place.pixel * pixel + place.channel;
      Acc sum = adds ? math::widen(*to) : Acc{0};
      for (int t = 0; t < terms; ++t) {
        const TermUnit<T>& term = at[t];
        if (term.selected.is_off()) continue;
        Acc y =
            term.y.at(place.sample * term.y.sample + place.pixel * term.y.pixel + place.channel);
        if (term.table != nullptr) {
          const Acc* table = term.table + place.channel;
          y = (y - table[0]) * table[sizes.channels] + table[2 * sizes.channels];
        }
        sum += *term.weight * y;
      }
      math::narrow(sum, to);
    });
  }
};

// What a depthwise window of a stage hands to one pixel of its input.
template <typename T>
PFN_DEVICE math::acc_t<T> turned_window(const StageUnit<T>& unit,
                                        const NodeSizes& sizes,
                                        const MapPlace& place) {
  using Acc = math::acc_t<T>;
  const int64_t before = place.sample * sizes.height * sizes.width;
  const int z_channels = unit.z_channels();
  Acc sum{0};
  if (unit.is_full) {
    const int64_t map = static_cast<int64_t>(unit.in_height) * unit.in_width;
    return unit.below[(place.sample * map + place.pixel) * unit.in_channels + place.channel];
  }
  for (int window = 0; window < unit.windows; ++window) {
    for (int i = 0; i < unit.size; ++i) {
      const int row = place.row + unit.reach() - i * unit.dilation - window;
      if (row < 0 || row % unit.stride != 0 || row / unit.stride >= sizes.height) continue;
      for (int j = 0; j < unit.size; ++j) {
        const int column = place.column + unit.reach() - j * unit.dilation - window;
        if (column < 0 || column % unit.stride != 0 || column / unit.stride >= sizes.width) {
          continue;
        }
        const Acc tap = unit.taps == nullptr
                            ? Acc{1}
                            : unit.taps[static_cast<int64_t>(place.channel) * unit.taps_count() +
                                        i * unit.size + j];
        const int64_t pixel =
            static_cast<int64_t>(row / unit.stride) * sizes.width + column / unit.stride;
        sum +=
            tap *
            unit.below[(before + pixel) * z_channels + window * unit.in_channels + place.channel];
      }
    }
  }
  return sum;
}

// The gradient of the map between two stages, behind its ReLU. Grid: blocks over the numbers;
// second stages.
template <typename T>
struct HiddenGradient {
  using Acc = math::acc_t<T>;
  static constexpr int kThreads = kMapThreads, kBlocks = 4;
  using Shared = NothingShared;

  Units<T> units;
  Acc* out[kUnits];  // [pixels, channels]
  NodeSizes sizes;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const StageUnit<T>& unit = units.at[block.y()];
    if (unit.selected.is_off()) return;
    for_each_number(block, sizes, [&](int64_t i, const MapPlace& place) {
      const InputChannel<T> input(unit, place.channel, place.sample);
      const bool is_closed = input.at(input.row(place.row), place.column) <= Acc{0};
      out[block.y()][i] = is_closed ? Acc{0} : turned_window(unit, sizes, place);
    });
  }
};

// What reaches an input through a skip or a pool.
template <typename Acc>
struct PlainUnit {
  const Acc* weight;   // of a skip
  const Acc* y;        // of a pool [pixels, channels]
  const Acc* through;  // of a pool [4, channels]
  bool is_max;
  Selected selected;
};

constexpr int kPlainUnits = 24, kStagesOfInput = 12;

// Gradient of an input: all that is handed to it, gathered pixel by pixel. Grid: blocks over the
// numbers; 1.
template <typename T>
struct InputGradient {
  using Acc = math::acc_t<T>;
  static constexpr int kThreads = kMapThreads, kBlocks = sizeof(Acc) == 8 ? 2 : 4;
  using Shared = NothingShared;

  StageUnit<T> stages[kStagesOfInput];
  PlainUnit<Acc> plain[kPlainUnits];
  int stages_count, plain_count;
  NodeSizes sizes;
  Map<T> x;
  int height, width, channels, stride;
  Map<T> grad;  // of the output
  T* out;
  int64_t sample, pixel;
  bool adds;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const auto take = [&](int64_t, const MapPlace& place) {
      const Acc value = x.at(place.sample * x.sample + place.pixel * x.pixel + place.channel);
      Acc sum{0};
      for (int s = 0; s < stages_count; ++s) {
        if (!stages[s].selected.is_off()) sum += turned_window(stages[s], sizes, place);
      }
      if (value <= Acc{0}) sum = Acc{0};
      for (int p = 0; p < plain_count; ++p) {
        if (!plain[p].selected.is_off()) sum += through_plain(plain[p], place, value);
      }
      T* to = out + place.sample * sample + place.pixel * pixel + place.channel;
      math::narrow(adds ? math::widen(*to) + sum : sum, to);
    };
    for_each_number(block, sizes.samples, height, width, channels, take);
  }

 private:
  PFN_DEVICE Acc through_plain(const PlainUnit<Acc>& unit, const MapPlace& place, Acc value) const {
    if (unit.weight != nullptr) {
      return *unit.weight *
             grad.at(place.sample * grad.sample + place.pixel * grad.pixel + place.channel);
    }
    const PoolSpan rows = pools_over(place.row, stride, sizes.height);
    const PoolSpan columns = pools_over(place.column, stride, sizes.width);
    const Acc* through = unit.through + place.channel;
    Acc sum{0};
    for (int row = rows.first; row <= rows.last; ++row) {
      for (int column = columns.first; column <= columns.last; ++column) {
        const int64_t at = static_cast<int64_t>(row) * sizes.width + column;
        const int64_t before = place.sample * sizes.height * sizes.width;
        const Acc y = unit.y[(before + at) * sizes.channels + place.channel];
        const Acc g = grad.at(place.sample * grad.sample + at * grad.pixel + place.channel);
        const Acc e = through[0] * g + through[sizes.channels] * (y - through[2 * sizes.channels]) +
                      through[3 * sizes.channels];
        const PoolSpan down = pool_span(row, stride, height);
        const PoolSpan across = pool_span(column, stride, width);
        if (!unit.is_max) {
          const int covered = (down.last - down.first + 1) * (across.last - across.first + 1);
          sum += e / static_cast<Acc>(covered);
        } else if (value == y && is_first(place, down, across, y)) {
          sum += e;
        }
      }
    }
    return sum;
  }

  // Whether no number before it under the window is as large: the first maximum has the gradient.
  PFN_DEVICE bool is_first(const MapPlace& place,
                           const PoolSpan& down,
                           const PoolSpan& across,
                           Acc most) const {
    for (int row = down.first; row <= place.row; ++row) {
      for (int column = across.first; column <= across.last; ++column) {
        if (row == place.row && column >= place.column) return true;
        const int64_t at = static_cast<int64_t>(row) * width + column;
        if (x.at(place.sample * x.sample + at * x.pixel + place.channel) == most) return false;
      }
    }
    return true;
  }
};

}  // namespace pfn::cuda
