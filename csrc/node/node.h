// A fused node: what it is made of, and its forward and backward over a batch. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "math/accumulate.h"

namespace pfn::node {

enum class Kind : int64_t { skip = 0, max_pool = 1, mean_pool = 2, conv = 3 };

// A batch norm. Null pointers where it is not affine, or a gradient is not wanted.
template <typename T>
struct Norm {
  bool exists = false;
  bool is_given = false;  // statistics are an input, not those of the batch
  int64_t index = 0;      // row of `statistics`
  double eps = 0.0;
  const T* gamma = nullptr;  // [channels]
  const T* beta = nullptr;   // [channels]
  T* grad_gamma = nullptr;
  T* grad_beta = nullptr;
};

// ReLU, depthwise convolution, pointwise convolution, batch norm; or, without taps but with a
// window, ReLU, full convolution, batch norm. With a shifted matrix, output channels from `rows` on
// come from the input one row and column further (factorised reduction).
template <typename T>
struct Stage {
  int64_t in_channels = 0;
  int64_t size = 0;  // of the window; 0 for none
  int64_t dilation = 1;
  const T* taps = nullptr;  // [in_channels, size * size]
  int64_t rows = 0;
  const T* matrix = nullptr;   // [rows, in_channels], times size * size of a full convolution
  const T* shifted = nullptr;  // [channels - rows, in_channels]
  T* grad_taps = nullptr;
  T* grad_matrix = nullptr;
  T* grad_shifted = nullptr;
  Norm<T> norm;

  bool is_full() const { return size > 0 && taps == nullptr; }
};

template <typename T>
struct Branch {
  Kind kind = Kind::skip;
  const T* weight = nullptr;
  const bool* selected = nullptr;  // whether it runs; without it, it does
  int64_t column = 0;              // its place among the weights
  std::vector<Stage<T>> stages;    // of a convolution: 1 or 2
  Norm<T> norm;                    // of a pool
};

// Where a channels-last tensor [samples, height, width, channels] lies: it may be some of the
// channels of a wider one.
template <typename T>
struct Images {
  T* data = nullptr;
  int64_t sample = 0;  // numbers from one sample to the next
  int64_t pixel = 0;   // numbers from one pixel to the next

  bool exists() const { return data != nullptr; }
  T* at(int64_t n) const { return data + n * sample; }
};

// One input. Maps are stored as T; parameters, weights and their gradients in the type that sums
// over maps have.
template <typename T>
struct Edge {
  Images<const T> x;
  Images<T> grad_x;
  bool adds = false;  // to what grad_x holds
  int64_t channels = 0;
  int64_t height = 0;
  int64_t width = 0;
  int64_t stride = 1;
  std::vector<Branch<math::acc_t<T>>> branches;
};

template <typename T>
struct Node {
  int64_t samples = 0;
  int64_t channels = 0;  // of the output, [samples, height, width, channels]
  int64_t height = 0;
  int64_t width = 0;
  bool allow_tf32 = false;  // products of float32 may round their factors to TF32
  std::vector<Edge<T>> edges;
  double* statistics = nullptr;  // [norms, 2, channels]: mean and biased variance
};

// Takes out what is not selected, where the host may read the flags.
template <typename T>
void keep_selected(Node<T>& node) {
  for (Edge<T>& edge : node.edges) {
    const auto is_off = [](const Branch<T>& branch) {
      return branch.selected != nullptr && !*branch.selected;
    };
    edge.branches.erase(std::remove_if(edge.branches.begin(), edge.branches.end(), is_off),
                        edge.branches.end());
  }
}

// Calls the function with ranges that cover 0 to count, on as many threads as the caller likes.
using Range = std::function<void(int64_t begin, int64_t end)>;
using Parallel = std::function<void(int64_t count, const Range& run)>;

// y, and the statistics of the batch where they are not given. A node without branches is zero.
template <typename T>
void forward(const Node<T>& node, const Images<T>& y, const Parallel& parallel);

// The gradients that have a place, and those of the weights if `grad_weights` is not null
// ([columns]). Results do not depend on the number of threads.
template <typename T>
void backward(const Node<T>& node,
              const Images<const T>& grad,
              double* grad_weights,
              const Parallel& parallel);

}  // namespace pfn::node
