// Operations on one sample's feature map, of which the fused node is made. A map is cut into blocks
// of as many channels as a vector has lanes: `blocks` planes of pixels with `lanes` neighbouring
// channels each. Channels past the last are kept and come out as zeros, or as whatever zeros give.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

// Members of these types are inlined everywhere: files of several instruction sets share them.
#define PFN_ALWAYS_INLINE inline __attribute__((always_inline))

namespace pfn::cpu {

// A map to read: channel c of pixel p is at data[(c / lanes) * block + p * pixel + c % lanes]. Both
// blocked scratch and channels-last tensors whose channels fill whole vectors have this form.
template <typename T>
struct MapView {
  const T* data;
  int64_t block;
  int64_t pixel;
};

// Rows and columns of a map, and how wide a frame of zeros surrounds it in memory.
struct Frame {
  int64_t height;
  int64_t width;
  int64_t border;

  PFN_ALWAYS_INLINE int64_t row() const { return width + 2 * border; }
  PFN_ALWAYS_INLINE int64_t pixels() const { return row() * (height + 2 * border); }
  PFN_ALWAYS_INLINE int64_t first() const { return border * row() + border; }
};

// A square window of taps over a map, centred on the pixel it stands for and moved down and to the
// right by `offset`.
struct Window {
  int64_t size;
  int64_t dilation;
  int64_t stride;
  int64_t offset;

  // How far before its pixel the window begins, which may be behind it.
  PFN_ALWAYS_INLINE int64_t reach() const { return dilation * (size - 1) / 2 - offset; }
};

// The kernels of one instruction set. Where not said otherwise maps are [blocks][pixels][lanes]
// without a frame, per-channel arrays hold blocks * lanes numbers, sums are accumulated in T over
// at most a few hundred pixels and in double beyond.
template <typename T>
struct ImageKernels {
  int64_t lanes;

  // Copies `pixels` channels-last pixels, `step` numbers apart, into blocks, zeros in missing
  // channels; and back, perhaps adding.
  void (*pack)(const T* from, int64_t step, T* to, int64_t channels, int64_t pixels);
  void (*unpack)(const T* from, T* to, int64_t step, int64_t channels, int64_t pixels, bool adds);

  // Zeros the frame around a map; copies a map into one.
  void (*clear_frame)(T* framed, const Frame& frame, int64_t blocks);
  void (*put_frame)(const T* from, T* framed, const Frame& frame, int64_t blocks);

  // relu(x), framed; and relu((y - mean) * scale + shift), framed.
  void (*relu)(const MapView<T>& x, T* framed, const Frame& frame, int64_t blocks);
  void (*norm_relu)(const T* y,
                    const T* mean,
                    const T* scale,
                    const T* shift,
                    T* framed,
                    const Frame& frame,
                    int64_t blocks);

  // out = depthwise convolution of a framed map, taps [blocks][size * size][lanes].
  void (*depthwise)(const T* framed,
                    const Frame& frame,
                    const Window& window,
                    const T* taps,
                    T* out,
                    int64_t height,
                    int64_t width,
                    int64_t blocks);
  // grad += what a depthwise convolution's output gradient (framed, of `frame`) hands to its input
  // of height x width.
  void (*depthwise_input)(const T* framed,
                          const Frame& frame,
                          const Window& window,
                          const T* taps,
                          T* grad,
                          int64_t height,
                          int64_t width,
                          int64_t blocks);
  // grad_taps += sum over pixels of input (framed) times output gradient (framed).
  void (*depthwise_taps)(const T* framed,
                         const Frame& frame,
                         const Window& window,
                         const T* framed_grad,
                         const Frame& grad_frame,
                         T* grad_taps,
                         int64_t blocks);

  // out[co] = sum_ci matrix[ci][co] x[ci]: matrix [out_blocks][channels][lanes]; the result is
  // written inside the frame.
  void (*product)(const T* x,
                  int64_t channels,
                  const T* matrix,
                  T* framed,
                  const Frame& frame,
                  int64_t out_blocks);
  // sum += a b^T over pixels: [a_channels][b_blocks * lanes].
  void (*outer)(
      const T* a, int64_t a_channels, const T* b, int64_t b_blocks, int64_t pixels, T* sum);

