// Every launch_* function: the bridge that registration/ includes. They launch on the given stream,
// return cudaGetLastError(), do nothing for no elements and allocate nothing.
#pragma once

#include <cstdint>

#include "cuda/geometry.h"
#include "cuda/runtime.h"
#include "math/accumulate.h"
#include "math/limits.h"
#include "math/subset.h"
#include "node/node.h"

namespace pfn::cuda {

// ---- mixed_sum
// -----------------------------------------------------------------------------------

// out[i] = start[i] + sum_k weights[k] * xs[k][i], accumulated in acc_t<X>. One launch for at most
// kMaxCudaOps candidates: their pointers travel in the parameter block.
template <typename X, typename W, typename Out>
cudaError_t launch_mixed_sum(const X* const* xs,           // [num_ops] host array of [numel]
                             const W* weights,             // [num_ops]
                             const math::acc_t<X>* start,  // [numel], or null for zero
                             Out* out,                     // [numel]
                             int num_ops,
                             int64_t numel,
                             cudaStream_t stream);

// Whether the backward may move 16 bytes at a time: all its pointers allow it.
template <typename X, typename Y>
bool mixed_sum_backward_is_aligned(const Y* grad,
                                   const X* const* xs,
                                   X* const* grad_xs,
                                   int64_t num_ops);

// grad_xs[k][i] = weights[k] * grad[i] where grad_xs[k] is not null, and the partial dot products
// <grad, xs[k]> of each block where partial is not null. At most kMaxCudaOps candidates a launch.
template <typename X, typename Y>
cudaError_t launch_mixed_sum_backward(
    const Y* grad,            // [numel]
    const X* const* xs,       // [num_ops] host array of [numel]
    const Y* weights,         // [num_ops]
    X* const* grad_xs,        // [num_ops] host array, or null
    math::acc_t<X>* partial,  // [partial_rows, row_length] or null
    int row_length,
    int num_ops,
    int64_t numel,
    bool is_aligned,
    cudaStream_t stream);

// grad_weights[k] = sum of column k of partial, in double and in a fixed order.
template <typename Acc, typename W>
cudaError_t launch_mixed_sum_merge(const Acc* partial,  // [num_rows, num_ops]
                                   W* grad_weights,     // [num_ops]
                                   int64_t num_rows,
                                   int num_ops,
                                   cudaStream_t stream);

// ---- gumbel_topk
// ---------------------------------------------------------------------------------

// Keys of type T, float or double.
template <typename T>
struct GumbelTopkLaunch {
  const T* logits;      // [rows, columns]
  const T* noise;       // [rows, columns], null to draw it
  const int64_t* seed;  // seed[0] and seed[seed_stride]: seed and offset, on the device
  int64_t seed_stride;
  T* weights;        // [rows, k]
  int64_t* indices;  // [rows, k]; -1 in a row that cannot be sampled
  T* keys;           // [rows, columns]; may be null where samples_in_registers(columns, k)
  int* flag;         // set to 1 when a row cannot be sampled
  int64_t rows;
  int64_t columns;
  int64_t k;
  T inv_tau;
  bool conditional;
};

template <typename T>
struct GumbelTopkBackwardLaunch {
  const T* grad_weights;   // [rows, k]
  const T* keys;           // [rows, columns]
  const int64_t* indices;  // [rows, k]
  T* grad;                 // [rows, columns]
  int64_t rows;
  int64_t columns;
  int64_t k;
  T inv_tau;
  bool conditional;
};

template <typename T>
cudaError_t launch_gumbel_topk(const GumbelTopkLaunch<T>& args, cudaStream_t stream);

template <typename T>
cudaError_t launch_gumbel_topk_backward(const GumbelTopkBackwardLaunch<T>& args,
                                        cudaStream_t stream);

cudaError_t launch_philox_uniform(const int64_t* seed,  // seed[0] and seed[seed_stride]
                                  int64_t seed_stride,
                                  int stream_number,
                                  int64_t first_row,
                                  int64_t rows,
                                  int64_t columns,
                                  float* out,  // [rows, columns]
                                  cudaStream_t stream);

// ---- subset_weights
// ------------------------------------------------------------------------------

template <typename T>
struct SubsetLaunch {
  const T* keys;           // [rows, columns]
  const int64_t* indices;  // [rows, k]; rows with an index of -1 get weights and gradients of 0
  T* scratch;              // [rows, columns]
  int64_t rows;
  int64_t columns;
  int64_t k;
  T inv_tau;
};

template <typename T>
cudaError_t launch_subset_weights(const SubsetLaunch<T>& args,
                                  T* weights,  // [rows, k]
                                  cudaStream_t stream);

template <typename T>
cudaError_t launch_subset_weights_backward(const SubsetLaunch<T>& args,
                                           const T* grad_weights,       // [rows, k]
                                           math::SubsetRank<T>* ranks,  // [rows, k], scratch
                                           T* grad,                     // [rows, columns]
                                           cudaStream_t stream);

// ---- fused_node
// ----------------------------------------------------------------------------------

// Nodes as node/node.h has them, with pointers to memory of the device; scratch of so many bytes is
// the caller's.
template <typename T>
int64_t fused_node_bytes(const node::Node<T>& node);

template <typename T>
cudaError_t launch_fused_node(const node::Node<T>& node,
                              const node::Images<T>& y,
                              void* memory,
                              cudaStream_t stream);

template <typename T>
int64_t fused_node_backward_bytes(const node::Node<T>& node);

template <typename T>
cudaError_t launch_fused_node_backward(const node::Node<T>& node,
                                       const node::Images<const T>& grad,
                                       math::acc_t<T>* grad_weights,  // [columns] or null
                                       void* memory,
                                       cudaStream_t stream);

}  // namespace pfn::cuda
