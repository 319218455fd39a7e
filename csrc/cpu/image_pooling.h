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
        if constexpr (kMean) {
          store(mean + out, total / static_cast<T>(rows.count() * columns.count()));
        }
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
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  const int64_t height = (in_height + stride - 1) / stride;
  const int64_t width = (in_width + stride - 1) / stride;
  for (int64_t y = 0; y < height; ++y) {
    const Span rows(y, stride, in_height);
    for (int64_t at = 0; at < width; ++at) {
      const Span columns(at, stride, in_width);
      const int64_t out = (y * width + at) * L;
      V best{}, left{}, share{};
      if constexpr (kMax) {
        best = load(max + out);
        left = load(grad_max + out);
      }
      if constexpr (kMean) {
        share = load(grad_mean + out) / static_cast<T>(rows.count() * columns.count());
      }
      for (int64_t r = rows.first; r <= rows.last; ++r) {
        for (int64_t c = columns.first; c <= columns.last; ++c) {
          const int64_t place = r * in_width + c;
          V value = load(grad + place * L) + share;
          if constexpr (kMax) {
            const V seen = load(x + place * pixel);
            const auto hit = (seen == best) | ((seen != seen) & (best != best));
            value += hit ? left : V{};
            left = hit ? V{} : left;
          }
          store(grad + place * L, value);
        }
      }
    }
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
