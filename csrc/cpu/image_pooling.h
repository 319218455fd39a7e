// 3 x 3 pooling of maps in blocks of lanes; padding does not count. Included once per instruction
// set.
#pragma once

#include <cstdint>

#include "cpu/image_kernels.h"
#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {

// The larger of both; a NaN stays, as in torch's pooling.
template <typename V>
PFN_INLINE V larger(V best, V value) {
  return (value > best) | (value != value) ? value : best;
}

// Rows or columns `first` to `last` that a window over `at` sees.
struct Span {
  int64_t first;
  int64_t last;

  Span(int64_t at, int64_t stride, int64_t size)
      : first(at * stride > 0 ? at * stride - 1 : 0),
        last(at * stride + 1 < size ? at * stride + 1 : size - 1) {}
  int64_t count() const { return last - first + 1; }
};

// One part in `count`: a division for every pixel would take longer than all the rest.
template <typename T>
PFN_INLINE T share_of(int64_t count, T) {
  return T{1} / static_cast<T>(count);
}

template <bool kMax, bool kMean, typename T>
void pool_plane(const T* x,
                int64_t pixel,
                int64_t in_height,
                int64_t in_width,
                int64_t stride,
                T* max,
                T* mean) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  // One row of vertical maxima and sums at a time, in pieces that stay in registers and L1.
  constexpr int64_t kPiece = 64;
  const int64_t height = (in_height + stride - 1) / stride;
  const int64_t width = (in_width + stride - 1) / stride;
  V maxima[kPiece + 2], totals[kPiece + 2];
  const int64_t step = (kPiece / stride) * stride;
  for (int64_t y = 0; y < height; ++y) {
    const Span rows(y, stride, in_height);
    for (int64_t piece = 0; piece < in_width; piece += step) {
      // Columns piece - 1 to piece + step of the input.
      const int64_t from = piece > 0 ? piece - 1 : 0;
      const int64_t to = piece + step < in_width ? piece + step : in_width - 1;
      for (int64_t c = from; c <= to; ++c) {
        const T* in = x + (rows.first * in_width + c) * pixel;
        V best = load(in), total = best;
        for (int64_t r = rows.first + 1; r <= rows.last; ++r) {
          in += in_width * pixel;
          const V value = load(in);
          if constexpr (kMax) best = larger(best, value);
          if constexpr (kMean) total += value;
        }
        if constexpr (kMax) maxima[c - from] = best;
        if constexpr (kMean) totals[c - from] = total;
      }
      const int64_t end = piece + step < in_width ? piece + step : in_width;
      for (int64_t at = piece / stride; at * stride < end; ++at) {
        const Span columns(at, stride, in_width);
        V best = maxima[columns.first - from];
        V total = totals[columns.first - from];
        for (int64_t c = columns.first + 1; c <= columns.last; ++c) {
          if constexpr (kMax) best = larger(best, maxima[c - from]);
          if constexpr (kMean) total += totals[c - from];
        }
        const int64_t out = (y * width + at) * L;
        if constexpr (kMax) store(max + out, best);
        if constexpr (kMean)
          store(mean + out, total * share_of(rows.count() * columns.count(), T{}));
      }
    }
  }
}

template <typename T>
void pool(const MapView<T>& x,
          int64_t in_height,
          int64_t in_width,
          int64_t stride,
          T* max,
          T* mean,
          int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t height = (in_height + stride - 1) / stride;
  const int64_t width = (in_width + stride - 1) / stride;
  for (int64_t b = 0; b < blocks; ++b) {
    const T* in = x.data + b * x.block;
    const int64_t out = b * height * width * L;
    if (max != nullptr && mean != nullptr) {
      pool_plane<true, true>(in, x.pixel, in_height, in_width, stride, max + out, mean + out);
    } else if (max != nullptr) {
      pool_plane<true, false, T>(in, x.pixel, in_height, in_width, stride, max + out, nullptr);
    } else {
      pool_plane<false, true, T>(in, x.pixel, in_height, in_width, stride, nullptr, mean + out);
    }
  }
}

