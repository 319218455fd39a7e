// Registers the operators of a fused node, and what reports and frees the CPU's scratch.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "node/arena.h"
#include "registration/node_args.h"

#ifdef PFN_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace pfn {
namespace {

// Where a node is run.
struct OnCpu {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  // Calls function(begin, end) over torch's threads.
  static void run_parallel(int64_t count, const node::Range& run) {
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { run(begin, end); });
  }

  // What branches that are taken out leave as it is.
  static void clear(Tensor& place) { torch::stable::zero_(place); }

  template <typename Function>
  static void dispatch(const char* op, const Tensor& x, Function&& function) {
    dispatch_wide(op, x, function);
  }

  template <typename T>
  static void forward(const NodeCall&, node::Node<T>& node, const Images<T>& y) {
    node::keep_selected(node);
    node::forward(node, y, run_parallel);
  }

  template <typename T>
  static void backward(const NodeCall& call,
                       node::Node<T>& node,
                       const Images<const T>& grad,
                       T* grad_weights) {
    node::keep_selected(node);
    std::vector<double> sums(grad_weights != nullptr ? call.layout.size() / kNumbers : 0);
    node::backward(node, grad, grad_weights != nullptr ? sums.data() : nullptr, run_parallel);
    std::transform(sums.begin(), sums.end(), grad_weights,
                   [](double sum) { return static_cast<T>(sum); });
  }
};

#ifdef PFN_WITH_CUDA
struct OnCuda {
  struct Guard {
    explicit Guard(const Tensor& x) : guard(x.get_device_index()) {}
    const DeviceGuard guard;
  };

  // The kernels write all of it.
  static void clear(Tensor&) {}

  static Tensor scratch(const Tensor& like, int64_t bytes) {
    return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
  }

  template <typename Function>
  static void dispatch(const char* op, const Tensor& x, Function&& function) {
    dispatch_floating(op, "xs", x, function);
  }

  template <typename T>
  static void forward(const NodeCall& call, const node::Node<T>& node, const Images<T>& y) {
    const Tensor memory = scratch(call.weights, cuda::fused_node_bytes(node));
    check_launch(call.op, cuda::launch_fused_node(node, y, memory.mutable_data_ptr(),
                                                  current_stream(call.weights)));
  }

  template <typename T>
  static void backward(const NodeCall& call,
                       const node::Node<T>& node,
                       const Images<const T>& grad,
                       math::acc_t<T>* grad_weights) {
    const Tensor memory = scratch(call.weights, cuda::fused_node_backward_bytes(node));
    check_launch(call.op, cuda::launch_fused_node_backward(node, grad, grad_weights,
                                                           memory.mutable_data_ptr(),
                                                           current_stream(call.weights)));
  }
};
#endif

// Writes the sum to y, and returns the statistics.
template <typename Where>
Tensor run_forward(const NodeCall& call,
                   const Sizes& sizes,
                   const Tensor& y,
                   const std::optional<Tensor>& given) {
  const typename Where::Guard guard(call.weights);
  Tensor statistics = torch::stable::new_empty(call.xs[0], {call.norms(), 2, sizes.channels},
                                               torch::headeronly::ScalarType::Double);
  if (given.has_value()) {
    check(same_shape(*given, statistics), call.op, ": given must have the shape of the statistics");
    torch::stable::copy_(statistics, *given);
  } else if (call.selected.has_value()) {
    Where::clear(statistics);
  }
  Where::dispatch(call.op, call.xs[0], [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = math::acc_t<T>;
    std::vector<Tensor> kept;
    const std::vector<Acc*> none(call.params.size(), nullptr);
    node::Node<T> node = call.read<T>(sizes, none, kept);
    node.statistics = mutable_data<double>(call.op, "statistics", statistics);
    Where::forward(call, node, images_at(mutable_data<T>(call.op, "y", y), y));
  });
  return statistics;
}

