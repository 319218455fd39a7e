// What works channel by channel on maps in blocks of lanes: statistics, dot products, affine maps,
// ReLU, and the copies between blocks and channels-last memory. Included once per instruction set.
#pragma once

#include <cstdint>

#include "cpu/image_kernels.h"
#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {

// Pixels whose terms go into one running sum before it is widened to double.
constexpr int64_t kBand = 256;
// Running sums side by side, so that no addition waits for the one before it.
constexpr int kWays = 4;

template <typename T>
void pack(const T* from, int64_t step, T* to, int64_t channels, int64_t pixels) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t c = 0; c < channels; c += L, to += pixels * L) {
    if (channels - c >= L) {
      for (int64_t p = 0; p < pixels; ++p) store(to + p * L, load(from + p * step + c));
    } else {
      for (int64_t p = 0; p < pixels; ++p) {
        store(to + p * L, load_some(from + p * step + c, channels - c));
      }
    }
  }
}

template <bool kAdds, typename T>
void unpack_blocks(const T* from, T* to, int64_t step, int64_t channels, int64_t pixels) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t c = 0; c < channels; c += L, from += pixels * L) {
    const int64_t left = channels - c;
    T* place = to + c;
    for (int64_t p = 0; p < pixels; ++p, place += step) {
      auto value = load(from + p * L);
      if (left >= L) {
        if constexpr (kAdds) value += load(place);
        store(place, value);
      } else {
        if constexpr (kAdds) value += load_some(place, left);
        store_some(place, value, left);
      }
    }
  }
}

template <typename T>
void unpack(const T* from, T* to, int64_t step, int64_t channels, int64_t pixels, bool adds) {
  adds ? unpack_blocks<true>(from, to, step, channels, pixels)
       : unpack_blocks<false>(from, to, step, channels, pixels);
}

template <typename T>
PFN_INLINE void clear(T* to, int64_t pixels) {
  __builtin_memset(to, 0, static_cast<std::size_t>(pixels * kLanes<T>) * sizeof(T));
}

template <typename T>
void clear_frame(T* framed, const Frame& frame, int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  const int64_t row = frame.row(), border = frame.border;
  for (int64_t b = 0; b < blocks; ++b) {
    T* plane = framed + b * frame.pixels() * L;
    // From the last pixel of a row to the first of the next is one run of zeros.
    clear(plane, border * row + border);
    T* gap = plane + (border * row + border + frame.width) * L;
    for (int64_t y = 0; y + 1 < frame.height; ++y, gap += row * L) clear(gap, 2 * border);
    clear(gap, border * row + border);
  }
}

template <typename T>
void put_frame(const T* from, T* framed, const Frame& frame, int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  clear_frame(framed, frame, blocks);
  const int64_t width = frame.width * L;
  for (int64_t b = 0; b < blocks; ++b) {
    T* to = framed + (b * frame.pixels() + frame.first()) * L;
    for (int64_t y = 0; y < frame.height; ++y, to += frame.row() * L, from += width) {
      __builtin_memcpy(to, from, static_cast<std::size_t>(width) * sizeof(T));
    }
  }
}

// Zero where negative; a NaN stays.
template <typename V>
PFN_INLINE V relu_of(V value) {
  return value < V{} ? V{} : value;
}

template <typename T>
void relu(const MapView<T>& x, T* framed, const Frame& frame, int64_t blocks) {
  constexpr int64_t L = kLanes<T>;
  clear_frame(framed, frame, blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    const T* in = x.data + b * x.block;
    T* to = framed + (b * frame.pixels() + frame.first()) * L;
    for (int64_t y = 0; y < frame.height; ++y, to += frame.row() * L) {
      for (int64_t c = 0; c < frame.width; ++c, in += x.pixel) store(to + c * L, relu_of(load(in)));
    }
  }
}

template <typename T>
void norm_relu(const T* y,
               const T* mean,
               const T* scale,
               const T* shift,
               T* framed,
               const Frame& frame,
               int64_t blocks) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  clear_frame(framed, frame, blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    const V m = load(mean + b * L), a = load(scale + b * L), s = load(shift + b * L);
    T* to = framed + (b * frame.pixels() + frame.first()) * L;
    for (int64_t r = 0; r < frame.height; ++r, to += frame.row() * L) {
      for (int64_t c = 0; c < frame.width; ++c, y += L) {
        store(to + c * L, relu_of((load(y) - m) * a + s));
      }
    }
  }
}

