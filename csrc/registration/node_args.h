// A fused node read from tensors: checks, parameters with their gradients, images.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "node/node.h"
#include "registration/tensor_args.h"

namespace pfn {

using node::Branch;
using node::Edge;
using node::Images;
using node::Kind;
using node::Norm;
using node::Stage;

// Numbers that `layout` gives each candidate; see pyfast_nas/ops/node_plan.py.
constexpr size_t kNumbers = 9;

// Numbers from one pixel to the next where a tensor [N, C, H, W] is channels-last, perhaps some of
// the channels of a wider one; 0 where it is not.
inline int64_t pixel_step(const Tensor& x) {
  const auto sizes = x.sizes(), strides = x.strides();
  const int64_t rows = sizes[2], columns = sizes[3];
  const int64_t step = columns > 1 ? strides[3] : rows > 1 ? strides[2] : sizes[1];
  const bool fits = step >= sizes[1] && (sizes[1] == 1 || strides[1] == 1) &&
                    (rows == 1 || strides[2] == columns * step) &&
                    (sizes[0] == 1 || strides[0] >= rows * columns * step);
  return fits ? step : 0;
}

template <typename T>
Images<T> images_at(T* data, const Tensor& x) {
  return {data, x.size(0) > 1 ? x.stride(0) : 0, pixel_step(x)};
}

// A dense copy where the tensor is not dense; `kept` owns it.
template <typename T>
const T* dense(const char* op, const Tensor& tensor, int64_t count, std::vector<Tensor>& kept) {
  check(tensor.numel() == count, op, ": a parameter must hold ", count, " numbers");
  kept.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
  return const_data<T>(op, "params", kept.back());
}

// Reads the parameters of a node one by one, in the order of node_plan.py, with their gradients.
template <typename T>
class ParamReader {
 public:
  ParamReader(const char* op,
              const std::vector<Tensor>& params,
              const std::vector<T*>& grads,
              const std::vector<double>& eps,
              std::vector<Tensor>& kept)
      : op_(op), params_(params), grads_(grads), eps_(eps), kept_(kept) {}

  const T* next(int64_t count, T** grad) {
    check(at_ < params_.size(), op_, ": params must be as many as layout says");
    *grad = grads_[at_];
    return dense<T>(op_, params_[at_++], count, kept_);
  }

  Norm<T> norm(int64_t code, int64_t channels) {
    Norm<T> norm;
    if ((code & 7) == 0) return norm;
    check(static_cast<size_t>(norms_) < eps_.size(), op_, ": eps must be as many as norms");
    norm.exists = true;
    norm.is_given = (code & 4) != 0;
    norm.eps = eps_[static_cast<size_t>(norms_)];
    norm.index = norms_++;
    if ((code & 2) != 0) {
      norm.gamma = next(channels, &norm.grad_gamma);
      norm.beta = next(channels, &norm.grad_beta);
    }
    return norm;
  }

  Stage<T> stage(int64_t size, int64_t dilation, int64_t code, int64_t in, int64_t out) {
    check(size >= 0 && (size == 0 || size % 2 == 1) && dilation >= 1, op_,
          ": a window must be odd and its dilation positive");
    Stage<T> stage;
    stage.in_channels = in;
    stage.size = size;
    stage.dilation = dilation;
    const bool is_full = (code & 16) != 0;
    check(!is_full || size > 0, op_, ": a full convolution must have a window");
    if (size > 0 && !is_full) stage.taps = next(in * size * size, &stage.grad_taps);
    const bool has_shifted = (code & 8) != 0;
    stage.rows = out;
    if (has_shifted) {
      check(size == 0 && at_ < params_.size() && params_[at_].dim() == 4, op_,
            ": a factorised reduction must have two matrices");
      stage.rows = params_[at_].size(0);
      check(stage.rows > 0 && stage.rows < out, op_, ": a matrix must have some of the channels");
    }
    stage.matrix = next(stage.rows * in * (is_full ? size * size : 1), &stage.grad_matrix);
    if (has_shifted) stage.shifted = next((out - stage.rows) * in, &stage.grad_shifted);
    stage.norm = norm(code, out);
    return stage;
  }

