// Registers subset_weights and subset_weights_backward for CPU and, in a CUDA build, for CUDA.
#include "cpu/subset_weights.h"

#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>

#include "math/limits.h"
#include "math/softmax.h"
#include "registration/matrix_args.h"

#ifdef PFN_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace pfn {
namespace {

// Checked inputs of both, contiguous.
struct SubsetInputs {
  Tensor keys;     // [rows, columns]
  Tensor indices;  // [rows, k]
  int64_t rows;
  int64_t columns;
  int64_t k;

  SubsetInputs(const char* op, const Tensor& raw_keys, const Tensor& raw_indices, double tau)
      : keys(packed(raw_keys)), indices(packed(raw_indices)) {
    check(keys.dim() == 2 && indices.dim() == 2 && keys.size(0) == indices.size(0) &&
              keys.size(1) >= 1 && keys.size(1) <= math::kMaxCandidates,
          op, ": keys and indices must be matrices of as many rows");
    rows = keys.size(0);
    columns = keys.size(1);
    k = indices.size(1);
    check(k >= 1 && k <= columns, op, ": indices must have between 1 and ", columns, " columns");
    check(holds<int64_t>(indices), op, ": indices must have dtype int64");
    check(on_one_device(indices, keys), op, ": all tensors must be on one device");
    check(tau > 0 && std::isfinite(tau), op, ": tau must be positive and finite, got ", tau);
  }

  // A gradient of the weights, contiguous.
  Tensor checked(const char* op, const Tensor& raw_grad_weights) const {
    Tensor grad_weights = packed(raw_grad_weights);
    check(same_shape(grad_weights, indices), op, ": grad_weights must have the shape of indices");
    check(dtype_code(grad_weights) == dtype_code(keys), op,
          ": grad_weights must have the dtype of keys");
    check(on_one_device(grad_weights, keys), op, ": all tensors must be on one device");
    return grad_weights;
  }

  template <typename T>
  cpu::SubsetArgs<T> on_cpu(double tau) const {
    return {static_cast<const T*>(keys.const_data_ptr()),
            static_cast<const int64_t*>(indices.const_data_ptr()), columns, k,
            math::inverse_tau(tau, T{})};
  }

#ifdef PFN_WITH_CUDA
  template <typename T>
  cuda::SubsetLaunch<T> on_cuda(double tau, Tensor& scratch) const {
    return {static_cast<const T*>(keys.const_data_ptr()),
            static_cast<const int64_t*>(indices.const_data_ptr()),
            static_cast<T*>(scratch.mutable_data_ptr()),
            rows,
            columns,
            k,
            math::inverse_tau(tau, T{})};
  }
#endif
};

// Runs call(scratch, ranks, first_row, last_row) on tasks of rows; it returns whether indices were
// columns.
template <typename T, typename Call>
void for_rows(const char* op, const SubsetInputs& in, const Call& call) {
  std::atomic<bool> valid{true};
  torch::stable::parallel_for(
      0, in.rows, rows_per_task(in.columns * in.k), [&](int64_t first_row, int64_t last_row) {
        std::unique_ptr<T[]> scratch(new T[static_cast<size_t>(in.columns)]);
        std::unique_ptr<math::SubsetRank<T>[]> ranks(
            new math::SubsetRank<T>[static_cast<size_t>(in.k)]);
        if (!call(scratch.get(), ranks.get(), first_row, last_row)) {
          valid.store(false, std::memory_order_relaxed);
        }
      });
  check(valid.load(), op, ": indices must be columns of keys");
}

Tensor subset_weights_cpu(const Tensor& keys, const Tensor& indices, double tau) {
  constexpr const char* op = "subset_weights";
  const SubsetInputs in(op, keys, indices, tau);
  Tensor weights = empty_matrix(in.keys, in.rows, in.k);
  dispatch_keys(op, in.keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const cpu::SubsetArgs<T> args = in.on_cpu<T>(tau);
    T* out = static_cast<T*>(weights.mutable_data_ptr());
    for_rows<T>(op, in, [&](T* scratch, math::SubsetRank<T>* ranks, int64_t first, int64_t last) {
      return PFN_CPU_CALL(subset_weights, args, out, scratch, ranks, first, last);
    });
  });
  return weights;
}