// Adds the lanes of `value` to `count` doubles.
template <typename V>
PFN_INLINE void add_lanes(V value, double* to) {
  for (int lane = 0; lane < static_cast<int>(sizeof(V) / sizeof(value[0])); ++lane) {
    to[lane] += static_cast<double>(value[lane]);
  }
}

// Sum over pixels of term(p), in bands, widened and added to `to`.
template <typename T, typename Term>
PFN_INLINE void sum_pixels(int64_t pixels, double* to, Term&& term) {
  using V = lanes_t<T>;
  for (int64_t band = 0; band < pixels; band += kBand) {
    const int64_t end = pixels < band + kBand ? pixels : band + kBand;
    V sums[kWays] = {};
    int64_t p = band;
    for (; p + kWays <= end; p += kWays) {
#pragma GCC unroll 4
      for (int i = 0; i < kWays; ++i) sums[i] += term(p + i);
    }
    for (; p < end; ++p) sums[0] += term(p);
    add_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]), to);
  }
}

template <typename T>
PFN_INLINE void zero(double* to, int64_t blocks) {
  for (int64_t c = 0; c < blocks * kLanes<T>; ++c) to[c] = 0.0;
}

template <typename T>
void moments(const T* y, int64_t pixels, int64_t blocks, double* mean, double* deviation) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t b = 0; b < blocks; ++b, y += pixels * L, mean += L, deviation += L) {
    for (int64_t lane = 0; lane < L; ++lane) mean[lane] = deviation[lane] = 0.0;
    for (int64_t band = 0; band < pixels; band += kBand) {
      const int64_t end = pixels < band + kBand ? pixels : band + kBand;
      // Deviations from one of the values: no digits are lost however large the mean is.
      const V shift = load(y + band * L);
      V sums[kWays] = {}, squares[kWays] = {};
      int64_t p = band;
      for (; p + kWays <= end; p += kWays) {
#pragma GCC unroll 4
        for (int i = 0; i < kWays; ++i) {
          const V d = load(y + (p + i) * L) - shift;
          sums[i] += d;
          squares[i] += d * d;
        }
      }
      for (; p < end; ++p) {
        const V d = load(y + p * L) - shift;
        sums[0] += d;
        squares[0] += d * d;
      }
      const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      const V square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
      // Chan, Golub & LeVeque 1983: both parts' mean and squared deviations into those of all.
      const double before = static_cast<double>(band), count = static_cast<double>(end - band);
      for (int64_t lane = 0; lane < L; ++lane) {
        const double offset = static_cast<double>(sum[lane]) / count;
        const double here = static_cast<double>(shift[lane]) + offset;
        const double spread =
            static_cast<double>(square[lane]) - static_cast<double>(sum[lane]) * offset;
        const double apart = here - mean[lane];
        mean[lane] += apart * count / (before + count);
        deviation[lane] += spread + apart * apart * before * count / (before + count);
      }
    }
  }
}

template <typename T>
void sums(const MapView<T>& g, int64_t pixels, int64_t blocks, double* sum) {
  constexpr int64_t L = kLanes<T>;
  zero<T>(sum, blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    const T* from = g.data + b * g.block;
    sum_pixels<T>(pixels, sum + b * L, [&](int64_t p) __attribute__((always_inline)) {
      return load(from + p * g.pixel);
    });
  }
}

template <typename T>
void dots(
    const MapView<T>& g, const T* y, const T* mean, int64_t pixels, int64_t blocks, double* dot) {
  constexpr int64_t L = kLanes<T>;
  zero<T>(dot, blocks);
  for (int64_t b = 0; b < blocks; ++b, y += pixels * L) {
    const T* from = g.data + b * g.block;
    const auto m = load(mean + b * L);
    sum_pixels<T>(pixels, dot + b * L, [&](int64_t p) __attribute__((always_inline)) {
      return load(from + p * g.pixel) * (load(y + p * L) - m);
    });
  }
}

template <typename T>
void products(
    const MapView<T>& g, const MapView<T>& x, int64_t pixels, int64_t blocks, double* dot) {
  constexpr int64_t L = kLanes<T>;
  zero<T>(dot, blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    const T *left = g.data + b * g.block, *right = x.data + b * x.block;
    sum_pixels<T>(pixels, dot + b * L, [&](int64_t p) __attribute__((always_inline)) {
      return load(left + p * g.pixel) * load(right + p * x.pixel);
    });
  }
}