// One row of windows, kRows input rows high. Three columns of the input and of its gradient stay in
// registers while the windows move along them. The first of equal maxima receives the gradient; a
// window with a NaN hands it to the first place that is not below it.
template <bool kMax, bool kMean, int kRows, int kStride, typename T>
void pool_input_row(const T* x,
                    int64_t pixel,
                    int64_t in_width,
                    const T* max,
                    const T* grad_max,
                    const T* grad_mean,
                    T* grad) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  const int64_t width = (in_width + kStride - 1) / kStride;
  V seen[kRows][3] = {}, sums[kRows][3] = {};
  const auto read = [&](int column, int64_t at) __attribute__((always_inline)) {
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kMax) seen[r][column] = load(x + (r * in_width + at) * pixel);
      sums[r][column] = V{};
    }
  };
  const auto write = [&](int column, int64_t at) __attribute__((always_inline)) {
    for (int r = 0; r < kRows; ++r) {
      T* to = grad + (r * in_width + at) * L;
      store(to, load(to) + sums[r][column]);
    }
  };
  const auto move = [&](int from, int to) __attribute__((always_inline)) {
    for (int r = 0; r < kRows; ++r) {
      seen[r][to] = seen[r][from];
      sums[r][to] = sums[r][from];
    }
  };
  const T whole = share_of(kRows * 3, T{}), cut = share_of(kRows * 2, T{});
  const auto window = [&](int64_t at, bool has_left,
                          bool has_right) __attribute__((always_inline)) {
    const int64_t centre = at * kStride;
    if (has_right) read(2, centre + 1);
    V left{}, share{}, best{};
    if constexpr (kMax) {
      best = load(max + at * L);
      left = load(grad_max + at * L);
    }
    if constexpr (kMean) {
      const T one = share_of(kRows, T{});
      share = load(grad_mean + at * L) * (has_left && has_right   ? whole
                                          : has_left || has_right ? cut
                                                                  : one);
    }
    for (int r = 0; r < kRows; ++r) {
      for (int column = has_left ? 0 : 1; column < (has_right ? 3 : 2); ++column) {
        V value = share;
        if constexpr (kMax) {
          const auto below = seen[r][column] < best;
          value += below ? V{} : left;
          left = below ? left : V{};
        }
        sums[r][column] += value;
      }
    }
    if (has_left) write(0, centre - 1);
    if constexpr (kStride == 1) {
      move(1, 0);
      move(2, 1);
    } else {
      write(1, centre);
      move(2, 0);
      if (centre + 2 < in_width) read(1, centre + 2);
    }
  };
  read(1, 0);
  window(0, false, in_width > 1);
  int64_t at = 1;
  for (; at * kStride + 1 < in_width; ++at) window(at, true, true);
  for (; at < width; ++at) window(at, true, false);
  // What the last window leaves in the registers.
  const int64_t last = (width - 1) * kStride;
  if constexpr (kStride == 1) {
    write(0, last);
  } else if (last + 1 < in_width) {
    write(0, last + 1);
  }
}

template <bool kMax, bool kMean, typename T>
void pool_input_plane(const T* x,
                      int64_t pixel,
                      int64_t in_height,
                      int64_t in_width,
                      int64_t stride,
                      const T* max,
                      const T* grad_max,
                      const T* grad_mean,
                      T* grad) {
  constexpr int64_t L = kLanes<T>;
  const int64_t height = (in_height + stride - 1) / stride;
  const int64_t width = (in_width + stride - 1) / stride;
  for (int64_t y = 0; y < height; ++y) {
    const Span rows(y, stride, in_height);
    const T* in = x + rows.first * in_width * pixel;
    T* to = grad + rows.first * in_width * L;
    const int64_t out = y * width * L;
#define PFN_CASE(ROWS, STRIDE)                                                                 \
  if (rows.count() == ROWS && stride == STRIDE) {                                              \
    pool_input_row<kMax, kMean, ROWS, STRIDE>(in, pixel, in_width, kMax ? max + out : nullptr, \
                                              kMax ? grad_max + out : nullptr,                 \
                                              kMean ? grad_mean + out : nullptr, to);          \
  }
    PFN_CASE(1, 1)
    PFN_CASE(2, 1)
    PFN_CASE(3, 1)
    PFN_CASE(1, 2)
    PFN_CASE(2, 2)
    PFN_CASE(3, 2)
#undef PFN_CASE
  }
}

template <typename T>
void pool_input(const MapView<T>& x,
                int64_t in_height,
                int64_t in_width,
                int64_t stride,
                const T* max,
                const T* grad_max,
                const T* grad_mean,
                T* grad,
                int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t height = (in_height + stride - 1) / stride;
  const int64_t width = (in_width + stride - 1) / stride;
  for (int64_t b = 0; b < blocks; ++b) {
    const T* in = x.data + b * x.block;
    const int64_t out = b * height * width * L;
    T* to = grad + b * in_height * in_width * L;
    if (grad_max != nullptr && grad_mean != nullptr) {
      pool_input_plane<true, true>(in, x.pixel, in_height, in_width, stride, max + out,
                                   grad_max + out, grad_mean + out, to);
    } else if (grad_max != nullptr) {
      pool_input_plane<true, false, T>(in, x.pixel, in_height, in_width, stride, max + out,
                                       grad_max + out, nullptr, to);
    } else {
      pool_input_plane<false, true, T>(in, x.pixel, in_height, in_width, stride, nullptr, nullptr,
                                       grad_mean + out, to);
    }
  }
}

}  // namespace pfn::cpu::PFN_ISA