  int64_t norms() const { return norms_; }
  bool is_done() const { return at_ == params_.size(); }

 private:
  const char* op_;
  const std::vector<Tensor>& params_;
  const std::vector<T*>& grads_;
  const std::vector<double>& eps_;
  std::vector<Tensor>& kept_;
  size_t at_ = 0;
  int64_t norms_ = 0;
};

struct Sizes {
  int64_t samples, channels, height, width;
};

// What the operators of a fused node are called with.
struct NodeCall {
  const char* op;
  const std::vector<Tensor>& xs;
  const Tensor& weights;
  const std::vector<Tensor>& params;
  const std::vector<int64_t>& layout;
  const std::vector<double>& eps;
  const std::vector<int64_t>& strides;
  bool allow_tf32;
  const std::optional<Tensor>& selected;  // [candidates]

  int64_t norms() const { return static_cast<int64_t>(eps.size()); }
  // Samples, channels, rows and columns of the node; refuses inputs that memory safety forbids.
  Sizes checked() const;
  // The node, with a place for the gradient of each parameter where one is wanted (null elsewhere);
  // `kept` owns the copies that this takes. Statistics and the inputs' gradients are the caller's.
  template <typename T>
  node::Node<T> read(const Sizes& sizes,
                     const std::vector<math::acc_t<T>*>& grads,
                     std::vector<Tensor>& kept) const;
};

inline Sizes NodeCall::checked() const {
  check(!xs.empty() && strides.size() == xs.size(), op, ": xs and strides must be as many");
  check(!layout.empty() && layout.size() % kNumbers == 0, op,
        ": layout must hold nine numbers for each candidate");
  const int64_t count = static_cast<int64_t>(layout.size() / kNumbers);
  check(weights.dim() == 1 && weights.size(0) == count, op,
        ": weights must hold one number for each of the ", count, " candidates");
  check(!selected.has_value() || (selected->dim() == 1 && selected->size(0) == count), op,
        ": selected must hold one flag for each of the ", count, " candidates");
  Sizes sizes{0, 0, 0, 0};
  for (size_t e = 0; e < xs.size(); ++e) {
    check(xs[e].dim() == 4 && xs[e].numel() > 0 && pixel_step(xs[e]) > 0, op,
          ": xs must be channels-last [N, C, H, W] and not empty");
    check(strides[e] == 1 || strides[e] == 2, op, ": strides must be 1 or 2");
    for (int64_t dim = 1; dim < 4; ++dim) {
      check(xs[e].size(dim) <= std::numeric_limits<int32_t>::max(), op,
            ": channels, rows and columns must be below 2^31");
    }
    const int64_t height = (xs[e].size(2) + strides[e] - 1) / strides[e];
    const int64_t width = (xs[e].size(3) + strides[e] - 1) / strides[e];
    if (e == 0) sizes = {xs[e].size(0), 0, height, width};
    check(xs[e].size(0) == sizes.samples && height == sizes.height && width == sizes.width, op,
          ": xs must give outputs of one size");
  }
  check(layout[0] >= 0 && layout[0] < static_cast<int64_t>(xs.size()), op,
        ": layout must name edges that exist");
  sizes.channels = xs[static_cast<size_t>(layout[0])].size(1);
  if (layout[1] == static_cast<int64_t>(Kind::conv)) {
    const size_t matrix = layout[3] > 0 && (layout[5] & 16) == 0 ? 1 : 0;
    check(params.size() > matrix && params[matrix].dim() == 4, op,
          ": params must be as many as layout says");
    sizes.channels = params[matrix].size(0);
    if ((layout[5] & 8) != 0) {
      check(params.size() > matrix + 1 && params[matrix + 1].dim() == 4, op,
            ": params must be as many as layout says");
      sizes.channels += params[matrix + 1].size(0);
    }
  }
  check(sizes.channels > 0, op, ": a node must have channels");
  return sizes;
}

template <typename T>
node::Node<T> NodeCall::read(const Sizes& sizes,
                             const std::vector<math::acc_t<T>*>& grads,
                             std::vector<Tensor>& kept) const {
  using Acc = math::acc_t<T>;
  ParamReader<Acc> reader(op, params, grads, eps, kept);
  node::Node<T> node;
  node.samples = sizes.samples;
  node.channels = sizes.channels;
  node.height = sizes.height;
  node.width = sizes.width;
  node.allow_tf32 = allow_tf32;
  for (size_t e = 0; e < xs.size(); ++e) {
    Edge<T>& edge = node.edges.emplace_back();
    edge.x = images_at(const_data<T>(op, "xs", xs[e]), xs[e]);
    edge.channels = xs[e].size(1);
    edge.height = xs[e].size(2);
    edge.width = xs[e].size(3);
    edge.stride = strides[e];
  }
  const Acc* weight = const_data<Acc>(op, "weights", weights);
  const bool* flags = selected.has_value() ? const_data<bool>(op, "selected", *selected) : nullptr;
  for (size_t at = 0; at < layout.size(); at += kNumbers) {
    const int64_t* numbers = layout.data() + at;
    check(numbers[0] >= 0 && numbers[0] < static_cast<int64_t>(xs.size()) && numbers[1] >= 0 &&
              numbers[1] <= static_cast<int64_t>(Kind::conv),
          op, ": layout must name edges and kinds that exist");
    Edge<T>& edge = node.edges[static_cast<size_t>(numbers[0])];
    Branch<Acc>& branch = edge.branches.emplace_back();
    branch.kind = static_cast<Kind>(numbers[1]);
    branch.column = static_cast<int64_t>(at / kNumbers);
    branch.weight = weight + branch.column * weights.stride(0);
    if (flags != nullptr) branch.selected = flags + branch.column * selected->stride(0);
    if (branch.kind == Kind::conv) {
      check(numbers[2] == 1 || numbers[2] == 2, op, ": a convolution must have one or two stages");
      for (int64_t s = 0; s < numbers[2]; ++s) {
        const int64_t* stage = numbers + 3 + 3 * s;
        branch.stages.push_back(reader.stage(
            stage[0], stage[1], stage[2], s == 0 ? edge.channels : sizes.channels, sizes.channels));
        check(branch.stages.back().norm.exists, op, ": a convolution must end in a norm");
        check(branch.stages.back().shifted == nullptr ||
                  (s == 0 && edge.stride == 2 && edge.height % 2 == 0 && edge.width % 2 == 0),
              op, ": a factorised reduction must halve even sides");
      }
    } else {
      check(edge.channels == sizes.channels, op, ": skips and pools must keep the channels");
      check(branch.kind != Kind::skip || edge.stride == 1, op, ": a skip must have stride 1");
      branch.norm = reader.norm(numbers[5], sizes.channels);
    }
  }
  check(reader.is_done(), op, ": params must be as many as layout says");
  check(reader.norms() == norms(), op, ": eps must be as many as norms");
  return node;
}

// A fresh channels-last tensor of the kind of `like`.
inline Tensor new_channels_last(const Tensor& like, const Sizes& sizes) {
  const Tensor rows =
      torch::stable::new_empty(like, {sizes.samples, sizes.height, sizes.width, sizes.channels});
  return torch::stable::transpose(torch::stable::transpose(rows, 1, 3), 2, 3);
}

template <typename Function>
void dispatch_wide(const char* op, const Tensor& x, Function&& function) {
  const int32_t code = dtype_code(x);
  if (code == code_of(TypeTag<float>{})) return function(TypeTag<float>{});
  check(code == code_of(TypeTag<double>{}), op, ": xs must have dtype float32 or float64");
  function(TypeTag<double>{});
}

inline bool has_sizes(const Tensor& x, const Sizes& sizes) {
  return x.dim() == 4 && x.size(0) == sizes.samples && x.size(1) == sizes.channels &&
         x.size(2) == sizes.height && x.size(3) == sizes.width;
}

}  // namespace pfn