template <typename Where>
std::tuple<Tensor, Tensor> fused_node(const std::vector<Tensor>& xs,
                                      const Tensor& weights,
                                      const std::vector<Tensor>& params,
                                      const std::optional<Tensor>& given,
                                      const std::vector<int64_t>& layout,
                                      const std::vector<double>& eps,
                                      const std::vector<int64_t>& strides,
                                      bool allow_tf32,
                                      const std::optional<Tensor>& selected) {
  const NodeCall call{"fused_node", xs,      weights,    params,  layout,
                      eps,          strides, allow_tf32, selected};
  const Sizes sizes = call.checked();
  Tensor y = new_channels_last(xs[0], sizes);
  Tensor statistics = run_forward<Where>(call, sizes, y, given);
  return {std::move(y), std::move(statistics)};
}

template <typename Where>
Tensor fused_node_into(const Tensor& place,
                       const std::vector<Tensor>& xs,
                       const Tensor& weights,
                       const std::vector<Tensor>& params,
                       const std::optional<Tensor>& given,
                       const std::vector<int64_t>& layout,
                       const std::vector<double>& eps,
                       const std::vector<int64_t>& strides,
                       bool allow_tf32,
                       const std::optional<Tensor>& selected) {
  const NodeCall call{"fused_node_into", xs,         weights, params, layout, eps,
                      strides,           allow_tf32, selected};
  const Sizes sizes = call.checked();
  check(has_sizes(place, sizes) && pixel_step(place) > 0, call.op,
        ": place must be channels-last and have the shape of the sum");
  return run_forward<Where>(call, sizes, place, given);
}

// Which gradients a backward is asked for; those of inputs are written to grad_xs, or added to what
// is there where `adds` is not 0.
struct Wanted {
  const std::vector<Tensor>& grad_xs;
  const std::vector<int64_t>& adds;
  const std::vector<int64_t>& xs;
  bool weights;
  const std::vector<int64_t>& params;
};

size_t wanted_edge(const NodeCall& call, int64_t edge) {
  check(edge >= 0 && edge < static_cast<int64_t>(call.xs.size()), call.op,
        ": wanted_xs must index xs, got ", edge);
  return static_cast<size_t>(edge);
}

// Of a tensor [N, C, H, W].
Sizes sizes_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2), x.size(3)}; }

template <typename T>
void place_input_gradients(const NodeCall& call, const Wanted& wanted, node::Node<T>& node) {
  for (size_t i = 0; i < wanted.xs.size(); ++i) {
    const size_t e = wanted_edge(call, wanted.xs[i]);
    const Tensor& grad = wanted.grad_xs[i];
    check(has_sizes(grad, sizes_of(call.xs[e])) && pixel_step(grad) > 0, call.op,
          ": grad_xs must be channels-last and have the shapes of xs");
    node.edges[e].grad_x = images_at(mutable_data<T>(call.op, "grad_xs", grad), grad);
    node.edges[e].adds = wanted.adds[i] != 0;
  }
}

// Returns the gradients of the weights and of the wanted parameters.
template <typename Where>
std::tuple<Tensor, std::vector<Tensor>> run_backward(const NodeCall& call,
                                                     const Tensor& grad,
                                                     const Tensor& statistics,
                                                     const Wanted& wanted) {
  const Sizes sizes = call.checked();
  const typename Where::Guard guard(call.weights);
  check(has_sizes(grad, sizes) && pixel_step(grad) > 0, call.op,
        ": grad must be channels-last and have the shape of the sum");
  check(statistics.dim() == 3 && statistics.size(0) == call.norms() && statistics.size(1) == 2 &&
            statistics.size(2) == sizes.channels,
        call.op, ": statistics must be those of the forward");
  check(wanted.grad_xs.size() == wanted.xs.size() && wanted.adds.size() == wanted.xs.size(),
        call.op, ": grad_xs and adds must be as many as wanted_xs");
  const Tensor dense_statistics =
      statistics.is_contiguous() ? statistics : torch::stable::contiguous(statistics);
  Tensor grad_weights =
      torch::stable::new_empty(call.weights, {wanted.weights ? call.weights.size(0) : 0});
  std::vector<Tensor> grad_params;
  Where::dispatch(call.op, call.xs[0], [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Acc = math::acc_t<T>;
    std::vector<Acc*> places(call.params.size(), nullptr);
    for (int64_t p : wanted.params) {
      check(p >= 0 && p < static_cast<int64_t>(call.params.size()), call.op,
            ": wanted_params must index params, got ", p);
      const Tensor& param = call.params[static_cast<size_t>(p)];
      grad_params.push_back(torch::stable::new_empty(param, param.sizes()));
      if (call.selected.has_value()) Where::clear(grad_params.back());
      places[static_cast<size_t>(p)] =
          mutable_data<Acc>(call.op, "grad_params", grad_params.back());
    }
    std::vector<Tensor> kept;
    node::Node<T> node = call.read<T>(sizes, places, kept);
    // Read only: no norm of a backward is measured.
    node.statistics =
        const_cast<double*>(const_data<double>(call.op, "statistics", dense_statistics));
    place_input_gradients(call, wanted, node);
    Where::backward(
        call, node, images_at(const_data<T>(call.op, "grad", grad), grad),
        wanted.weights ? mutable_data<Acc>(call.op, "grad_weights", grad_weights) : nullptr);
  });
  return {std::move(grad_weights), std::move(grad_params)};
}

