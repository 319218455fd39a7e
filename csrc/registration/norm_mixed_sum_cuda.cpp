// Registers norm_mixed_sum and norm_mixed_sum_backward for CUDA, in a CUDA build. Numbers of small
// tensors are read by the kernels: nothing here waits for the device.
#ifdef PFN_WITH_CUDA

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cuda/norm_launch.h"
#include "cuda/pack.h"
#include "registration/mixed_args.h"
#include "registration/norm_args.h"

namespace pfn {
namespace {

using cuda::NormTiles;
using cuda::NumberType;

NumberType number_type(const char* op, const char* name, const Tensor& tensor) {
  return dispatch_floating(op, name, tensor, [](auto tag) {
    using T = typename decltype(tag)::type;
    return std::is_same_v<T, double>       ? NumberType::float64
           : std::is_same_v<T, float>      ? NumberType::float32
           : std::is_same_v<T, math::Half> ? NumberType::float16
                                           : NumberType::bfloat16;
  });
}

// Tensors as they are where they are contiguous, else copies, and their memory.
class Contiguous {
 public:
  explicit Contiguous(const std::vector<Tensor>& tensors) {
    for (const Tensor& tensor : tensors) {
      tensors_.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
    }
  }
  const void* data(int64_t index) const {
    return tensors_[static_cast<size_t>(index)].const_data_ptr();
  }

 private:
  std::vector<Tensor> tensors_;
};

// What a call runs over, with the width of its vectors: 16 bytes where shape and pointers allow it.
class Shares {
 public:
  template <typename X>
  Shares(TypeTag<X>, const DenseShape& shape, bool is_aligned) : shape_(shape) {
    constexpr int kWide = cuda::vector_width<X>(true);
    is_aligned = is_aligned && cuda::norm_takes_width(shape.channels, shape.inner, kWide);
    width_ = is_aligned ? kWide : 1;
  }

  int64_t numel() const { return shape_.outer * shape_.channels * shape_.inner; }
  NormTiles adding() const { return tiles(cuda::norm_adding_steps(numel(), width_)); }
  NormTiles elementwise() const { return tiles(cuda::kNormVectors); }

 private:
  NormTiles tiles(int64_t steps) const {
    return cuda::norm_tiles(shape_.outer, shape_.channels, shape_.inner, width_, steps);
  }

  DenseShape shape_;
  int width_;
};

template <typename T>
bool are_aligned(const std::vector<T*>& pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const T* pointer) { return cuda::is_aligned(pointer); });
}

template <typename X>
std::vector<const X*> pointers_of(const char* op, const std::vector<Tensor>& xs) {
  std::vector<const X*> pointers;
  for (const Tensor& x : xs) pointers.push_back(const_data<X>(op, "xs", x));
  return pointers;
}

// Calls launch(first, count) for as many candidates at a time as a launch takes.
template <typename Launch>
void for_each_launch(const char* op, size_t num_ops, Launch&& launch) {
  for (size_t k = 0; k < num_ops; k += math::kMaxCudaOps) {
    const size_t count = std::min<size_t>(num_ops - k, math::kMaxCudaOps);
    check_launch(op, launch(k, static_cast<int>(count)));
  }
}

std::vector<cuda::NormOperand> forward_operands(const char* op,
                                                const std::vector<NormPlan>& plans,
                                                const std::vector<Tensor>& xs,
                                                const std::vector<Tensor>& params,
                                                const std::vector<Tensor>& given,
                                                const Contiguous& dense_params,
                                                const Contiguous& dense_given,
                                                const std::vector<double>& eps) {
  std::vector<cuda::NormOperand> operands(plans.size());
  int64_t next = 0;
  int parts = 0;
  for (size_t k = 0; k < plans.size(); ++k) {
    cuda::NormOperand& operand = operands[k];
    operand.row = static_cast<int>(plans[k].norm);
    operand.part = plans[k].uses_batch() ? parts++ : -1;
    operand.mean = xs[k].const_data_ptr();
    if (!has_norm(plans[k].kind)) continue;
    operand.eps = eps[static_cast<size_t>(plans[k].norm)];
    if (const int64_t param = plans[k].param; param >= 0) {
      operand.gamma = dense_params.data(param);
      operand.beta = dense_params.data(param + 1);
      operand.gamma_type = number_type(op, "params", params[static_cast<size_t>(param)]);
      operand.beta_type = number_type(op, "params", params[static_cast<size_t>(param + 1)]);
    }
    if (!is_given(plans[k].kind)) continue;
    operand.mean_type = number_type(op, "given", given[static_cast<size_t>(next)]);
    operand.mean = dense_given.data(next++);
    operand.var_type = number_type(op, "given", given[static_cast<size_t>(next)]);
    operand.var = dense_given.data(next++);
  }
  return operands;
}

