#include "cpu/norm_mixed_sum.h"

#include <cstdint>
#include <type_traits>

#include "cpu/lanes.h"

#define PFN_INLINE_MEMBER inline __attribute__((always_inline))

namespace pfn::cpu::PFN_ISA {
namespace {

// Rows by column that are added up while their sums stay in registers.
constexpr int kRowsAtOnce = 8;
// Values that the first estimate of a channel's mean is made of.
constexpr int64_t kPilot = 16;
// Elements of grad that stay in the cache while each candidate streams past.
constexpr int64_t kResident = 4096;
// How far ahead of its use a line is asked for, in bytes.
constexpr int64_t kAhead = 2048;

template <typename X>
constexpr int64_t kVectors =
    kNormStrip / kLanes<X> > kNormGroup ? kNormStrip / kLanes<X> : kNormGroup;

template <typename X>
PFN_INLINE lanes_t<X> splat(math::acc_t<X> value) {
  return lanes_t<X>{} + value;
}

// The lanes from `first` to before `last`, the others zero whatever they held.
template <typename X>
PFN_INLINE lanes_t<X> keep_some(lanes_t<X> value, int64_t first, int64_t last) {
  using Mask = decltype(value < value);
  using Index = std::remove_reference_t<decltype(Mask{}[0])>;
  Mask lane;
  for (int l = 0; l < kLanes<X>; ++l) lane[l] = static_cast<Index>(l);
  const Mask from = Mask{} + static_cast<Index>(first), to = Mask{} + static_cast<Index>(last);
  return reinterpret_cast<lanes_t<X>>(reinterpret_cast<Mask>(value) & (lane >= from) & (lane < to));
}

// What is added up at an element, given the channel's shift: sums and squares of distances. Of a
// vector that is not wanted whole, `keep` makes zeros of the other lanes.
template <typename X>
struct Distances {
  static constexpr int kSums = 2;
  const X* x;

  PFN_INLINE_MEMBER const X* streamed() const { return x; }

  template <typename Read, typename Keep>
  PFN_INLINE_MEMBER void add(
      lanes_t<X>* sums, int64_t at, lanes_t<X> shift, Read&& read, Keep&& keep) const {
    const lanes_t<X> d = keep(read(x + at) - shift);
    sums[0] += d;
    sums[1] += d * d;
  }
};

// Products of the gradient and the distance from the mean.
template <typename X, typename Y>
struct Products {
  static constexpr int kSums = 1;
  const Y* grad;
  const X* x;

  PFN_INLINE_MEMBER const X* streamed() const { return x; }

  template <typename Read, typename Keep>
  PFN_INLINE_MEMBER void add(
      lanes_t<X>* sums, int64_t at, lanes_t<X> shift, Read&& read, Keep&& keep) const {
    sums[0] += keep(read(grad + at) * (read(x + at) - shift));
  }
};

// The gradient alone.
template <typename X, typename Y>
struct Plain {
  static constexpr int kSums = 1;
  const Y* grad;

  PFN_INLINE_MEMBER const Y* streamed() const { return grad; }

