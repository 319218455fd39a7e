// Depthwise convolutions on maps in blocks of lanes. Included once per instruction set.
#pragma once

#include <cstdint>

#include "cpu/image_kernels.h"
#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {

// Registers that a window row may fill with running sums, beside its inputs and taps.
#if defined(__AVX512F__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

// Windows with loops of their own: size, dilation, stride.
#define PFN_EACH_WINDOW(CASE) \
  CASE(3, 1, 1)               \
  CASE(5, 1, 1)               \
  CASE(3, 2, 1)               \
  CASE(5, 2, 1)               \
  CASE(3, 1, 2)               \
  CASE(5, 1, 2)               \
  CASE(3, 2, 2)               \
  CASE(5, 2, 2)

// kTile outputs of one row: every input of a window row is loaded once and serves all taps that
// reach it. `in` is the input under the first tap of the first output.
template <int kSize, int kDilation, int kStride, int kTile, typename T>
PFN_INLINE void depthwise_tile(const T* in, int64_t row, const T* taps, T* out, bool adds) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  constexpr int kSpan = (kTile - 1) * kStride + (kSize - 1) * kDilation + 1;
  V sums[kTile];
  for (int o = 0; o < kTile; ++o) sums[o] = adds ? load(out + o * L) : V{};
#pragma GCC unroll 1
  for (int i = 0; i < kSize; ++i) {
    V w[kSize];
#pragma GCC unroll 8
    for (int j = 0; j < kSize; ++j) w[j] = load(taps + (i * kSize + j) * L);
    const T* line = in + i * kDilation * row * L;
#pragma GCC unroll 40
    for (int p = 0; p < kSpan; ++p) {
      const V x = load(line + p * L);
#pragma GCC unroll 8
      for (int j = 0; j < kSize; ++j) {
        const int from = p - j * kDilation;
        if (from >= 0 && from % kStride == 0 && from / kStride < kTile) {
          sums[from / kStride] += w[j] * x;
        }
      }
    }
  }
  for (int o = 0; o < kTile; ++o) store(out + o * L, sums[o]);
}

// The same for any window, its numbers known at run time only.
template <int kTile, typename T>
PFN_INLINE void depthwise_tile(
    const T* in, int64_t row, const Window& window, const T* taps, T* out, bool adds) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  V sums[kTile];
  for (int o = 0; o < kTile; ++o) sums[o] = adds ? load(out + o * L) : V{};
  for (int64_t i = 0; i < window.size; ++i) {
    for (int64_t j = 0; j < window.size; ++j) {
      const V w = load(taps + (i * window.size + j) * L);
      const T* x = in + (i * row + j) * window.dilation * L;
      for (int o = 0; o < kTile; ++o) sums[o] += w * load(x + o * window.stride * L);
    }
  }
  for (int o = 0; o < kTile; ++o) store(out + o * L, sums[o]);
}

template <int kSize, int kDilation, int kStride, int kTile, typename T>
PFN_INLINE void depthwise_step(
    const T* in, int64_t row, const Window& window, const T* taps, T* out, bool adds) {
  if constexpr (kSize > 0) {
    depthwise_tile<kSize, kDilation, kStride, kTile>(in, row, taps, out, adds);
  } else {
    depthwise_tile<kTile>(in, row, window, taps, out, adds);
  }
}

// One block. `origin` is the input under the first tap of the output at (0, 0).
template <int kSize, int kDilation, int kStride, typename T>
void depthwise_plane(const T* origin,
                     int64_t row,
                     const Window& window,
                     const T* taps,
                     T* out,
                     int64_t height,
                     int64_t width,
                     bool adds) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t y = 0; y < height; ++y) {
    const T* in = origin + y * window.stride * row * L;
    T* to = out + y * width * L;
    int64_t x = 0;
    for (; x + 8 <= width; x += 8) {
      depthwise_step<kSize, kDilation, kStride, 8>(in + x * window.stride * L, row, window, taps,
                                                   to + x * L, adds);
    }
    for (; x + 4 <= width; x += 4) {
      depthwise_step<kSize, kDilation, kStride, 4>(in + x * window.stride * L, row, window, taps,
                                                   to + x * L, adds);
    }
    for (; x < width; ++x) {
      depthwise_step<kSize, kDilation, kStride, 1>(in + x * window.stride * L, row, window, taps,
                                                   to + x * L, adds);
    }
  }
}

