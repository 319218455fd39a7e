// Registers mixed_sum and mixed_sum_backward for CPU and, in a CUDA build, for CUDA.
#include "cpu/mixed_sum.h"

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "cpu/pages.h"
#include "registration/mixed_args.h"

#ifdef PFN_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace pfn {
namespace {

// Blocks of elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 4;
int64_t count_blocks(int64_t numel) {
  return (numel + PFN_MIXED_SUM_BLOCK - 1) / PFN_MIXED_SUM_BLOCK;
}

// Candidates and weights, checked and brought to one layout; owns the copies that this took.
struct MixedArgs {
  std::vector<Tensor> xs;
  Tensor weights;
  Tensor model;  // a dense tensor in the layout that outputs and candidates share

  int64_t num_ops() const { return static_cast<int64_t>(xs.size()); }

  template <typename X>
  std::vector<const X*> pointers(const char* op) const {
    std::vector<const X*> pointers;
    pointers.reserve(xs.size());
    for (const Tensor& x : xs) pointers.push_back(const_data<X>(op, "xs", x));
    return pointers;
  }
};

MixedArgs check_mixed_args(const char* op,
                           const std::vector<Tensor>& xs,
                           const Tensor& weights,
                           const Tensor& model,
                           bool reads_xs) {
  check(!xs.empty(), op, ": xs must hold at least one candidate, got 0");
  check(weights.dim() == 1 && weights.size(0) == static_cast<int64_t>(xs.size()), op,
        ": weights must hold one number for each of the ", xs.size(), " candidates");
  MixedArgs args{{}, weights, model};
  args.xs.reserve(xs.size());
  // The index of the CPU is -1, so this tells kinds of devices apart as well.
  const auto device = weights.get_device_index();
  for (const Tensor& x : xs) {
    check(same_shape(x, model), op, ": xs must be of one shape");
    check(x.get_device_index() == device, op, ": xs and weights must be on one device");
    args.xs.push_back(reads_xs ? laid_out_like(model, x) : x);
  }
  return args;
}

template <typename W>
std::vector<math::acc_t<W>> read_weights(const char* op, const Tensor& weights) {
  const W* data = const_data<W>(op, "weights", weights);
  const int64_t count = weights.size(0), stride = weights.stride(0);
  std::vector<math::acc_t<W>> wide(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k) wide[static_cast<size_t>(k)] = math::widen(data[k * stride]);
  return wide;
}

Tensor mixed_sum_cpu(const std::vector<Tensor>& xs, const Tensor& weights) {
  constexpr const char* op = "mixed_sum";
  check(!xs.empty(), op, ": xs must hold at least one candidate, got 0");
  Tensor y = empty_like(xs[0], weights);
  const MixedArgs args = check_mixed_args(op, xs, weights, y, /*reads_xs=*/true);
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    const auto in = args.pointers<X>(op);
    const auto w = read_weights<Y>(op, weights);
    Y* out = mutable_data<Y>(op, "y", y);
    // Whole blocks for each thread: an element then takes the same path, whole vector or tail, for
    // any number of threads. The two may round differently.
    const int64_t numel = y.numel();
    torch::stable::parallel_for(0, count_blocks(numel), kGrain, [&](int64_t first, int64_t last) {
      const int64_t begin = first * PFN_MIXED_SUM_BLOCK;
      const int64_t end = std::min(last * PFN_MIXED_SUM_BLOCK, numel);
      cpu::back_with_memory(out + begin, static_cast<size_t>(end - begin) * sizeof(Y));
      PFN_CPU_CALL(mixed_sum, in.data(), w.data(), out, args.num_ops(), begin, end);
    });
  });
  return y;
}

// The gradient of the weights: per-block dot products added up in the order of the blocks.
template <typename W>
void merge_dots(const std::vector<double>& dots, int64_t num_blocks, int64_t num_ops, W* out) {
  for (int64_t k = 0; k < num_ops; ++k) {
    double sum = 0.0;
    for (int64_t block = 0; block < num_blocks; ++block) {
      sum += dots[static_cast<size_t>(block * num_ops + k)];
    }
    math::narrow(static_cast<math::acc_t<W>>(sum), out + k);
  }
}