  template <typename Read, typename Keep>
  PFN_INLINE_MEMBER void add(
      lanes_t<X>* sums, int64_t at, lanes_t<X>, Read&& read, Keep&& keep) const {
    sums[0] += keep(read(grad + at));
  }
};

// Adds whole vectors of a term, the last `left` lanes of one, or `left` elements and no more.
template <typename X, typename Term>
PFN_INLINE void add_whole(const Term& term, lanes_t<X>* sums, int64_t at, lanes_t<X> shift) {
  __builtin_prefetch(reinterpret_cast<const char*>(term.streamed() + at) + kAhead);
  term.add(
      sums, at, shift, [](auto* from) __attribute__((always_inline)) { return load(from); },
      [](lanes_t<X> value) __attribute__((always_inline)) { return value; });
}

template <typename X, typename Term>
PFN_INLINE void add_last(
    const Term& term, lanes_t<X>* sums, int64_t at, lanes_t<X> shift, int64_t left) {
  term.add(
      sums, at, shift, [](auto* from) __attribute__((always_inline)) { return load(from); },
      [&](lanes_t<X> value) __attribute__((always_inline)) {
        return keep_some<X>(value, kLanes<X> - left, kLanes<X>);
      });
}

template <typename X, typename Term>
PFN_INLINE void add_some(
    const Term& term, lanes_t<X>* sums, int64_t at, lanes_t<X> shift, int64_t left) {
  term.add(
      sums, at, shift,
      [&](auto* from) __attribute__((always_inline)) { return load_some(from, left); },
      [&](lanes_t<X> value)
          __attribute__((always_inline)) { return keep_some<X>(value, 0, left); });
}

// Adds `term` up over a unit whose rows are runs of one channel each. shifts[c] is that of the
// unit's c-th channel; out[s][c] that of channel c of all.
template <typename X, typename Term>
void sum_runs(const NormGeometry& geo,
              const NormUnit& unit,
              const Term& term,
              const math::acc_t<X>* shifts,
              double* const* out) {
  using V = lanes_t<X>;
  constexpr int64_t kStep = kLanes<X>;
  constexpr int kSums = Term::kSums;
  constexpr int kUnroll = 4;
  const int64_t channels = unit.last_channel - unit.first_channel;
  V cells[kVectors<X> * kSums];
  for (int64_t i = 0; i < channels * kSums; ++i) cells[i] = V{};
  for (int64_t sample = unit.first; sample < unit.last; ++sample) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t row = sample * geo.channels + unit.first_channel + c;
      const int64_t at = row * geo.inner + unit.begin;
      const V shift = splat<X>(shifts[c]);
      V sums[kUnroll][kSums] = {};
      int64_t i = 0;
      for (; i + kUnroll * kStep <= unit.count; i += kUnroll * kStep) {
        for (int u = 0; u < kUnroll; ++u) {
          add_whole<X>(term, sums[u], at + i + u * kStep, shift);
        }
      }
      for (int u = 0; i + kStep <= unit.count; i += kStep, ++u) {
        add_whole<X>(term, sums[u], at + i, shift);
      }
      if (i < unit.count) {
        const int64_t left = unit.count - i;
        if (unit.count >= kStep) {
          // A vector that ends with the run: its first elements have been added before.
          add_last<X>(term, sums[kUnroll - 1], at + unit.count - kStep, shift, left);
        } else {
          add_some<X>(term, sums[kUnroll - 1], at, shift, left);
        }
      }
      for (int s = 0; s < kSums; ++s) {
        cells[c * kSums + s] += (sums[0][s] + sums[1][s]) + (sums[2][s] + sums[3][s]);
      }
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int s = 0; s < kSums; ++s) {
      out[s][unit.first_channel + c] = sum_of_lanes(cells[c * kSums + s]);
    }
  }
}

// The same over a unit with a channel for each column; shifts[j] is that of the unit's j-th column.
template <typename X, typename Term>
void sum_columns(const NormGeometry& geo,
                 const NormUnit& unit,
                 const Term& term,
                 const math::acc_t<X>* shifts,
                 double* const* out) {
  using V = lanes_t<X>;
  constexpr int64_t kStep = kLanes<X>;
  constexpr int kSums = Term::kSums;
  V cells[kVectors<X> * kSums];
  for (int64_t i = 0; i < norm_blocks(unit.count, kStep) * kSums; ++i) cells[i] = V{};
  int64_t row = unit.first;
  while (row < unit.last) {
    const int64_t begin = row * geo.row + unit.begin;
    const bool is_short = (row + 1) * geo.row > geo.numel;
    const int64_t count = is_short ? norm_min(unit.count, geo.numel - begin) : unit.count;
    const bool many = (row + kRowsAtOnce) * geo.row <= geo.numel && row + kRowsAtOnce <= unit.last;
    int64_t j = 0;
    for (; j + kStep <= count; j += kStep) {
      V* cell = cells + j / kStep * kSums;
      const V shift = load(shifts + j);
      V even[kSums], odd[kSums] = {};
      for (int s = 0; s < kSums; ++s) even[s] = cell[s];
      if (many) {
        for (int r = 0; r < kRowsAtOnce; r += 2) {
          add_whole<X>(term, even, begin + r * geo.row + j, shift);
          add_whole<X>(term, odd, begin + (r + 1) * geo.row + j, shift);
        }
      } else {
        add_whole<X>(term, even, begin + j, shift);
      }
      for (int s = 0; s < kSums; ++s) cell[s] = even[s] + odd[s];
    }
    if (j < count) {
      V* cell = cells + j / kStep * kSums;
      const V shift = load(shifts + j);
      for (int r = 0; r < (many ? kRowsAtOnce : 1); ++r) {
        add_some<X>(term, cell, begin + r * geo.row + j, shift, count - j);
      }
    }
    row += many ? kRowsAtOnce : 1;
  }
  const int64_t channels = unit.last_channel - unit.first_channel;
  for (int s = 0; s < kSums; ++s) {
    math::acc_t<X> columns[kNormStrip + kNormCell];
    for (int64_t j = 0; j < unit.count; j += kStep)
      store(columns + j, cells[j / kStep * kSums + s]);
    double* to = out[s] + unit.first_channel;
    for (int64_t c = 0; c < channels; ++c) to[c] = 0.0;
    int64_t j = 0;
    while (j < unit.count) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < geo.inner; ++i, ++j) to[c] += static_cast<double>(columns[j]);
      }
    }
  }
}

