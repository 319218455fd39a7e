// What the kernels of a fused node are told of one stage of a convolution, in their parameter
// block.
#pragma once

#include <cstdint>

#include "cuda/node/strips.h"
#include "cuda/runtime.h"
#include "math/accumulate.h"

namespace pfn::cuda {

// Stages of one launch: with more the parameter block would pass its 4 KiB.
constexpr int kUnits = 14;

// Whether a candidate runs, as a flag on the device; without one it does. All threads of a block
// get the same answer, before any barrier.
struct Selected {
  const bool* flag;

  PFN_DEVICE bool is_off() const { return flag != nullptr && !*flag; }
};

// A channels-last map: an input of the node in its own type, or scratch in that of accumulators.
template <typename T>
struct Map {
  using Acc = math::acc_t<T>;

  const T* own;
  const Acc* scratch;
  int64_t sample;  // numbers from one sample to the next
  int64_t pixel;   // numbers from one pixel to the next

  PFN_DEVICE Acc at(int64_t offset) const {
    return own != nullptr ? math::widen(own[offset]) : scratch[offset];
  }
};

// ReLU, windows, product, as node/node.h says; with the norm in front of the ReLU where there is
// one, and what backward takes to the stage's output gradient a g + b (y - mean) + c.
template <typename T>
struct StageUnit {
  using Acc = math::acc_t<T>;

  Map<T> input;
  const Acc* norm;  // [3, in_channels]: mean, scale, shift of what comes in; null for none
  int in_height;
  int in_width;
  int in_channels;
  int size;  // of the window; 1 for none
  int dilation;
  int stride;
  int windows;  // 2 of a factorised reduction, else 1
  int rows;     // outputs of the first window
  bool is_full;
  const Acc* taps;     // [in_channels, size, size]; null where the window only picks a pixel
  const Acc* matrix;   // [rows, in_channels, taps of a full convolution]
  const Acc* shifted;  // [channels - rows, in_channels]
  Acc* y;              // [pixels, channels]
  Map<T> grad;         // of the output, or of what it is mixed into
  const Acc* through;  // [4, channels]: a, b, mean, c
  Acc* below;         // gradient of z [pixels, z_channels]; of a full convolution that of its input
  Acc* matrix_parts;  // [splits, numbers of matrix and shifted]
  Acc* taps_parts;    // [splits, numbers of taps]
  Selected selected;

  PFN_MEMBER int taps_count() const { return size * size; }
  // Steps of the product: pieces of so many channels for each window or tap.
  PFN_MEMBER int products() const { return is_full ? taps_count() : windows; }
  PFN_MEMBER int z_channels() const { return is_full ? in_channels : windows * in_channels; }
  PFN_MEMBER int reach() const { return dilation * (size - 1) / 2; }
};

template <typename T>
struct Units {
  StageUnit<T> at[kUnits];
};

// Sizes that all stages of a launch share.
struct NodeSizes {
  int64_t samples;
  int channels;
  int height;
  int width;

  PFN_MEMBER int64_t pixels() const { return samples * height * width; }
};

}  // namespace pfn::cuda