template <typename T>
void depthwise_any(const T* origin,
                   int64_t row,
                   const Window& w,
                   const T* taps,
                   T* out,
                   int64_t height,
                   int64_t width,
                   bool adds) {
  const auto is = [&](int64_t size, int64_t dilation, int64_t stride) {
    return w.size == size && w.dilation == dilation && w.stride == stride;
  };
#define PFN_CASE(S, D, R) \
  if (is(S, D, R)) return depthwise_plane<S, D, R>(origin, row, w, taps, out, height, width, adds);
  PFN_CASE(1, 1, 1)
  PFN_CASE(1, 1, 2)
  PFN_EACH_WINDOW(PFN_CASE)
#undef PFN_CASE
  depthwise_plane<0, 0, 0>(origin, row, w, taps, out, height, width, adds);
}

template <typename T>
void depthwise(const T* framed,
               const Frame& frame,
               const Window& window,
               const T* taps,
               T* out,
               int64_t height,
               int64_t width,
               int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t shift = frame.first() - window.reach() * (frame.row() + 1);
  for (int64_t b = 0; b < blocks; ++b) {
    depthwise_any(framed + (b * frame.pixels() + shift) * L, frame.row(), window,
                  taps + b * window.size * window.size * L, out + b * height * width * L, height,
                  width, false);
  }
}

// Inputs of one parity of rows and columns: they see every second tap, at neighbouring outputs.
template <typename T>
void depthwise_input_strided(const T* first,
                             int64_t row,
                             const Window& window,
                             const T* taps,
                             T* grad,
                             int64_t height,
                             int64_t width) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  constexpr int kTile = 8;
  const int64_t stride = window.stride, reach = window.reach();
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t parity = 0; parity < stride && parity < width; ++parity) {
      const int64_t count = (width - parity + stride - 1) / stride;
      for (int64_t t = 0; t < count; t += kTile) {
        const int64_t left = count - t < kTile ? count - t : kTile;
        V sums[kTile] = {};
        for (int64_t i = 0; i < window.size; ++i) {
          const int64_t from_y = y + reach - i * window.dilation;
          if (from_y % stride != 0) continue;
          for (int64_t j = 0; j < window.size; ++j) {
            const int64_t from_x = parity + reach - j * window.dilation;
            if (from_x % stride != 0) continue;
            const V w = load(taps + (i * window.size + j) * L);
            // The frame around the gradient holds zeros, and is wide enough for a whole tile.
            const T* g = first + (from_y / stride * row + from_x / stride + t) * L;
            for (int o = 0; o < kTile; ++o) sums[o] += w * load(g + o * L);
          }
        }
        T* to = grad + (y * width + parity + t * stride) * L;
        for (int64_t o = 0; o < left; ++o, to += stride * L) store(to, load(to) + sums[o]);
      }
    }
  }
}

template <typename T>
void depthwise_input(const T* framed,
                     const Frame& frame,
                     const Window& window,
                     const T* taps,
                     T* grad,
                     int64_t height,
                     int64_t width,
                     int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t count = window.size * window.size;
  for (int64_t b = 0; b < blocks; ++b) {
    const T* first = framed + (b * frame.pixels() + frame.first()) * L;
    T* to = grad + b * height * width * L;
    if (window.stride == 1) {
      // A convolution with the taps turned round.
      constexpr int64_t kMost = 49;
      T turned[kMost * L];
      if (count <= kMost) {
        for (int64_t t = 0; t < count; ++t) {
          store(turned + (count - 1 - t) * L, load(taps + (b * count + t) * L));
        }
        const T* origin = first - window.reach() * (frame.row() + 1) * L;
        depthwise_any(origin, frame.row(), window, turned, to, height, width, true);
        continue;
      }
    }
    depthwise_input_strided(first, frame.row(), window, taps + b * count * L, to, height, width);
  }
}