// A first estimate of each channel's mean, from its first values in the unit.
template <typename X>
void estimate_means(const NormGeometry& geo,
                    const NormUnit& unit,
                    const X* x,
                    math::acc_t<X>* means) {
  using Acc = math::acc_t<X>;
  const int64_t channels = unit.last_channel - unit.first_channel;
  // From one value of a channel to the next, and from one channel to the next.
  const int64_t step = geo.by_column ? geo.channels * geo.inner : 1;
  const int64_t values = geo.by_column ? unit.per_channel / geo.inner : unit.count;
  const int64_t count = norm_min(values, kPilot);
  const X* from = x + unit.begin + geo.row * (geo.by_column ? unit.first : unit.first_channel);
  if (!geo.by_column) from += unit.first * geo.channels * geo.inner;
  const Acc share = Acc(1) / static_cast<Acc>(count);
  for (int64_t c = 0; c < channels; ++c) means[c] = Acc(0);
  for (int64_t v = 1; v < count; ++v) {
    for (int64_t c = 0; c < channels; ++c) {
      const X* first = from + c * geo.inner;
      means[c] += (math::widen(first[v * step]) - math::widen(first[0])) * share;
    }
  }
  for (int64_t c = 0; c < channels; ++c) means[c] += math::widen(from[c * geo.inner]);
}

template <typename X>
void statistics_of_unit(
    const NormGeometry& geo, const NormUnit& unit, const X* x, double* means, double* squares) {
  using Acc = math::acc_t<X>;
  const int64_t channels = unit.last_channel - unit.first_channel;
  Acc pilots[kNormStrip];
  estimate_means(geo, unit, x, pilots);
  double* const out[2] = {means + unit.piece * geo.channels, squares + unit.piece * geo.channels};
  if (geo.by_column) {
    Acc shifts[kNormStrip + kNormCell] = {};
    int64_t j = 0;
    while (j < unit.count) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < geo.inner; ++i) shifts[j++] = pilots[c];
      }
    }
    sum_columns<X>(geo, unit, Distances<X>{x}, shifts, out);
  } else {
    sum_runs<X>(geo, unit, Distances<X>{x}, pilots, out);
  }
  const double count = static_cast<double>(unit.per_channel);
  for (int64_t c = 0; c < channels; ++c) {
    double& mean = out[0][unit.first_channel + c];
    double& square = out[1][unit.first_channel + c];
    const double distance = mean / count;
    square -= mean * distance;
    if (square < 0.0) square = 0.0;
    mean = static_cast<double>(pilots[c]) + distance;
  }
}

// Coefficient `index` for the vector whose columns begin at `cell`.
template <bool kSplat, typename X>
PFN_INLINE lanes_t<X> coefficient(const math::acc_t<X>* cell, int index) {
  if constexpr (kSplat) return splat<X>(cell[index]);
  return load(cell + index * kNormCell);
}

// Where the coefficients of column `at` of a table stand.
template <bool kSplat, typename Acc>
PFN_INLINE const Acc* cell_of(const Acc* table, int64_t at, int64_t width) {
  if constexpr (kSplat) return table;
  return table + at / kNormCell * (width * kNormCell) + at % kNormCell;
}