void check_given(const char* op,
                 const std::vector<NormPlan>& plans,
                 const std::vector<Tensor>& given,
                 const Tensor& x0) {
  size_t next = 0;
  for (const NormPlan& plan : plans) {
    for (int which = 0; which < 2 && is_given(plan.kind); ++which) given_at(op, given, next++, x0);
  }
}

// Partial sums of the candidates whose statistics are those of the batch.
template <typename X>
Tensor batch_statistics(const char* op,
                        const NormTiles& tiles,
                        const std::vector<NormPlan>& plans,
                        const std::vector<const X*>& xs,
                        const Tensor& like) {
  std::vector<const X*> batch;
  for (size_t k = 0; k < xs.size(); ++k) {
    if (plans[k].uses_batch()) batch.push_back(xs[k]);
  }
  const int64_t size = 2 * tiles.pieces * cuda::norm_entries(tiles);
  Tensor partials = scratch<double>(like, static_cast<int64_t>(batch.size()) * size);
  double* partial = mutable_data<double>(op, "partials", partials);
  for_each_launch(op, batch.size(), [&](size_t k, int count) {
    return cuda::launch_norm_statistics(tiles, batch.data() + k,
                                        partial + static_cast<int64_t>(k) * size, count,
                                        current_stream(like));
  });
  return partials;
}

std::tuple<Tensor, Tensor> norm_mixed_sum_cuda(const std::vector<Tensor>& xs,
                                               const Tensor& weights,
                                               const std::vector<Tensor>& params,
                                               const std::vector<Tensor>& given,
                                               const std::vector<int64_t>& kinds,
                                               const std::vector<double>& eps) {
  constexpr const char* op = "norm_mixed_sum";
  const auto plans = plan_candidates(op, xs, weights, params, kinds, eps);
  check_given(op, plans, given, xs[0]);
  const DeviceGuard guard(weights.get_device_index());
  const cudaStream_t stream = current_stream(weights);
  Tensor y = empty_like(xs[0], weights);
  Tensor statistics =
      torch::stable::new_empty(xs[0], {static_cast<int64_t>(eps.size()), 2, xs[0].size(1)},
                               torch::headeronly::ScalarType::Double);
  std::vector<Tensor> laid_out;
  for (const Tensor& x : xs) laid_out.push_back(laid_out_like(y, x));
  const Contiguous dense_params(params), dense_given(given), dense_weights({weights});
  const auto operands =
      forward_operands(op, plans, laid_out, params, given, dense_params, dense_given, eps);
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    using Acc = math::acc_t<X>;
    const auto in = pointers_of<X>(op, laid_out);
    Y* out = mutable_data<Y>(op, "y", y);
    const Y* w = static_cast<const Y*>(dense_weights.data(0));
    const Shares shares(x_tag, DenseShape(y), are_aligned(in) && cuda::is_aligned(out));
    const NormTiles tiles = shares.adding();
    const Tensor partials = batch_statistics(op, tiles, plans, in, weights);
    const int64_t size = cuda::norm_table_size(tiles);
    // More candidates than one launch takes leave an unrounded running sum between launches.
    const size_t num_ops = in.size();
    const bool is_split = num_ops > math::kMaxCudaOps;
    Tensor running = is_split && sizeof(Y) < sizeof(Acc) ? scratch<Acc>(weights, y.numel()) : y;
    Acc* sum = is_split ? mutable_data<Acc>(op, "y", running) : nullptr;
    for_each_launch(op, num_ops, [&](size_t k, int count) {
      Tensor tables = scratch<Acc>(weights, (2 * count + 1) * size);
      const cuda::NormMergeLaunch<X> merge{const_data<double>(op, "partials", partials),
                                           operands.data() + k,
                                           w + k,
                                           number_type(op, "weights", weights),
                                           mutable_data<double>(op, "statistics", statistics),
                                           mutable_data<Acc>(op, "tables", tables),
                                           count};
      check_launch(op, cuda::launch_norm_merge(tiles, merge, stream));
      const NormTiles each = shares.elementwise();
      const Acc* start = k > 0 ? sum : nullptr;
      const bool is_last = k + static_cast<size_t>(count) == num_ops;
      return is_last ? cuda::launch_norm_sum<X, Y>(each, in.data() + k, merge.table, start, out,
                                                   count, stream)
                     : cuda::launch_norm_sum<X, Acc>(each, in.data() + k, merge.table, start, sum,
                                                     count, stream);
    });
  });
  return {std::move(y), std::move(statistics)};
}