Tensor subset_weights_backward_cpu(const Tensor& raw_grad_weights,
                                   const Tensor& keys,
                                   const Tensor& indices,
                                   double tau) {
  constexpr const char* op = "subset_weights_backward";
  const SubsetInputs in(op, keys, indices, tau);
  const Tensor grad_weights = in.checked(op, raw_grad_weights);
  Tensor grad = empty_matrix(in.keys, in.rows, in.columns);
  dispatch_keys(op, in.keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const cpu::SubsetArgs<T> args = in.on_cpu<T>(tau);
    const T* from = static_cast<const T*>(grad_weights.const_data_ptr());
    T* out = static_cast<T*>(grad.mutable_data_ptr());
    for_rows<T>(op, in, [&](T* scratch, math::SubsetRank<T>* ranks, int64_t first, int64_t last) {
      return PFN_CPU_CALL(subset_weights_backward, args, from, out, scratch, ranks, first, last);
    });
  });
  return grad;
}

#ifdef PFN_WITH_CUDA
Tensor subset_weights_cuda(const Tensor& keys, const Tensor& indices, double tau) {
  constexpr const char* op = "subset_weights";
  const SubsetInputs in(op, keys, indices, tau);
  const DeviceGuard guard(keys.get_device_index());
  Tensor weights = empty_matrix(in.keys, in.rows, in.k);
  Tensor scratch = empty_matrix(in.keys, in.rows, in.columns);
  dispatch_keys(op, in.keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    check_launch(op, cuda::launch_subset_weights(in.on_cuda<T>(tau, scratch),
                                                 static_cast<T*>(weights.mutable_data_ptr()),
                                                 current_stream(keys)));
  });
  return weights;
}

Tensor subset_weights_backward_cuda(const Tensor& raw_grad_weights,
                                    const Tensor& keys,
                                    const Tensor& indices,
                                    double tau) {
  constexpr const char* op = "subset_weights_backward";
  const SubsetInputs in(op, keys, indices, tau);
  const Tensor grad_weights = in.checked(op, raw_grad_weights);
  const DeviceGuard guard(keys.get_device_index());
  Tensor grad = empty_matrix(in.keys, in.rows, in.columns);
  Tensor scratch = empty_matrix(in.keys, in.rows, in.columns);
  // A rank takes as much memory as three numbers.
  Tensor ranks = empty_matrix(in.keys, in.rows, 3 * in.k);
  dispatch_keys(op, in.keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Rank = math::SubsetRank<T>;
    static_assert(sizeof(Rank) == 3 * sizeof(T));
    check_launch(
        op, cuda::launch_subset_weights_backward(
                in.on_cuda<T>(tau, scratch), static_cast<const T*>(grad_weights.const_data_ptr()),
                static_cast<Rank*>(ranks.mutable_data_ptr()),
                static_cast<T*>(grad.mutable_data_ptr()), current_stream(keys)));
  });
  return grad;
}
#endif

}  // namespace
}  // namespace pfn

#ifndef PFN_TWIN
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) {
  m.impl("subset_weights", TORCH_BOX(&pfn::subset_weights_cpu));
  m.impl("subset_weights_backward", TORCH_BOX(&pfn::subset_weights_backward_cpu));
}
#endif

#ifdef PFN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, PFN_CUDA_KEY, m) {
  m.impl("subset_weights", TORCH_BOX(&pfn::subset_weights_cuda));
  m.impl("subset_weights_backward", TORCH_BOX(&pfn::subset_weights_backward_cuda));
}
#endif
