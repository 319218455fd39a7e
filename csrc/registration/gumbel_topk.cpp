// Registers gumbel_topk, gumbel_topk_backward and philox_uniform for CPU and, in a CUDA build, for
// CUDA.
#include "cpu/gumbel_topk.h"

#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

#include "math/limits.h"
#include "math/softmax.h"
#include "registration/matrix_args.h"

#ifdef PFN_WITH_CUDA
#include "cuda/gumbel_geometry.h"
#include "cuda/launch.h"
#endif

namespace pfn {
namespace {

void check_seed(const char* op, const Tensor& seed) {
  check(is_dense(seed) && holds<int64_t>(seed) && seed.dim() == 1 && seed.size(0) == 2, op,
        ": seed must be an int64 tensor [2], a seed and an offset");
}

math::PhiloxSeed read_seed(const Tensor& seed) {
  const int64_t* words = static_cast<const int64_t*>(seed.const_data_ptr());
  return math::philox_seed(words[0], words[seed.stride(0)]);
}

// What both devices check and prepare; all that Python would refuse is refused here too, because
// Python looks only at calls that failed.
struct SampleArgs {
  Tensor logits;                // [rows, columns], contiguous, float64 or float32
  std::optional<Tensor> noise;  // like logits
  int64_t rows;
  int64_t columns;

  SampleArgs(const char* op,
             const Tensor& raw_logits,
             int64_t k,
             double tau,
             const Tensor& seed,
             const std::optional<Tensor>& raw_noise)
      : logits(raw_logits) {
    check(is_dense(raw_logits) && (!raw_noise || is_dense(*raw_noise)), op,
          ": logits and noise must be dense strided tensors");
    check(raw_logits.dim() == 2, op, ": logits must have shape [num_edges, num_ops]");
    rows = raw_logits.size(0);
    columns = raw_logits.size(1);
    check(columns >= 1 && columns <= math::kMaxCandidates, op, ": num_ops must be between 1 and ",
          math::kMaxCandidates, ", got ", columns);
    check(rows < (int64_t{1} << 32), op, ": num_edges must be below 2^32, got ", rows);
    check(k >= 1 && k <= columns, op, ": k must be between 1 and num_ops=", columns, ", got ", k);
    check(tau > 0 && std::isfinite(tau), op,
          ": tau (the temperature) must be positive and finite, got ", tau);
    check_seed(op, seed);
    check(on_one_device(seed, raw_logits), op, ": seed must be on the device of logits");
    logits = in_key_dtype(op, raw_logits, raw_logits);
    if (raw_noise) {
      check(same_shape(*raw_noise, raw_logits), op, ": noise must have the shape of logits");
      check(on_one_device(*raw_noise, raw_logits), op, ": noise must be on the device of logits");
      noise = in_key_dtype(op, *raw_noise, logits);
    }
  }

