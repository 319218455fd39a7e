// Registers fused_node and fused_node_backward for CPU, and what reports and frees their scratch.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "node/arena.h"
#include "node/node.h"
#include "registration/tensor_args.h"

namespace pfn {
namespace {

using node::Branch;
using node::Edge;
using node::Images;
using node::Kind;
using node::Norm;
using node::Stage;

// Numbers that `layout` gives each candidate; see pyfast_nas/ops/node_plan.py.
constexpr size_t kNumbers = 9;

// Calls function(begin, end) over torch's threads.
void run_parallel(int64_t count, const node::Range& run) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { run(begin, end); });
}

// Numbers from one pixel to the next where a tensor [N, C, H, W] is channels-last, perhaps some of
// the channels of a wider one; 0 where it is not.
int64_t pixel_step(const Tensor& x) {
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
              const std::vector<double>& eps,
              std::vector<Tensor>& kept)
      : op_(op), params_(params), eps_(eps), kept_(kept), grads_(params.size(), nullptr) {}

  void set_gradient(size_t param, T* place) { grads_[param] = place; }

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
  const std::vector<double>& eps_;
  std::vector<Tensor>& kept_;
  std::vector<T*> grads_;
  size_t at_ = 0;
  int64_t norms_ = 0;
};

struct Sizes {
  int64_t samples, channels, height, width;
};