// Dot products in parts: of each candidate that has one in `parts`, and of grad alone.
template <typename Acc>
struct Dots {
  std::vector<int> parts;  // [num_ops], which of the partial sums, -1 for none
  Tensor partials;
  const Acc* partial = nullptr;
  const Acc* total = nullptr;
};

template <typename X, typename Y>
Dots<math::acc_t<X>> sum_dots(const char* op,
                              const NormTiles& tiles,
                              const Y* grad,
                              const std::vector<const X*>& xs,
                              const std::vector<NormPlan>& plans,
                              const double* statistics,
                              const std::vector<bool>& wanted,  // [num_ops + 1]
                              const Tensor& like) {
  using Acc = math::acc_t<X>;
  Dots<Acc> dots;
  std::vector<const X*> in;
  std::vector<const double*> means;
  for (size_t k = 0; k < xs.size(); ++k) {
    dots.parts.push_back(wanted[k] ? static_cast<int>(in.size()) : -1);
    if (!wanted[k]) continue;
    in.push_back(xs[k]);
    means.push_back(has_norm(plans[k].kind) ? statistics + 2 * plans[k].norm * tiles.channels
                                            : nullptr);
  }
  const int64_t size = tiles.pieces * cuda::norm_entries(tiles);
  dots.partials = scratch<Acc>(like, (static_cast<int64_t>(in.size()) + wanted.back()) * size);
  Acc* partial = mutable_data<Acc>(op, "partials", dots.partials);
  Acc* total = wanted.back() ? partial + static_cast<int64_t>(in.size()) * size : nullptr;
  // Sums of grad alone need a launch too.
  const size_t launches = in.empty() && wanted.back() ? 1 : in.size();
  for_each_launch(op, launches, [&](size_t k, int count) {
    return cuda::launch_norm_dots(
        tiles, grad, in.data() + k, means.data() + k, partial + static_cast<int64_t>(k) * size,
        k == 0 ? total : nullptr, in.empty() ? 0 : count, current_stream(like));
  });
  dots.partial = partial;
  dots.total = total;
  return dots;
}