  // Keys are float64 for float64 logits and float32 for all others.
  static Tensor in_key_dtype(const char* op, const Tensor& tensor, const Tensor& logits) {
    using torch::headeronly::ScalarType;
    const bool wide = holds<double>(logits);
    if (wide ? holds<double>(tensor) : holds<float>(tensor)) {
      return packed(tensor);
    }
    check(holds<float>(tensor) || holds<double>(tensor) || holds<math::Half>(tensor) ||
              holds<math::BFloat16>(tensor),
          op, ": logits and noise must have dtype float64, float32, bfloat16 or float16");
    return packed(torch::stable::to(tensor, wide ? ScalarType::Double : ScalarType::Float));
  }
};

std::tuple<Tensor, Tensor, Tensor> gumbel_topk_cpu(const Tensor& logits,
                                                   int64_t k,
                                                   double tau,
                                                   const Tensor& seed,
                                                   bool conditional,
                                                   bool keep_keys,
                                                   const std::optional<Tensor>& noise) {
  constexpr const char* op = "gumbel_topk";
  const SampleArgs in(op, logits, k, tau, seed, noise);
  Tensor weights = empty_matrix(in.logits, in.rows, k);
  Tensor indices = empty_matrix(in.logits, in.rows, k, code_of(TypeTag<int64_t>{}));
  Tensor keys = empty_matrix(in.logits, keep_keys ? in.rows : 0, in.columns);
  std::atomic<bool> usable{true};
  dispatch_keys(op, in.logits, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const cpu::GumbelTopkArgs<T> args{
        static_cast<const T*>(in.logits.const_data_ptr()),
        in.noise ? static_cast<const T*>(in.noise->const_data_ptr()) : nullptr,
        static_cast<T*>(weights.mutable_data_ptr()),
        static_cast<int64_t*>(indices.mutable_data_ptr()),
        keep_keys ? static_cast<T*>(keys.mutable_data_ptr()) : nullptr,
        in.columns,
        k,
        math::inverse_tau(tau, T{}),
        conditional,
        read_seed(seed)};
    const bool by_row = sizeof(T) == 8 || in.columns > cpu::kMaxLaneColumns;
    torch::stable::parallel_for(
        0, in.rows, rows_per_task(in.columns), [&](int64_t first_row, int64_t last_row) {
          std::unique_ptr<T[]> scratch;
          if (by_row) {
            scratch.reset(new T[static_cast<size_t>(cpu::gumbel_topk_scratch(in.columns, k))]);
          }
          if (!PFN_CPU_CALL(gumbel_topk, args, scratch.get(), first_row, last_row)) {
            usable.store(false, std::memory_order_relaxed);
          }
        });
  });
  check(usable.load(), op,
        ": logits must hold no NaN, no +inf and at least k unmasked candidates in each row");
  return {std::move(weights), std::move(indices), std::move(keys)};
}

// Checked inputs of the backward, contiguous.
struct BackwardArgs {
  Tensor grad_weights;
  Tensor keys;
  Tensor indices;

  BackwardArgs(const char* op,
               const Tensor& raw_grad_weights,
               const Tensor& raw_keys,
               const Tensor& raw_indices,
               double tau)
      : grad_weights(packed(raw_grad_weights)),
        keys(packed(raw_keys)),
        indices(packed(raw_indices)) {
    check(keys.dim() == 2 && indices.dim() == 2 && keys.size(0) == indices.size(0) &&
              keys.size(1) >= 1 && keys.size(1) <= math::kMaxCandidates,
          op, ": keys and indices must be matrices of as many rows");
    check(same_shape(grad_weights, indices), op, ": grad_weights must have the shape of indices");
    check(indices.size(1) >= 1, op, ": indices must have at least one column");
    check(holds<int64_t>(indices), op, ": indices must have dtype int64");
    check(dtype_code(grad_weights) == dtype_code(keys), op,
          ": grad_weights must have the dtype of keys");
    check(on_one_device(grad_weights, keys) && on_one_device(indices, keys), op,
          ": all tensors must be on one device");
    check(tau > 0 && std::isfinite(tau), op, ": tau must be positive and finite, got ", tau);
  }
};

Tensor gumbel_topk_backward_cpu(const Tensor& grad_weights,
                                const Tensor& keys,
                                const Tensor& indices,
                                double tau,
                                bool conditional) {
  constexpr const char* op = "gumbel_topk_backward";
  const BackwardArgs in(op, grad_weights, keys, indices, tau);
  const int64_t rows = in.keys.size(0), columns = in.keys.size(1);
  Tensor grad = empty_matrix(in.keys, rows, columns);
  std::atomic<bool> valid{true};
  dispatch_keys(op, in.keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const cpu::GumbelTopkBackwardArgs<T> args{
        static_cast<const T*>(in.grad_weights.const_data_ptr()),
        static_cast<const T*>(in.keys.const_data_ptr()),
        static_cast<const int64_t*>(in.indices.const_data_ptr()),
        static_cast<T*>(grad.mutable_data_ptr()),
        columns,
        in.indices.size(1),
        math::inverse_tau(tau, T{}),
        conditional};
    torch::stable::parallel_for(
        0, rows, rows_per_task(columns), [&](int64_t first_row, int64_t last_row) {
          if (!PFN_CPU_CALL(gumbel_topk_backward, args, first_row, last_row)) {
            valid.store(false, std::memory_order_relaxed);
          }
        });
  });
  check(valid.load(), op, ": indices must be columns of keys");
  return grad;
}