template <typename T>
void mask_and_dots(const T* grad,
                   const T* framed,
                   const Frame& frame,
                   const T* y,
                   const T* mean,
                   int64_t blocks,
                   T* out,
                   double* sum,
                   double* dot) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  zero<T>(sum, blocks);
  zero<T>(dot, blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    const V m = load(mean + b * L);
    const T* h = framed + (b * frame.pixels() + frame.first()) * L;
    for (int64_t r = 0; r < frame.height; ++r, h += frame.row() * L) {
      V total{}, product{};
      for (int64_t c = 0; c < frame.width; ++c, grad += L, y += L, out += L) {
        const V open = load(h + c * L), g = load(grad);
        const V kept = open <= V{} ? V{} : g;
        total += kept;
        product += kept * (load(y) - m);
        store(out, kept);
      }
      add_lanes(total, sum + b * L);
      add_lanes(product, dot + b * L);
    }
  }
}

template <int kCount, typename T>
void combine_some(const MapView<T>* terms,
                  const T* const* scale,
                  const T* const* mean,
                  const T* shift,
                  T* out,
                  int64_t out_step,
                  int64_t channels,
                  int64_t pixels,
                  bool adds) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t c = 0, b = 0; c < channels; c += L, ++b) {
    const int64_t left = channels - c < L ? channels - c : L;
    const T* from[kCount];
    int64_t step[kCount];
    V a[kCount], m[kCount];
    for (int t = 0; t < kCount; ++t) {
      from[t] = terms[t].data + b * terms[t].block;
      step[t] = terms[t].pixel;
      a[t] = load(scale[t] + c);
      m[t] = load(mean[t] + c);
    }
    const V start = load(shift + c);
    T* to = out + c;
    for (int64_t p = 0; p < pixels; ++p, to += out_step) {
      V sum = start;
      if (adds) sum += left == L ? load(to) : load_some(to, left);
#pragma GCC unroll 8
      for (int t = 0; t < kCount; ++t) {
        sum += a[t] * (load(from[t]) - m[t]);
        from[t] += step[t];
      }
      if (left == L) {
        store(to, sum);
      } else {
        store_some(to, sum, left);
      }
    }
  }
}

template <typename T>
void combine(const MapView<T>* terms,
             const T* const* scale,
             const T* const* mean,
             int count,
             const T* shift,
             T* out,
             int64_t step,
             int64_t channels,
             int64_t pixels,
             bool adds) {
#define PFN_CASE(COUNT) \
  case COUNT:           \
    return combine_some<COUNT>(terms, scale, mean, shift, out, step, channels, pixels, adds);
  switch (count) {
    PFN_CASE(1)
    PFN_CASE(2)
    PFN_CASE(3)
    PFN_CASE(4)
    PFN_CASE(5)
    PFN_CASE(6)
    PFN_CASE(7)
    default:
      PFN_CASE(8)
  }
#undef PFN_CASE
}

template <typename T>
void affine(const MapView<T>& g,
            const T* y,
            const T* a,
            const T* b,
            const T* mean,
            const T* c,
            T* out,
            int64_t pixels,
            int64_t blocks) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t k = 0; k < blocks; ++k) {
    const T* from = g.data + k * g.block;
    const V by_g = load(a + k * L), by_y = load(b + k * L), m = load(mean + k * L);
    const V start = load(c + k * L);
    for (int64_t p = 0; p < pixels; ++p, y += L, out += L) {
      store(out, by_g * load(from + p * g.pixel) + by_y * (load(y) - m) + start);
    }
  }
}

template <typename T>
void relu_input(
    T* grad, const MapView<T>& x, const MapView<T>* g, T factor, int64_t pixels, int64_t blocks) {
  using V = lanes_t<T>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t b = 0; b < blocks; ++b) {
    const T* in = x.data + b * x.block;
    const T* from = g != nullptr ? g->data + b * g->block : nullptr;
    for (int64_t p = 0; p < pixels; ++p, grad += L) {
      const V value = load(in + p * x.pixel);
      V result = value <= V{} ? V{} : load(grad);
      if (from != nullptr) result += factor * load(from + p * g->pixel);
      store(grad, result);
    }
  }
}

}  // namespace pfn::cpu::PFN_ISA