std::tuple<std::vector<Tensor>, Tensor> mixed_sum_backward_cpu(const Tensor& grad,
                                                               const std::vector<Tensor>& xs,
                                                               const Tensor& weights,
                                                               const std::vector<int64_t>& wanted,
                                                               bool wants_weights) {
  constexpr const char* op = "mixed_sum_backward";
  check(!xs.empty(), op, ": xs must hold at least one candidate, got 0");
  const int64_t num_ops = static_cast<int64_t>(xs.size());
  std::vector<Tensor> grads = empty_gradients(op, xs[0], num_ops, wanted);
  Tensor grad_weights = torch::stable::new_empty(weights, {wants_weights ? num_ops : 0});
  const Tensor model = backward_model(xs[0], grads);
  const MixedArgs args = check_mixed_args(op, xs, weights, model, wants_weights);
  check(same_shape(grad, model), op, ": grad must have the shape of xs");
  check(grad.get_device_index() == weights.get_device_index(), op,
        ": grad and weights must be on one device");
  const Tensor laid_out_grad = laid_out_like(model, grad);
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    const Y* g = const_data<Y>(op, "grad", laid_out_grad);
    const auto in = args.pointers<X>(op);
    const auto w = read_weights<Y>(op, weights);
    const auto out = gradient_pointers<X>(op, num_ops, wanted, grads);
    const int64_t numel = model.numel();
    const int64_t num_blocks = count_blocks(numel);
    std::vector<double> dots(static_cast<size_t>(wants_weights ? num_blocks * num_ops : 0));
    double* dots_data = wants_weights ? dots.data() : nullptr;
    const int64_t out_bytes = numel * static_cast<int64_t>(wanted.size() * sizeof(X));
    torch::stable::parallel_for(0, num_blocks, kGrain, [&](int64_t first, int64_t last) {
      const int64_t begin = first * PFN_MIXED_SUM_BLOCK;
      const int64_t end = std::min(last * PFN_MIXED_SUM_BLOCK, numel);
      for (X* to : out) {
        if (to != nullptr) {
          cpu::back_with_memory(to + begin, static_cast<size_t>(end - begin) * sizeof(X));
        }
      }
      PFN_CPU_CALL(mixed_sum_backward, g, in.data(), w.data(), out.data(), dots_data, num_ops,
                   numel, first, last, out_bytes >= kStreamBytes);
    });
    if (wants_weights) {
      merge_dots(dots, num_blocks, num_ops, mutable_data<Y>(op, "grad_weights", grad_weights));
    }
  });
  return {std::move(grads), std::move(grad_weights)};
}

#ifdef PFN_WITH_CUDA
Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor mixed_sum_cuda(const std::vector<Tensor>& xs, const Tensor& weights) {
  constexpr const char* op = "mixed_sum";
  check(!xs.empty(), op, ": xs must hold at least one candidate, got 0");
  const DeviceGuard guard(weights.get_device_index());
  Tensor y = empty_like(xs[0], weights);
  const MixedArgs args = check_mixed_args(op, xs, weights, y, /*reads_xs=*/true);
  const Tensor dense_weights = dense(weights);
  const cudaStream_t stream = current_stream(weights);
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    using Acc = math::acc_t<X>;
    const auto in = args.pointers<X>(op);
    const Y* w = const_data<Y>(op, "weights", dense_weights);
    Y* out = mutable_data<Y>(op, "y", y);
    const int64_t numel = y.numel();
    // One launch takes kMaxCudaOps candidates; more leave their running sum unrounded between.
    const bool needs_scratch = args.num_ops() > math::kMaxCudaOps && sizeof(Y) < sizeof(Acc);
    const Tensor running = needs_scratch ? scratch<Acc>(weights, numel) : y;
    Acc* sum = args.num_ops() > math::kMaxCudaOps ? mutable_data<Acc>(op, "y", running) : nullptr;
    for (int64_t k = 0; k < args.num_ops(); k += math::kMaxCudaOps) {
      const int count = static_cast<int>(std::min<int64_t>(args.num_ops() - k, math::kMaxCudaOps));
      const bool is_last = k + count == args.num_ops();
      const Acc* start = k > 0 ? sum : nullptr;
      check_launch(
          op, is_last
                  ? cuda::launch_mixed_sum(in.data() + k, w + k, start, out, count, numel, stream)
                  : cuda::launch_mixed_sum(in.data() + k, w + k, start, sum, count, numel, stream));
    }
  });
  return y;
}