void check_block(const char* op,
                 const Tensor& seed,
                 int64_t first_row,
                 int64_t rows,
                 int64_t columns,
                 int64_t stream) {
  constexpr int64_t kRows = int64_t{1} << 32;
  check_seed(op, seed);
  check(first_row >= 0 && rows >= 0 && first_row <= kRows && rows <= kRows - first_row, op,
        ": first_row + rows must be between 0 and 2^32");
  check(columns >= 0 && columns <= (int64_t{1} << 26), op,
        ": columns must be between 0 and 2^26, got ", columns);
  check(stream >= 0 && stream < 256, op, ": stream must be between 0 and 255, got ", stream);
}

Tensor philox_uniform_cpu(
    const Tensor& seed, int64_t first_row, int64_t rows, int64_t columns, int64_t stream) {
  constexpr const char* op = "philox_uniform";
  check_block(op, seed, first_row, rows, columns, stream);
  Tensor out = empty_matrix(seed, rows, columns, code_of(TypeTag<float>{}));
  if (columns == 0) {
    return out;
  }
  const math::PhiloxSeed words = read_seed(seed);
  float* data = static_cast<float*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, rows_per_task(columns), [&](int64_t first, int64_t last) {
    PFN_CPU_CALL(philox_uniform, words, static_cast<int>(stream), columns, data + first * columns,
                 first_row + first, first_row + last);
  });
  return out;
}

#ifdef PFN_WITH_CUDA
// An integer that kernels of every device raise when a row cannot be sampled. It lives in memory of
// the host: looking at it waits for nothing, so a call sees what earlier calls have finished.
volatile int* refusal_flag() {
  static int* const flag = [] {
    void* memory = nullptr;
    check_launch("gumbel_topk",
                 cudaHostAlloc(&memory, sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped));
    return new (memory) int(0);
  }();
  return flag;
}

bool take_refusals() {
  volatile int* flag = refusal_flag();
  const bool raised = *flag != 0;
  *flag = 0;
  return raised;
}

void check_refusals(const char* op) {
  check(!take_refusals(), op, kLaunchesWait ? ": this call" : ": an earlier call on CUDA",
        " was given logits with NaN, +inf or fewer than k unmasked "
        "candidates in a row; its indices in that row are -1");
}

std::tuple<Tensor, Tensor, Tensor> gumbel_topk_cuda(const Tensor& logits,
                                                    int64_t k,
                                                    double tau,
                                                    const Tensor& seed,
                                                    bool conditional,
                                                    bool keep_keys,
                                                    const std::optional<Tensor>& noise) {
  constexpr const char* op = "gumbel_topk";
  const SampleArgs in(op, logits, k, tau, seed, noise);
  const DeviceGuard guard(logits.get_device_index());
  if (!kLaunchesWait) check_refusals(op);
  Tensor weights = empty_matrix(in.logits, in.rows, k);
  Tensor indices = empty_matrix(in.logits, in.rows, k, code_of(TypeTag<int64_t>{}));
  const bool needs_keys = keep_keys || !cuda::samples_in_registers(in.columns, k);
  Tensor keys = empty_matrix(in.logits, needs_keys ? in.rows : 0, in.columns);
  dispatch_keys(op, in.logits, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const cuda::GumbelTopkLaunch<T> args{
        static_cast<const T*>(in.logits.const_data_ptr()),
        in.noise ? static_cast<const T*>(in.noise->const_data_ptr()) : nullptr,
        static_cast<const int64_t*>(seed.const_data_ptr()),
        seed.stride(0),
        static_cast<T*>(weights.mutable_data_ptr()),
        static_cast<int64_t*>(indices.mutable_data_ptr()),
        needs_keys ? static_cast<T*>(keys.mutable_data_ptr()) : nullptr,
        const_cast<int*>(refusal_flag()),
        in.rows,
        in.columns,
        k,
        math::inverse_tau(tau, T{}),
        conditional};
    check_launch(op, cuda::launch_gumbel_topk(args, current_stream(logits)));
  });
  if (kLaunchesWait) check_refusals(op);
  if (needs_keys && !keep_keys) {
    keys = empty_matrix(in.logits, 0, in.columns);
  }
  return {std::move(weights), std::move(indices), std::move(keys)};
}

