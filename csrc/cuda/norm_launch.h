// The launches of norm_mixed_sum: arguments and functions that registration/ includes. Each takes
// at most kMaxCudaOps candidates; launch.h says what holds for all of them.
#pragma once

#include <cstdint>

#include "cuda/norm_geometry.h"
#include "cuda/runtime.h"
#include "math/accumulate.h"
#include "math/limits.h"

namespace pfn::cuda {

// The storage type of a small tensor that is read number by number.
enum class NumberType : uint8_t { float64, float32, float16, bfloat16 };

// What the merge of the statistics has to know of one candidate.
struct NormOperand {
  const void* gamma;  // [channels]; null for one
  const void* beta;   // [channels]; null for zero
  const void* mean;   // given mean [channels]; where var is null, the candidate itself, [numel]
  const void* var;    // given variance [channels]; null where the statistics are the batch's
  double eps;
  int row;   // of statistics, -1 for a candidate without norm
  int part;  // of the partial sums, -1 where there are none
  NumberType gamma_type, beta_type, mean_type, var_type;
};

// What the gradients of one candidate's small tensors are made of.
struct NormGradientOperand {
  const void* gamma;  // [channels]; null for one
  const void* beta;   // [channels]; null for zero
  void* grad_gamma;   // [channels]; null where it is not wanted
  void* grad_beta;    // likewise
  double eps;
  int row;   // of statistics, -1 for a candidate without norm
  int part;  // of the partial sums, -1 where there are none
  NumberType gamma_type, beta_type;
  bool uses_batch;  // for its statistics
};

// Sums over each part of the tensor for the statistics: for each candidate [2][pieces][entries],
// mean and sum of squared distances from it.
template <typename X>
cudaError_t launch_norm_statistics(const NormTiles& tiles,
                                   const X* const* xs,  // [num_ops] host array of [numel]
                                   double* partial,     // [num_ops, 2, pieces, entries]
                                   int num_ops,
                                   cudaStream_t stream);

// Statistics, and from them the coefficients of the sum: scale and mean of each candidate, then
// what is added.
template <typename X>
struct NormMergeLaunch {
  const double* partial;
  const NormOperand* operands;  // [num_ops] host array
  const void* weights;          // [num_ops]
  NumberType weights_type;
  double* statistics;     // [norms, 2, channels]
  math::acc_t<X>* table;  // [num_ops, 2, table size], then [table size]
  int num_ops;
};
template <typename X>
cudaError_t launch_norm_merge(const NormTiles& tiles,
                              const NormMergeLaunch<X>& args,
                              cudaStream_t stream);

// out = start + bias + sum_k scale_k * (xs[k] - mean_k) by that table.
template <typename X, typename Out>
cudaError_t launch_norm_sum(const NormTiles& tiles,
                            const X* const* xs,  // [num_ops] host array of [numel]
                            const math::acc_t<X>* table,
                            const math::acc_t<X>* start,  // [numel], or null for zero
                            Out* out,                     // [numel]
                            int num_ops,
                            cudaStream_t stream);

// partial[k] = sums of grad * (xs[k] - means[k]), the mean rounded to the accumulator's type, and
// behind them, where it is asked for, sums of grad.
template <typename X, typename Y>
cudaError_t launch_norm_dots(const NormTiles& tiles,
                             const Y* grad,               // [numel]
                             const X* const* xs,          // [num_ops] host array of [numel]
                             const double* const* means,  // [num_ops] of [channels], null for zero
                             math::acc_t<X>* partial,     // [num_ops, pieces, entries]
                             math::acc_t<X>* total,       // [pieces, entries] or null
                             int num_ops,
                             cudaStream_t stream);

// Gradients of scales and shifts where they are wanted, each channel's part of those of the
// weights, and the coefficients of launch_norm_scatter.
template <typename Acc>
struct NormGradientsLaunch {
  const Acc* partial;                   // as launch_norm_dots left it
  const Acc* total;                     // null where nothing needs it
  const NormGradientOperand* operands;  // [num_ops] host array
  const void* weights;                  // [num_ops]
  NumberType weights_type;
  const double* statistics;  // [norms, 2, channels]
  double* of_weights;        // [num_ops, channels], or null
  Acc* table;                // [num_ops, 4, table size]
  int num_ops;
};
template <typename Acc>
cudaError_t launch_norm_gradients(const NormTiles& tiles,
                                  const NormGradientsLaunch<Acc>& args,
                                  cudaStream_t stream);

// grad_weights[k] = sum of row k of of_weights.
cudaError_t launch_norm_weights(const double* of_weights,  // [num_ops, channels]
                                void* grad_weights,        // [num_ops]
                                NumberType type,
                                int64_t num_ops,
                                int64_t channels,
                                cudaStream_t stream);

// grad_xs[k] = scale * (grad + slope * (xs[k] - mean) + shift) where grad_xs[k] is not null; where
// xs[k] is null, scale * grad.
template <typename X, typename Y>
cudaError_t launch_norm_scatter(const NormTiles& tiles,
                                const Y* grad,                // [numel]
                                const X* const* xs,           // [num_ops] host array of [numel]
                                const math::acc_t<X>* table,  // that of launch_norm_gradients
                                X* const* grad_xs,            // [num_ops] host array of [numel]
                                int num_ops,
                                cudaStream_t stream);

}  // namespace pfn::cuda