std::tuple<std::vector<Tensor>, Tensor> mixed_sum_backward_cuda(const Tensor& grad,
                                                                const std::vector<Tensor>& xs,
                                                                const Tensor& weights,
                                                                const std::vector<int64_t>& wanted,
                                                                bool wants_weights) {
  constexpr const char* op = "mixed_sum_backward";
  check(!xs.empty(), op, ": xs must hold at least one candidate, got 0");
  const DeviceGuard guard(weights.get_device_index());
  const int64_t num_ops = static_cast<int64_t>(xs.size());
  std::vector<Tensor> grads = empty_gradients(op, xs[0], num_ops, wanted);
  Tensor grad_weights = torch::stable::new_empty(weights, {wants_weights ? num_ops : 0});
  const Tensor model = backward_model(xs[0], grads);
  const MixedArgs args = check_mixed_args(op, xs, weights, model, wants_weights);
  check(same_shape(grad, model), op, ": grad must have the shape of xs");
  check(grad.get_device_index() == weights.get_device_index(), op,
        ": grad and weights must be on one device");
  const Tensor laid_out_grad = laid_out_like(model, grad);
  const Tensor dense_weights = dense(weights);
  const cudaStream_t stream = current_stream(weights);
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    using Acc = math::acc_t<X>;
    const Y* g = const_data<Y>(op, "grad", laid_out_grad);
    const Y* w = const_data<Y>(op, "weights", dense_weights);
    const auto in = args.pointers<X>(op);
    const auto out = gradient_pointers<X>(op, num_ops, wanted, grads);
    const int64_t numel = model.numel();
    const bool is_aligned = cuda::mixed_sum_backward_is_aligned(g, in.data(), out.data(), num_ops);
    const int64_t rows = cuda::partial_rows<X>(numel, is_aligned);
    const Tensor partials = scratch<Acc>(weights, wants_weights ? rows * num_ops : 0);
    Acc* partial = wants_weights ? mutable_data<Acc>(op, "partials", partials) : nullptr;
    for (int64_t k = 0; k < num_ops; k += math::kMaxCudaOps) {
      const int count = static_cast<int>(std::min<int64_t>(num_ops - k, math::kMaxCudaOps));
      check_launch(op, cuda::launch_mixed_sum_backward(g, in.data() + k, w + k, out.data() + k,
                                                       wants_weights ? partial + k : nullptr,
                                                       static_cast<int>(num_ops), count, numel,
                                                       is_aligned, stream));
    }
    if (wants_weights) {
      check_launch(
          op, cuda::launch_mixed_sum_merge(static_cast<const Acc*>(partial),
                                           mutable_data<Y>(op, "grad_weights", grad_weights), rows,
                                           static_cast<int>(num_ops), stream));
    }
  });
  return {std::move(grads), std::move(grad_weights)};
}
#endif

}  // namespace
}  // namespace pfn

#ifndef PFN_TWIN
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) {
  m.impl("mixed_sum", TORCH_BOX(&pfn::mixed_sum_cpu));
  m.impl("mixed_sum_backward", TORCH_BOX(&pfn::mixed_sum_backward_cpu));
}
#endif

#ifdef PFN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, PFN_CUDA_KEY, m) {
  m.impl("mixed_sum", TORCH_BOX(&pfn::mixed_sum_cuda));
  m.impl("mixed_sum_backward", TORCH_BOX(&pfn::mixed_sum_backward_cuda));
}
#endif