Tensor gumbel_topk_backward_cuda(const Tensor& grad_weights,
                                 const Tensor& keys,
                                 const Tensor& indices,
                                 double tau,
                                 bool conditional) {
  constexpr const char* op = "gumbel_topk_backward";
  const BackwardArgs in(op, grad_weights, keys, indices, tau);
  const DeviceGuard guard(keys.get_device_index());
  const int64_t rows = in.keys.size(0), columns = in.keys.size(1);
  Tensor grad = empty_matrix(in.keys, rows, columns);
  dispatch_keys(op, in.keys, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const cuda::GumbelTopkBackwardLaunch<T> args{
        static_cast<const T*>(in.grad_weights.const_data_ptr()),
        static_cast<const T*>(in.keys.const_data_ptr()),
        static_cast<const int64_t*>(in.indices.const_data_ptr()),
        static_cast<T*>(grad.mutable_data_ptr()),
        rows,
        columns,
        in.indices.size(1),
        math::inverse_tau(tau, T{}),
        conditional};
    check_launch(op, cuda::launch_gumbel_topk_backward(args, current_stream(keys)));
  });
  return grad;
}

Tensor philox_uniform_cuda(
    const Tensor& seed, int64_t first_row, int64_t rows, int64_t columns, int64_t stream) {
  constexpr const char* op = "philox_uniform";
  check_block(op, seed, first_row, rows, columns, stream);
  const DeviceGuard guard(seed.get_device_index());
  Tensor out = empty_matrix(seed, rows, columns, code_of(TypeTag<float>{}));
  check_launch(op, cuda::launch_philox_uniform(
                       static_cast<const int64_t*>(seed.const_data_ptr()), seed.stride(0),
                       static_cast<int>(stream), first_row, rows, columns,
                       static_cast<float*>(out.mutable_data_ptr()), current_stream(seed)));
  return out;
}
#endif

// Forgets that calls on CUDA have refused rows; returns whether any of those that are done has.
bool forget_refusals() {
#ifdef PFN_WITH_CUDA
  return take_refusals();
#else
  return false;
#endif
}

}  // namespace
}  // namespace pfn

STABLE_TORCH_LIBRARY_FRAGMENT(pyfast_nas, m) { m.def("forget_refusals() -> bool"); }

STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CompositeExplicitAutograd, m) {
  m.impl("forget_refusals", TORCH_BOX(&pfn::forget_refusals));
}

#ifndef PFN_TWIN
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) {
  m.impl("gumbel_topk", TORCH_BOX(&pfn::gumbel_topk_cpu));
  m.impl("gumbel_topk_backward", TORCH_BOX(&pfn::gumbel_topk_backward_cpu));
  m.impl("philox_uniform", TORCH_BOX(&pfn::philox_uniform_cpu));
}
#endif

#ifdef PFN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, PFN_CUDA_KEY, m) {
  m.impl("gumbel_topk", TORCH_BOX(&pfn::gumbel_topk_cuda));
  m.impl("gumbel_topk_backward", TORCH_BOX(&pfn::gumbel_topk_backward_cuda));
  m.impl("philox_uniform", TORCH_BOX(&pfn::philox_uniform_cuda));
}
#endif