// out[i] = start[i] (or bias) + sum_k scale_k (xs[k][i] - mean_k) over a strip.
template <int kCount, bool kSplat, bool kFromStart, typename X, typename Out>
void sum_strip(const X* const* xs,
               const math::acc_t<X>* table,
               const math::acc_t<X>* start,
               Out* out,
               int64_t offset,
               int64_t count) {
  using Acc = math::acc_t<X>;
  constexpr int64_t kStep = kLanes<X>;
  const X* x[kCount];
  for (int k = 0; k < kCount; ++k) x[k] = xs[k] + offset;
  const auto sum_at = [&](int64_t at, lanes_t<X> sum, auto&& read) __attribute__((always_inline)) {
    const Acc* cell = cell_of<kSplat>(table, at, 2 * kCount);
    for (int k = 0; k < kCount; ++k) {
      const auto distance = read(x[k] + at) - coefficient<kSplat, X>(cell, 2 * k + 1);
      sum += coefficient<kSplat, X>(cell, 2 * k) * distance;
    }
    return sum;
  };
  const auto whole = [](const X* from) __attribute__((always_inline)) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
    return load(from);
  };
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    const auto from = !kFromStart && kSplat ? splat<X>(*start) : load(start + i);
    store(out + i, sum_at(i, from, whole));
  }
  if (i == count) return;
  // With one coefficient for the row, the last vector may begin anywhere and do some elements once
  // more; not where it reads what it has written.
  if (kSplat && !kFromStart && count >= kStep) {
    i = count - kStep;
    store(out + i, sum_at(i, splat<X>(*start), whole));
  } else {
    const int64_t left = count - i;
    const auto some = [&](const X* from)
                          __attribute__((always_inline)) { return load_some(from, left); };
    const auto from = !kFromStart && kSplat ? splat<X>(*start) : load_some(start + i, left);
    store_some(out + i, sum_at(i, from, some), left);
  }
}

// The same for a count of candidates known at run time, 1 to PFN_NORM_GROUP.
template <bool kSplat, bool kFromStart, typename X, typename Out>
void sum_some(int64_t num_ops,
              const X* const* xs,
              const math::acc_t<X>* table,
              const math::acc_t<X>* start,
              Out* out,
              int64_t offset,
              int64_t count) {
  switch (num_ops) {
    case 1:
      return sum_strip<1, kSplat, kFromStart>(xs, table, start, out, offset, count);
    case 2:
      return sum_strip<2, kSplat, kFromStart>(xs, table, start, out, offset, count);
    case 3:
      return sum_strip<3, kSplat, kFromStart>(xs, table, start, out, offset, count);
    case 4:
      return sum_strip<4, kSplat, kFromStart>(xs, table, start, out, offset, count);
    case 5:
      return sum_strip<5, kSplat, kFromStart>(xs, table, start, out, offset, count);
    case 6:
      return sum_strip<6, kSplat, kFromStart>(xs, table, start, out, offset, count);
    case 7:
      return sum_strip<7, kSplat, kFromStart>(xs, table, start, out, offset, count);
    default:
      return sum_strip<8, kSplat, kFromStart>(xs, table, start, out, offset, count);
  }
}

// The strip `index`: where it begins, how long it is, where its coefficients stand in a table.
struct Strip {
  int64_t offset, count, channel, column;

  Strip(const NormGeometry& geo, int64_t index) {
    const int64_t row = index / geo.strips_per_row;
    const int64_t begin = index % geo.strips_per_row * geo.strip;
    offset = row * geo.row + begin;
    count = norm_min(norm_min(geo.strip, geo.row - begin), geo.numel - offset);
    channel = geo.by_column ? 0 : row % geo.channels;
    column = geo.by_column ? begin : 0;
  }

  template <typename Acc>
  const Acc* in(const Acc* table, int64_t width) const {
    return table + channel * width + column * width;
  }
};

template <bool kSplat, typename X, typename Y>
void sum_strips(const NormGeometry& geo,
                const X* const* xs,
                const math::acc_t<X>* const* tables,
                const math::acc_t<X>* bias,
                Y* y,
                int64_t num_ops,
                int64_t first_strip,
                int64_t last_strip) {
  for (int64_t index = first_strip; index < last_strip; ++index) {
    const Strip strip(geo, index);
    const int64_t at = strip.offset, count = strip.count;
    const auto table = [&](int64_t group, int64_t size) {
      return strip.in(tables[group], 2 * size);
    };
    const auto* start = strip.in(bias, 1);
    if (num_ops <= PFN_NORM_GROUP) {
      sum_some<kSplat, false>(num_ops, xs, table(0, num_ops), start, y + at, at, count);
      continue;
    }
    math::acc_t<X> tile[kNormStrip + kNormCell];
    sum_strip<PFN_NORM_GROUP, kSplat, false>(xs, table(0, PFN_NORM_GROUP), start, tile, at, count);
    int64_t k = PFN_NORM_GROUP, group = 1;
    for (; k + PFN_NORM_GROUP < num_ops; k += PFN_NORM_GROUP, ++group) {
      sum_strip<PFN_NORM_GROUP, kSplat, true>(xs + k, table(group, PFN_NORM_GROUP), tile, tile, at,
                                              count);
    }
    sum_some<kSplat, true>(num_ops - k, xs + k, table(group, num_ops - k), tile, y + at, at, count);
  }
}