std::vector<cuda::NormGradientOperand> backward_operands(const char* op,
                                                         const std::vector<NormPlan>& plans,
                                                         const std::vector<int>& parts,
                                                         const std::vector<Tensor>& params,
                                                         const Contiguous& dense_params,
                                                         const std::vector<int64_t>& wanted_params,
                                                         std::vector<Tensor>& grad_params,
                                                         const std::vector<double>& eps) {
  std::vector<void*> places(params.size(), nullptr);
  for (size_t i = 0; i < wanted_params.size(); ++i) {
    places[static_cast<size_t>(wanted_params[i])] = grad_params[i].mutable_data_ptr();
  }
  std::vector<cuda::NormGradientOperand> operands(plans.size());
  for (size_t k = 0; k < plans.size(); ++k) {
    cuda::NormGradientOperand& operand = operands[k];
    operand.row = static_cast<int>(plans[k].norm);
    operand.part = parts[k];
    operand.uses_batch = plans[k].uses_batch();
    if (has_norm(plans[k].kind)) operand.eps = eps[static_cast<size_t>(plans[k].norm)];
    if (plans[k].param < 0) continue;
    const size_t param = static_cast<size_t>(plans[k].param);
    operand.gamma = dense_params.data(plans[k].param);
    operand.beta = dense_params.data(plans[k].param + 1);
    operand.grad_gamma = places[param];
    operand.grad_beta = places[param + 1];
    operand.gamma_type = number_type(op, "params", params[param]);
    operand.beta_type = number_type(op, "params", params[param + 1]);
  }
  return operands;
}

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> norm_mixed_sum_backward_cuda(
    const Tensor& grad,
    const std::vector<Tensor>& xs,
    const Tensor& weights,
    const std::vector<Tensor>& params,
    const Tensor& statistics,
    const std::vector<int64_t>& kinds,
    const std::vector<double>& eps,
    const std::vector<int64_t>& wanted_xs,
    bool wants_weights,
    const std::vector<int64_t>& wanted_params) {
  constexpr const char* op = "norm_mixed_sum_backward";
  const auto plans = plan_candidates(op, xs, weights, params, kinds, eps);
  check_norm_backward(op, grad, xs[0], statistics, eps, params, wanted_params);
  const DeviceGuard guard(weights.get_device_index());
  const cudaStream_t stream = current_stream(weights);
  const int64_t num_ops = static_cast<int64_t>(xs.size()), channels = xs[0].size(1);
  std::vector<Tensor> grad_xs = empty_gradients(op, xs[0], num_ops, wanted_xs), grad_params;
  Tensor grad_weights = torch::stable::new_empty(weights, {wants_weights ? num_ops : 0});
  for (int64_t param : wanted_params) {
    grad_params.push_back(torch::stable::new_empty(params[static_cast<size_t>(param)], {channels}));
  }
  const auto wanted = wanted_dots(plans, wanted_xs, wants_weights, wanted_params);
  const Tensor model = norm_backward_model(xs[0], grad_xs);
  const Tensor laid_out_grad = laid_out_like(model, grad);
  std::vector<Tensor> laid_out;
  for (size_t k = 0; k < xs.size(); ++k) {
    laid_out.push_back(wanted[k] ? laid_out_like(model, xs[k]) : xs[k]);
  }
  const Contiguous dense_params(params), dense({weights, statistics});
  check_dtype<double>(op, "statistics", statistics);
  const double* numbers = static_cast<const double*>(dense.data(1));
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    using Acc = math::acc_t<X>;
    const Y* g = const_data<Y>(op, "grad", laid_out_grad);
    const Y* w = static_cast<const Y*>(dense.data(0));
    auto in = pointers_of<X>(op, laid_out);
    const auto out = gradient_pointers<X>(op, num_ops, wanted_xs, grad_xs);
    const Shares shares(x_tag, DenseShape(model),
                        are_aligned(in) && are_aligned(out) && cuda::is_aligned(g));
    const NormTiles tiles = shares.adding();
    const auto dots = sum_dots(op, tiles, g, in, plans, numbers, wanted, weights);
    const auto operands = backward_operands(op, plans, dots.parts, params, dense_params,
                                            wanted_params, grad_params, eps);
    Tensor of_weights = scratch<double>(weights, wants_weights ? num_ops * channels : 0);
    double* of_weight =
        wants_weights ? mutable_data<double>(op, "of_weights", of_weights) : nullptr;
    // The gradient of a candidate reads it where its statistics depend on it.
    for (size_t k = 0; k < in.size(); ++k) {
      if (!plans[k].uses_batch()) in[k] = nullptr;
    }
    const bool scatters = !wanted_xs.empty() && shares.numel() > 0;
    for_each_launch(op, in.size(), [&](size_t k, int count) {
      Tensor tables =
          scratch<Acc>(weights, scatters ? 4 * count * cuda::norm_table_size(tiles) : 0);
      const cuda::NormGradientsLaunch<Acc> gradients{
          dots.partial,
          dots.total,
          operands.data() + k,
          w + k,
          number_type(op, "weights", weights),
          numbers,
          wants_weights ? of_weight + static_cast<int64_t>(k) * channels : nullptr,
          scatters ? mutable_data<Acc>(op, "tables", tables) : nullptr,
          count};
      check_launch(op, cuda::launch_norm_gradients(tiles, gradients, stream));
      if (!scatters) return cudaSuccess;
      return cuda::launch_norm_scatter<X, Y>(shares.elementwise(), g, in.data() + k,
                                             gradients.table, out.data() + k, count, stream);
    });
    if (wants_weights) {
      check_launch(op, cuda::launch_norm_weights(
                           of_weight, mutable_data<Y>(op, "grad_weights", grad_weights),
                           number_type(op, "weights", weights), num_ops, channels, stream));
    }
  });
  return {std::move(grad_xs), std::move(grad_weights), std::move(grad_params)};
}

}  // namespace
}  // namespace pfn

STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, PFN_CUDA_KEY, m) {
  m.impl("norm_mixed_sum", TORCH_BOX(&pfn::norm_mixed_sum_cuda));
  m.impl("norm_mixed_sum_backward", TORCH_BOX(&pfn::norm_mixed_sum_backward_cuda));
}

#endif