// Samples, channels, rows and columns of the node; refuses inputs that memory safety forbids.
Sizes check_inputs(const char* op,
                   const std::vector<Tensor>& xs,
                   const Tensor& weights,
                   const std::vector<Tensor>& params,
                   const std::vector<int64_t>& layout,
                   const std::vector<int64_t>& strides) {
  check(!xs.empty() && strides.size() == xs.size(), op, ": xs and strides must be as many");
  check(!layout.empty() && layout.size() % kNumbers == 0, op,
        ": layout must hold nine numbers for each candidate");
  const int64_t count = static_cast<int64_t>(layout.size() / kNumbers);
  check(weights.dim() == 1 && weights.size(0) == count, op,
        ": weights must hold one number for each of the ", count, " candidates");
  Sizes sizes{0, 0, 0, 0};
  for (size_t e = 0; e < xs.size(); ++e) {
    check(xs[e].dim() == 4 && xs[e].numel() > 0 && pixel_step(xs[e]) > 0, op,
          ": xs must be channels-last [N, C, H, W] and not empty");
    check(strides[e] == 1 || strides[e] == 2, op, ": strides must be 1 or 2");
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
node::Node<T> read_node(const char* op,
                        const std::vector<Tensor>& xs,
                        const Tensor& weights,
                        const std::vector<int64_t>& layout,
                        const std::vector<int64_t>& strides,
                        const Sizes& sizes,
                        ParamReader<T>& params) {
  node::Node<T> node;
  node.samples = sizes.samples;
  node.channels = sizes.channels;
  node.height = sizes.height;
  node.width = sizes.width;
  for (size_t e = 0; e < xs.size(); ++e) {
    Edge<T>& edge = node.edges.emplace_back();
    edge.x = images_at(const_data<T>(op, "xs", xs[e]), xs[e]);
    edge.channels = xs[e].size(1);
    edge.height = xs[e].size(2);
    edge.width = xs[e].size(3);
    edge.stride = strides[e];
  }
  const T* weight = const_data<T>(op, "weights", weights);
  for (size_t at = 0; at < layout.size(); at += kNumbers) {
    const int64_t* numbers = layout.data() + at;
    check(numbers[0] >= 0 && numbers[0] < static_cast<int64_t>(xs.size()) && numbers[1] >= 0 &&
              numbers[1] <= static_cast<int64_t>(Kind::conv),
          op, ": layout must name edges and kinds that exist");
    Edge<T>& edge = node.edges[static_cast<size_t>(numbers[0])];
    Branch<T>& branch = edge.branches.emplace_back();
    branch.kind = static_cast<Kind>(numbers[1]);
    branch.column = static_cast<int64_t>(at / kNumbers);
    branch.weight = weight[branch.column * weights.stride(0)];
    if (branch.kind == Kind::conv) {
      check(numbers[2] == 1 || numbers[2] == 2, op, ": a convolution must have one or two stages");
      for (int64_t s = 0; s < numbers[2]; ++s) {
        const int64_t* stage = numbers + 3 + 3 * s;
        branch.stages.push_back(params.stage(
            stage[0], stage[1], stage[2], s == 0 ? edge.channels : sizes.channels, sizes.channels));
        check(branch.stages.back().norm.exists, op, ": a convolution must end in a norm");
        check(branch.stages.back().shifted == nullptr ||
                  (s == 0 && edge.stride == 2 && edge.height % 2 == 0 && edge.width % 2 == 0),
              op, ": a factorised reduction must halve even sides");
      }
    } else {
      check(edge.channels == sizes.channels, op, ": skips and pools must keep the channels");
      check(branch.kind != Kind::skip || edge.stride == 1, op, ": a skip must have stride 1");
      branch.norm = params.norm(numbers[5], sizes.channels);
    }
  }
  check(params.is_done(), op, ": params must be as many as layout says");
  return node;
}

// A fresh channels-last tensor of the kind of `like`.
Tensor new_channels_last(const Tensor& like, const Sizes& sizes) {
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

bool has_sizes(const Tensor& x, const Sizes& sizes) {
  return x.dim() == 4 && x.size(0) == sizes.samples && x.size(1) == sizes.channels &&
         x.size(2) == sizes.height && x.size(3) == sizes.width;
}

// Writes the sum to y, and returns the statistics.
Tensor run_forward(const char* op,
                   const Tensor& y,
                   const Sizes& sizes,
                   const std::vector<Tensor>& xs,
                   const Tensor& weights,
                   const std::vector<Tensor>& params,
                   const std::optional<Tensor>& given,
                   const std::vector<int64_t>& layout,
                   const std::vector<double>& eps,
                   const std::vector<int64_t>& strides) {
  const int64_t norms = static_cast<int64_t>(eps.size());
  Tensor statistics = torch::stable::new_empty(xs[0], {norms, 2, sizes.channels},
                                               torch::headeronly::ScalarType::Double);
  if (given.has_value()) {
    check(same_shape(*given, statistics), op, ": given must have the shape of the statistics");
    torch::stable::copy_(statistics, *given);
  }
  dispatch_wide(op, xs[0], [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<Tensor> kept;
    ParamReader<T> reader(op, params, eps, kept);
    node::Node<T> node = read_node<T>(op, xs, weights, layout, strides, sizes, reader);
    check(reader.norms() == norms, op, ": eps must be as many as norms");
    node.statistics = mutable_data<double>(op, "statistics", statistics);
    node::forward(node, images_at(mutable_data<T>(op, "y", y), y), run_parallel);
  });
  return statistics;
}

std::tuple<Tensor, Tensor> fused_node_cpu(const std::vector<Tensor>& xs,
                                          const Tensor& weights,
                                          const std::vector<Tensor>& params,
                                          const std::optional<Tensor>& given,
                                          const std::vector<int64_t>& layout,
                                          const std::vector<double>& eps,
                                          const std::vector<int64_t>& strides) {
  constexpr const char* op = "fused_node";
  const Sizes sizes = check_inputs(op, xs, weights, params, layout, strides);
  Tensor y = new_channels_last(xs[0], sizes);
  Tensor statistics = run_forward(op, y, sizes, xs, weights, params, given, layout, eps, strides);
  return {std::move(y), std::move(statistics)};
}

Tensor fused_node_into_cpu(const Tensor& place,
                           const std::vector<Tensor>& xs,
                           const Tensor& weights,
                           const std::vector<Tensor>& params,
                           const std::optional<Tensor>& given,
                           const std::vector<int64_t>& layout,
                           const std::vector<double>& eps,
                           const std::vector<int64_t>& strides) {
  constexpr const char* op = "fused_node_into";
  const Sizes sizes = check_inputs(op, xs, weights, params, layout, strides);
  check(has_sizes(place, sizes) && pixel_step(place) > 0, op,
        ": place must be channels-last and have the shape of the sum");
  return run_forward(op, place, sizes, xs, weights, params, given, layout, eps, strides);
}

size_t wanted_edge(const char* op, const std::vector<Tensor>& xs, int64_t edge) {
  check(edge >= 0 && edge < static_cast<int64_t>(xs.size()), op, ": wanted_xs must index xs, got ",
        edge);
  return static_cast<size_t>(edge);
}

// Of a tensor [N, C, H, W].
Sizes sizes_of(const Tensor& x) {
  check(x.dim() == 4, "fused_node_backward", ": xs must be [N, C, H, W]");
  return {x.size(0), x.size(1), x.size(2), x.size(3)};
}

// Gradients of the weights and of the wanted parameters; those of the wanted inputs are written to
// grad_xs, or added to what is there where `adds` is not 0.
std::tuple<Tensor, std::vector<Tensor>> run_backward(const char* op,
                                                     const std::vector<Tensor>& grad_xs,
                                                     const std::vector<int64_t>& adds,
                                                     const Tensor& grad,
                                                     const std::vector<Tensor>& xs,
                                                     const Tensor& weights,
                                                     const std::vector<Tensor>& params,
                                                     const Tensor& statistics,
                                                     const std::vector<int64_t>& layout,
                                                     const std::vector<double>& eps,
                                                     const std::vector<int64_t>& strides,
                                                     const std::vector<int64_t>& wanted_xs,
                                                     bool wants_weights,
                                                     const std::vector<int64_t>& wanted_params) {
  const Sizes sizes = check_inputs(op, xs, weights, params, layout, strides);
  check(has_sizes(grad, sizes) && pixel_step(grad) > 0, op,
        ": grad must be channels-last and have the shape of the sum");
  const int64_t norms = static_cast<int64_t>(eps.size());
  check(statistics.dim() == 3 && statistics.size(0) == norms && statistics.size(1) == 2 &&
            statistics.size(2) == sizes.channels,
        op, ": statistics must be those of the forward");
  const Tensor dense_statistics =
      statistics.is_contiguous() ? statistics : torch::stable::contiguous(statistics);
  const int64_t columns = weights.size(0);
  Tensor grad_weights = torch::stable::new_empty(weights, {wants_weights ? columns : 0});
  std::vector<Tensor> grad_params;
  check(grad_xs.size() == wanted_xs.size() && adds.size() == wanted_xs.size(), op,
        ": grad_xs and adds must be as many as wanted_xs");
  dispatch_wide(op, xs[0], [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<Tensor> kept;
    ParamReader<T> reader(op, params, eps, kept);
    for (int64_t p : wanted_params) {
      check(p >= 0 && p < static_cast<int64_t>(params.size()), op,
            ": wanted_params must index params, got ", p);
      const Tensor& param = params[static_cast<size_t>(p)];
      grad_params.push_back(torch::stable::new_empty(param, param.sizes()));
      reader.set_gradient(static_cast<size_t>(p),
                          mutable_data<T>(op, "grad_params", grad_params.back()));
    }
    node::Node<T> node = read_node<T>(op, xs, weights, layout, strides, sizes, reader);
    check(reader.norms() == norms, op, ": eps must be as many as norms");
    // Read only: no norm of a backward is measured.
    node.statistics = const_cast<double*>(const_data<double>(op, "statistics", dense_statistics));
    for (size_t i = 0; i < wanted_xs.size(); ++i) {
      Edge<T>& edge = node.edges[wanted_edge(op, xs, wanted_xs[i])];
      check(has_sizes(grad_xs[i], sizes_of(xs[static_cast<size_t>(wanted_xs[i])])) &&
                pixel_step(grad_xs[i]) > 0,
            op, ": grad_xs must be channels-last and have the shapes of xs");
      edge.grad_x = images_at(mutable_data<T>(op, "grad_xs", grad_xs[i]), grad_xs[i]);
      edge.adds = adds[i] != 0;
    }
    std::vector<double> sums(static_cast<size_t>(wants_weights ? columns : 0));
    node::backward(node, images_at(const_data<T>(op, "grad", grad), grad),
                   wants_weights ? sums.data() : nullptr, run_parallel);
    if (wants_weights) {
      std::transform(sums.begin(), sums.end(), mutable_data<T>(op, "grad_weights", grad_weights),
                     [](double sum) { return static_cast<T>(sum); });
    }
  });
  return {std::move(grad_weights), std::move(grad_params)};
}

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> fused_node_backward_cpu(
    const Tensor& grad,
    const std::vector<Tensor>& xs,
    const Tensor& weights,
    const std::vector<Tensor>& params,
    const Tensor& statistics,
    const std::vector<int64_t>& layout,
    const std::vector<double>& eps,
    const std::vector<int64_t>& strides,
    const std::vector<int64_t>& wanted_xs,
    bool wants_weights,
    const std::vector<int64_t>& wanted_params) {
  constexpr const char* op = "fused_node_backward";
  std::vector<Tensor> grad_xs;
  for (int64_t e : wanted_xs) {
    const Tensor& x = xs[wanted_edge(op, xs, e)];
    grad_xs.push_back(new_channels_last(x, sizes_of(x)));
  }
  auto [grad_weights, grad_params] =
      run_backward(op, grad_xs, std::vector<int64_t>(wanted_xs.size()), grad, xs, weights, params,
                   statistics, layout, eps, strides, wanted_xs, wants_weights, wanted_params);
  return {std::move(grad_xs), std::move(grad_weights), std::move(grad_params)};
}

std::tuple<Tensor, std::vector<Tensor>> fused_node_backward_into_cpu(
    const std::vector<Tensor>& grad_xs,
    const std::vector<int64_t>& adds,
    const Tensor& grad,
    const std::vector<Tensor>& xs,
    const Tensor& weights,
    const std::vector<Tensor>& params,
    const Tensor& statistics,
    const std::vector<int64_t>& layout,
    const std::vector<double>& eps,
    const std::vector<int64_t>& strides,
    const std::vector<int64_t>& wanted_xs,
    bool wants_weights,
    const std::vector<int64_t>& wanted_params) {
  return run_backward("fused_node_backward_into", grad_xs, adds, grad, xs, weights, params,
                      statistics, layout, eps, strides, wanted_xs, wants_weights, wanted_params);
}

// Bytes of scratch kept between calls; with a byte from 0 to 255 all of it is filled with that
// first, with -2 it is freed.
int64_t node_scratch(int64_t fill) {
  if (fill >= 0) node::fill_arenas(static_cast<unsigned char>(fill));
  if (fill == -2) node::release_arenas();
  return node::arena_bytes();
}

}  // namespace
}  // namespace pfn

STABLE_TORCH_LIBRARY_FRAGMENT(pyfast_nas, m) { m.def("node_scratch(int fill) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CompositeExplicitAutograd, m) {
  m.impl("node_scratch", TORCH_BOX(&pfn::node_scratch));
}

STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) {
  m.impl("fused_node", TORCH_BOX(&pfn::fused_node_cpu));
  m.impl("fused_node_into", TORCH_BOX(&pfn::fused_node_into_cpu));
  m.impl("fused_node_backward", TORCH_BOX(&pfn::fused_node_backward_cpu));
  m.impl("fused_node_backward_into", TORCH_BOX(&pfn::fused_node_backward_into_cpu));
}