// to[i] = scale * (grad[i] (+ slope * (x[i] - mean) + shift)) over a strip.
template <bool kSplat, bool kReads, bool kStream, typename X, typename Y>
void scatter_strip(const Y* grad, const X* x, const math::acc_t<X>* table, X* to, int64_t count) {
  constexpr int64_t kStep = kLanes<X>;
  constexpr int64_t kWidth = kReads ? PFN_NORM_SCATTER : 1;
  const auto value_at = [&](int64_t at, auto&& read) __attribute__((always_inline)) {
    const auto* cell = cell_of<kSplat>(table, at, kWidth);
    const auto scale = coefficient<kSplat, X>(cell, 0);
    auto value = read(grad + at);
    if constexpr (kReads) {
      // Scaled last: with large inputs the scaled slope would be too small for the type.
      const auto distance = read(x + at) - coefficient<kSplat, X>(cell, 2);
      value += coefficient<kSplat, X>(cell, 1) * distance + coefficient<kSplat, X>(cell, 3);
    }
    return scale * value;
  };
  const auto whole = [](auto* from) __attribute__((always_inline)) { return load(from); };
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    if constexpr (kStream) {
      stream(to + i, value_at(i, whole));
    } else {
      store(to + i, value_at(i, whole));
    }
  }
  if (i == count) return;
  if (kSplat && count >= kStep) {
    // A vector that ends with the row: some elements are done once more, and come out the same.
    i = count - kStep;
    store(to + i, value_at(i, whole));
  } else {
    const int64_t left = count - i;
    const auto some = [&](auto* from)
                          __attribute__((always_inline)) { return load_some(from, left); };
    store_some(to + i, value_at(i, some), left);
  }
}

template <bool kSplat, typename X, typename Y>
void scatter_strips(const NormGeometry& geo,
                    const Y* grad,
                    const X* const* xs,
                    const math::acc_t<X>* const* tables,
                    X* const* grad_xs,
                    int64_t num_ops,
                    int64_t first_strip,
                    int64_t last_strip,
                    bool streams) {
  const int64_t batch = geo.strip < kResident ? kResident / geo.strip : 1;
  for (int64_t first = first_strip; first < last_strip; first += batch) {
    const int64_t last = norm_min(first + batch, last_strip);
    for (int64_t k = 0; k < num_ops; ++k) {
      if (grad_xs[k] == nullptr) continue;
      for (int64_t index = first; index < last; ++index) {
        const Strip strip(geo, index);
        const int64_t at = strip.offset, count = strip.count;
        X* to = grad_xs[k] + at;
        // Ordinary stores into a line that has been stored past the caches are slow.
        const bool past = streams && is_streamable(to) && count % kLanes<X> == 0;
        if (xs[k] == nullptr) {
          const auto* table = strip.in(tables[k], 1);
          const X* none = nullptr;
          past ? scatter_strip<kSplat, false, true>(grad + at, none, table, to, count)
               : scatter_strip<kSplat, false, false>(grad + at, none, table, to, count);
        } else {
          const auto* table = strip.in(tables[k], PFN_NORM_SCATTER);
          past ? scatter_strip<kSplat, true, true>(grad + at, xs[k] + at, table, to, count)
               : scatter_strip<kSplat, true, false>(grad + at, xs[k] + at, table, to, count);
        }
      }
    }
  }
  if (streams) end_streams();
}