// Rows kFirst to kLast of the window over one plane.
template <int kSize, int kDilation, int kStride, int kFirst, int kLast, int kTile, typename T>
void taps_rows(const T* origin,
               int64_t row,
               const T* grad,
               int64_t grad_row,
               T* grad_taps,
               int64_t height,
               int64_t width) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  constexpr int kRows = kLast - kFirst;
  constexpr int kSpan = (kTile - 1) * kStride + (kSize - 1) * kDilation + 1;
  // Few rows at a time go into one running sum, so that its rounding stays small.
  constexpr int64_t kBand = 8;
  for (int64_t band = 0; band < height; band += kBand) {
    const int64_t end = height < band + kBand ? height : band + kBand;
    V sums[kRows * kSize] = {};
    for (int64_t y = band; y < end; ++y) {
      const T* in = origin + (y * kStride + kFirst * kDilation) * row * L;
      const T* g_line = grad + y * grad_row * L;
      int64_t x = 0;
      for (; x + kTile <= width; x += kTile) {
        V g[kTile];
#pragma GCC unroll 8
        for (int o = 0; o < kTile; ++o) g[o] = load(g_line + (x + o) * L);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const T* line = in + (i * kDilation * row + x * kStride) * L;
#pragma GCC unroll 40
          for (int p = 0; p < kSpan; ++p) {
            const V value = load(line + p * L);
#pragma GCC unroll 8
            for (int j = 0; j < kSize; ++j) {
              const int from = p - j * kDilation;
              if (from >= 0 && from % kStride == 0 && from / kStride < kTile) {
                sums[i * kSize + j] += g[from / kStride] * value;
              }
            }
          }
        }
      }
      for (; x < width; ++x) {
        const V g = load(g_line + x * L);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const T* line = in + (i * kDilation * row + x * kStride) * L;
#pragma GCC unroll 8
          for (int j = 0; j < kSize; ++j) sums[i * kSize + j] += g * load(line + j * kDilation * L);
        }
      }
    }
    for (int t = 0; t < kRows * kSize; ++t) {
      T* to = grad_taps + (kFirst * kSize + t) * L;
      store(to, load(to) + sums[t]);
    }
  }
}

template <int kSize, int kDilation, int kStride, typename T>
void taps_plane(const T* origin,
                int64_t row,
                const T* grad,
                int64_t grad_row,
                T* grad_taps,
                int64_t height,
                int64_t width) {
#define PFN_ROWS(FIRST, LAST, TILE)                                                               \
  taps_rows<kSize, kDilation, kStride, FIRST, LAST, TILE>(origin, row, grad, grad_row, grad_taps, \
                                                          height, width)
  if constexpr (kManyRegisters) {
    PFN_ROWS(0, kSize, kSize == 3 ? 8 : 4);
  } else if constexpr (kSize == 3) {
    PFN_ROWS(0, 3, 4);
  } else {
    PFN_ROWS(0, 1, 8);
    PFN_ROWS(1, 2, 8);
    PFN_ROWS(2, 3, 8);
    PFN_ROWS(3, 4, 8);
    PFN_ROWS(4, 5, 8);
  }
#undef PFN_ROWS
}

template <typename T>
void taps_plane_any(const T* origin,
                    int64_t row,
                    const Window& window,
                    const T* grad,
                    int64_t grad_row,
                    T* grad_taps,
                    int64_t height,
                    int64_t width) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t i = 0; i < window.size; ++i) {
    for (int64_t j = 0; j < window.size; ++j) {
      T* to = grad_taps + (i * window.size + j) * L;
      for (int64_t y = 0; y < height; ++y) {
        const T* in =
            origin + ((y * window.stride + i * window.dilation) * row + j * window.dilation) * L;
        const T* g = grad + y * grad_row * L;
        V sums[2] = {};
        for (int64_t x = 0; x < width; ++x) {
          sums[x & 1] += load(g + x * L) * load(in + x * window.stride * L);
        }
        store(to, load(to) + (sums[0] + sums[1]));
      }
    }
  }
}

template <typename T>
void depthwise_taps(const T* framed,
                    const Frame& frame,
                    const Window& w,
                    const T* framed_grad,
                    const Frame& grad_frame,
                    T* grad_taps,
                    int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t height = grad_frame.height, width = grad_frame.width;
  const int64_t shift = frame.first() - w.reach() * (frame.row() + 1);
  for (int64_t b = 0; b < blocks; ++b) {
    const T* origin = framed + (b * frame.pixels() + shift) * L;
    const T* grad = framed_grad + (b * grad_frame.pixels() + grad_frame.first()) * L;
    T* to = grad_taps + b * w.size * w.size * L;
    const auto is = [&](int64_t size, int64_t dilation, int64_t stride) {
      return w.size == size && w.dilation == dilation && w.stride == stride;
    };
#define PFN_CASE(S, D, R)                                                                \
  if (is(S, D, R)) {                                                                     \
    taps_plane<S, D, R>(origin, frame.row(), grad, grad_frame.row(), to, height, width); \
    continue;                                                                            \
  }
    PFN_EACH_WINDOW(PFN_CASE)
#undef PFN_CASE
    taps_plane_any(origin, frame.row(), w, grad, grad_frame.row(), to, height, width);
  }
}

}  // namespace pfn::cpu::PFN_ISA
