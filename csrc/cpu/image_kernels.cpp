#include "cpu/image_kernels.h"

#include "cpu/image_channels.h"
#include "cpu/image_convolution.h"
#include "cpu/image_depthwise.h"
#include "cpu/image_pooling.h"
#include "cpu/image_products.h"

namespace pfn::cpu::PFN_ISA {

template <typename T>
const ImageKernels<T>& image_kernels() {
  static const ImageKernels<T> table{
      kLanes<T>,         pack<T>,           unpack<T>,
      clear_frame<T>,    put_frame<T>,      relu<T>,
      norm_relu<T>,      depthwise<T>,      depthwise_input<T>,
      depthwise_taps<T>, product<T>,        outer<T>,
      convolve<T>,       convolve_input<T>, convolve_matrix<T>,
      pool<T>,           pool_input<T>,     moments<T>,
      sums<T>,           dots<T>,           products<T>,
      mask_and_dots<T>,  combine<T>,        affine<T>,
      relu_input<T>,
  };
  return table;
}

template const ImageKernels<float>& image_kernels();
template const ImageKernels<double>& image_kernels();

}  // namespace pfn::cpu::PFN_ISA