template <typename X, typename Term>
void dots_of_unit(const NormGeometry& geo,
                  const NormUnit& unit,
                  const Term& term,
                  const math::acc_t<X>* means,
                  double* dots) {
  double* const out[1] = {dots + unit.piece * geo.channels};
  if (geo.by_column) {
    sum_columns<X>(geo, unit, term, means + unit.begin, out);
  } else {
    sum_runs<X>(geo, unit, term, means + unit.first_channel, out);
  }
}

}  // namespace

template <typename X>
void norm_statistics(const NormGeometry& geo,
                     const X* const* xs,
                     double* const* means,
                     double* const* squares,
                     int64_t num_ops,
                     int64_t first_unit,
                     int64_t last_unit) {
  for (int64_t index = first_unit; index < last_unit; ++index) {
    const NormUnit unit = norm_unit(geo, index);
    for (int64_t k = 0; k < num_ops; ++k) {
      statistics_of_unit(geo, unit, xs[k], means[k], squares[k]);
    }
  }
}

template <typename X, typename Y>
void norm_sum(const NormGeometry& geo,
              const X* const* xs,
              const math::acc_t<X>* const* tables,
              const math::acc_t<X>* bias,
              Y* y,
              int64_t num_ops,
              int64_t first_strip,
              int64_t last_strip) {
  geo.by_column ? sum_strips<false>(geo, xs, tables, bias, y, num_ops, first_strip, last_strip)
                : sum_strips<true>(geo, xs, tables, bias, y, num_ops, first_strip, last_strip);
}

template <typename X, typename Y>
void norm_dots(const NormGeometry& geo,
               const Y* grad,
               const X* const* xs,
               const math::acc_t<X>* const* means,
               double* const* dots,
               int64_t num_ops,
               int64_t first_unit,
               int64_t last_unit) {
  for (int64_t index = first_unit; index < last_unit; ++index) {
    const NormUnit unit = norm_unit(geo, index);
    // The unit's part of grad stays in the cache while each candidate streams past it once.
    if (dots[num_ops] != nullptr) {
      dots_of_unit<X>(geo, unit, Plain<X, Y>{grad}, means[0], dots[num_ops]);
    }
    for (int64_t k = 0; k < num_ops; ++k) {
      if (dots[k] == nullptr) continue;
      dots_of_unit<X>(geo, unit, Products<X, Y>{grad, xs[k]}, means[k], dots[k]);
    }
  }
}

template <typename X, typename Y>
void norm_scatter(const NormGeometry& geo,
                  const Y* grad,
                  const X* const* xs,
                  const math::acc_t<X>* const* tables,
                  X* const* grad_xs,
                  int64_t num_ops,
                  int64_t first_strip,
                  int64_t last_strip,
                  bool streams) {
  geo.by_column ? scatter_strips<false>(geo, grad, xs, tables, grad_xs, num_ops, first_strip,
                                        last_strip, streams)
                : scatter_strips<true>(geo, grad, xs, tables, grad_xs, num_ops, first_strip,
                                       last_strip, streams);
}

#define PFN_INSTANTIATE_X(X)                                                             \
  template void norm_statistics<X>(const NormGeometry&, const X* const*, double* const*, \
                                   double* const*, int64_t, int64_t, int64_t);
#define PFN_INSTANTIATE(X, Y)                                                                      \
  template void norm_sum<X, Y>(const NormGeometry&, const X* const*, const math::acc_t<X>* const*, \
                               const math::acc_t<X>*, Y*, int64_t, int64_t, int64_t);              \
  template void norm_dots<X, Y>(const NormGeometry&, const Y*, const X* const*,                    \
                                const math::acc_t<X>* const*, double* const*, int64_t, int64_t,    \
                                int64_t);                                                          \
  template void norm_scatter<X, Y>(const NormGeometry&, const Y*, const X* const*,                 \
                                   const math::acc_t<X>* const*, X* const*, int64_t, int64_t,      \
                                   int64_t, bool);
PFN_INSTANTIATE_X(double)
PFN_INSTANTIATE_X(float)
PFN_INSTANTIATE_X(math::Half)
PFN_INSTANTIATE_X(math::BFloat16)
PFN_INSTANTIATE(double, double)
PFN_INSTANTIATE(float, float)
PFN_INSTANTIATE(math::Half, math::Half)
PFN_INSTANTIATE(math::Half, float)
PFN_INSTANTIATE(math::BFloat16, math::BFloat16)
PFN_INSTANTIATE(math::BFloat16, float)

}  // namespace pfn::cpu::PFN_ISA