template <typename Where>
std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> fused_node_backward(
    const Tensor& grad,
    const std::vector<Tensor>& xs,
    const Tensor& weights,
    const std::vector<Tensor>& params,
    const Tensor& statistics,
    const std::vector<int64_t>& layout,
    const std::vector<double>& eps,
    const std::vector<int64_t>& strides,
    bool allow_tf32,
    const std::vector<int64_t>& wanted_xs,
    bool wants_weights,
    const std::vector<int64_t>& wanted_params,
    const std::optional<Tensor>& selected) {
  const NodeCall call{
      "fused_node_backward", xs, weights, params, layout, eps, strides, allow_tf32, selected};
  std::vector<Tensor> grad_xs;
  for (int64_t e : wanted_xs) {
    const Tensor& x = xs[wanted_edge(call, e)];
    check(x.dim() == 4, call.op, ": xs must be [N, C, H, W]");
    grad_xs.push_back(new_channels_last(x, sizes_of(x)));
  }
  const std::vector<int64_t> adds(wanted_xs.size());
  auto [grad_weights, grad_params] = run_backward<Where>(
      call, grad, statistics, {grad_xs, adds, wanted_xs, wants_weights, wanted_params});
  return {std::move(grad_xs), std::move(grad_weights), std::move(grad_params)};
}

template <typename Where>
std::tuple<Tensor, std::vector<Tensor>> fused_node_backward_into(
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
    bool allow_tf32,
    const std::vector<int64_t>& wanted_xs,
    bool wants_weights,
    const std::vector<int64_t>& wanted_params,
    const std::optional<Tensor>& selected) {
  const NodeCall call{
      "fused_node_backward_into", xs, weights, params, layout, eps, strides, allow_tf32, selected};
  return run_backward<Where>(call, grad, statistics,
                             {grad_xs, adds, wanted_xs, wants_weights, wanted_params});
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

#ifndef PFN_TWIN
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) {
  m.impl("fused_node", TORCH_BOX(&pfn::fused_node<pfn::OnCpu>));
  m.impl("fused_node_into", TORCH_BOX(&pfn::fused_node_into<pfn::OnCpu>));
  m.impl("fused_node_backward", TORCH_BOX(&pfn::fused_node_backward<pfn::OnCpu>));
  m.impl("fused_node_backward_into", TORCH_BOX(&pfn::fused_node_backward_into<pfn::OnCpu>));
}
#endif

#ifdef PFN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, PFN_CUDA_KEY, m) {
  m.impl("fused_node", TORCH_BOX(&pfn::fused_node<pfn::OnCuda>));
  m.impl("fused_node_into", TORCH_BOX(&pfn::fused_node_into<pfn::OnCuda>));
  m.impl("fused_node_backward", TORCH_BOX(&pfn::fused_node_backward<pfn::OnCuda>));
  m.impl("fused_node_backward_into", TORCH_BOX(&pfn::fused_node_backward_into<pfn::OnCuda>));
}
#endif