  // out = full convolution of a framed map: matrix [out_blocks][size * size * channels][lanes].
  void (*convolve)(const T* framed,
                   const Frame& frame,
                   const Window& window,
                   int64_t channels,
                   const T* matrix,
                   T* out,
                   int64_t height,
                   int64_t width,
                   int64_t out_blocks);
  // grad += what its output gradient of `channels` (framed, of `frame`) hands to its input of
  // height x width: matrix [size * size][blocks][channels][lanes].
  void (*convolve_input)(const T* framed,
                         const Frame& frame,
                         const Window& window,
                         int64_t channels,
                         const T* matrix,
                         T* grad,
                         int64_t height,
                         int64_t width,
                         int64_t blocks);
  // sum += output gradient (framed) times input (framed), over pixels:
  // [channels][size * size * in_blocks * lanes].
  void (*convolve_matrix)(const T* framed,
                          const Frame& frame,
                          const Window& window,
                          int64_t in_blocks,
                          const T* framed_grad,
                          const Frame& grad_frame,
                          int64_t channels,
                          T* sum);

  // 3 x 3 pooling of a map without a frame; padding does not count. Either output may be null.
  void (*pool)(const MapView<T>& x,
               int64_t in_height,
               int64_t in_width,
               int64_t stride,
               T* max,
               T* mean,
               int64_t blocks);
  // grad += input gradient of both pools, given that of the maxima and of the means; either may be
  // null. The first of equal maxima receives it.
  void (*pool_input)(const MapView<T>& x,
                     int64_t in_height,
                     int64_t in_width,
                     int64_t stride,
                     const T* max,
                     const T* grad_max,
                     const T* grad_mean,
                     T* grad,
                     int64_t blocks);

  // Mean and sum of squared deviations of every channel.
  void (*moments)(const T* y, int64_t pixels, int64_t blocks, double* mean, double* deviation);
  // sum_p g, sum_p g (y - mean) and sum_p g x of every channel.
  void (*sums)(const MapView<T>& g, int64_t pixels, int64_t blocks, double* sum);
  void (*dots)(
      const MapView<T>& g, const T* y, const T* mean, int64_t pixels, int64_t blocks, double* dot);
  void (*products)(
      const MapView<T>& g, const MapView<T>& x, int64_t pixels, int64_t blocks, double* dot);
  // out = grad, 0 where the framed relu output is 0; then sum and dots as above. `out` may be y.
  void (*mask_and_dots)(const T* grad,
                        const T* framed,
                        const Frame& frame,
                        const T* y,
                        const T* mean,
                        int64_t blocks,
                        T* out,
                        double* sum,
                        double* dot);

  // out (+)= sum_t scale_t (terms_t - mean_t) + shift over at most kMaxTerms maps, channels-last
  // with pixels `step` numbers apart. scale, mean: [count] pointers to per-channel arrays.
  void (*combine)(const MapView<T>* terms,
                  const T* const* scale,
                  const T* const* mean,
                  int count,
                  const T* shift,
                  T* out,
                  int64_t step,
                  int64_t channels,
                  int64_t pixels,
                  bool adds);
  // out = a g + b (y - mean) + c, per channel; `out` may be y.
  void (*affine)(const MapView<T>& g,
                 const T* y,
                 const T* a,
                 const T* b,
                 const T* mean,
                 const T* c,
                 T* out,
                 int64_t pixels,
                 int64_t blocks);
  // grad = [x > 0] grad + factor g; g may be null.
  void (*relu_input)(
      T* grad, const MapView<T>& x, const MapView<T>* g, T factor, int64_t pixels, int64_t blocks);
};

constexpr int kMaxTerms = 8;

}  // namespace pfn::cpu

// clang-format off: the declarations are a macro's argument.
PFN_FOR_EACH_ISA(
    template <typename T>
    const ImageKernels<T>& image_kernels();)
// clang-format on

namespace pfn::cpu {

// The kernels of the instruction set in use.
template <typename T>
const ImageKernels<T>& image_kernels() {
  return PFN_CPU_CALL(image_kernels<T>, );
}

}  // namespace pfn::cpu
