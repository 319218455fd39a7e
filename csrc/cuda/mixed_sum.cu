#include <cstdint>

#include "cuda/launch.h"
#include "cuda/vector_io.cuh"

namespace pfn::cuda {
namespace {

using math::acc_t;
using math::kMaxCudaOps;

template <typename Pointer>
struct Pointers {
  Pointer at[kMaxCudaOps];
};

template <typename Pointer>
Pointers<Pointer> pack(const Pointer* pointers, int num_ops) {
  Pointers<Pointer> packed{};
  for (int k = 0; k < num_ops; ++k) packed.at[k] = pointers != nullptr ? pointers[k] : nullptr;
  return packed;
}

bool is_aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0;
}

// Candidates whose loads are in flight together.
constexpr int kGroup = 4;

template <int kWidth, typename X, typename W, typename Out>
__global__ void __launch_bounds__(kThreads)
    mixed_sum_kernel(const __grid_constant__ Pointers<const X*> xs,
                     const W* weights,
                     const acc_t<X>* start,
                     Out* out,
                     int num_ops,
                     int64_t numel) {
  using Acc = acc_t<X>;
  const int64_t num_tiles = divide_up(numel, forward_tile(kWidth));
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    const int64_t at = forward_offset(tile, static_cast<int>(threadIdx.x), kWidth);
    const int64_t left = numel - at;
    if (left <= 0) return;  // no later tile has anything for this thread either
    // Minus zero is the neutral element of a sum: with plus zero, -0 would come out as +0.
    Values<Acc, kWidth> sum;
    if (start != nullptr) {
      sum.load_up_to(start + at, left);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum.values[i] = -Acc{0};
    }
    for (int first = 0; first < num_ops; first += kGroup) {
      Values<X, kWidth> x[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if (first + j < num_ops) x[j].load_up_to(xs.at[first + j] + at, left);
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if (first + j < num_ops) {
          const Acc weight = math::widen(weights[first + j]);
#pragma unroll
          for (int i = 0; i < kWidth; ++i) sum.values[i] += weight * math::widen(x[j].values[i]);
        }
      }
    }
    Values<Out, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) math::narrow(sum.values[i], &result.values[i]);
    result.store_up_to(out + at, left);
  }
}

// One pass: each thread keeps its part of grad in registers while the candidates go by. Partial
// dots go from thread to warp by shuffles, from warp to block in the order of the warps: two passes
// in a fixed order rather than atomicAdd, so that grad_weights is bit-identical from run to run.
template <int kWidth, bool kDots, typename X, typename Y>
__global__ void __launch_bounds__(kThreads)
    mixed_sum_backward_kernel(const Y* grad,
                              const __grid_constant__ Pointers<const X*> xs,
                              const Y* weights,
                              const __grid_constant__ Pointers<X*> grad_xs,
                              acc_t<X>* partial,
                              int row_length,
                              int num_ops,
                              int64_t numel) {
  using Acc = acc_t<X>;
  constexpr int kWarps = kThreads / kWarpSize;
  __shared__ Acc sums[kWarps][kMaxCudaOps];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  if constexpr (kDots) {
    // Each warp clears and fills its own row, so it needs no barrier before the last.
    for (int k = lane; k < num_ops; k += kWarpSize) sums[warp][k] = Acc{0};
    __syncwarp();
  }
  const int64_t num_tiles = divide_up(numel, backward_tile(kWidth));
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    Values<Y, kWidth> g[kVectorsPerThread];
    int64_t at[kVectorsPerThread];
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
      at[v] = backward_offset(tile, thread, v, kWidth);
      g[v].load_up_to(grad + at[v], numel - at[v]);
    }
    for (int first = 0; first < num_ops; first += kGroup) {
      Values<X, kWidth> x[kGroup][kVectorsPerThread];
      if constexpr (kDots) {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
#pragma unroll
          for (int v = 0; v < kVectorsPerThread; ++v) {
            if (first + j < num_ops) {
              x[j][v].load_up_to(xs.at[first + j] + at[v], numel - at[v]);
            }
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const int k = first + j;
        if (k >= num_ops) break;
        if constexpr (kDots) {
          Acc dot{0};
#pragma unroll
          for (int v = 0; v < kVectorsPerThread; ++v) {
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
              dot += math::widen(g[v].values[i]) * math::widen(x[j][v].values[i]);
            }
          }
          dot = warp_sum(dot);
          if (lane == 0) sums[warp][k] += dot;
        }
        X* to = grad_xs.at[k];
        if (to == nullptr) continue;
        const Acc weight = math::widen(weights[k]);
#pragma unroll
        for (int v = 0; v < kVectorsPerThread; ++v) {
          Values<X, kWidth> result;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) {
            math::narrow(weight * math::widen(g[v].values[i]), &result.values[i]);
          }
          result.store_up_to(to + at[v], numel - at[v]);
        }
      }
    }
  }
  if constexpr (kDots) {
    __syncthreads();
    for (int k = thread; k < num_ops; k += kThreads) {
      Acc total{0};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total += sums[w][k];
      partial[static_cast<int64_t>(blockIdx.x) * row_length + k] = total;
    }
  }
}

// One block per candidate.
template <typename Acc, typename W>
__global__ void __launch_bounds__(kThreads)
    mixed_sum_merge_kernel(const Acc* partial, W* grad_weights, int64_t num_rows) {
  constexpr int kWarps = kThreads / kWarpSize;
  __shared__ double sums[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (int64_t row = thread; row < num_rows; row += kThreads) {
    sum += static_cast<double>(partial[row * gridDim.x + blockIdx.x]);
  }
  sum = warp_sum(sum);
  if (thread % kWarpSize == 0) sums[thread / kWarpSize] = sum;
  __syncthreads();
  if (thread == 0) {
    double total = 0.0;
    for (int w = 0; w < kWarps; ++w) total += sums[w];
    math::narrow(static_cast<acc_t<W>>(total), grad_weights + blockIdx.x);
  }
}

}  // namespace

template <typename X, typename W, typename Out>
cudaError_t launch_mixed_sum(const X* const* xs,
                             const W* weights,
                             const acc_t<X>* start,
                             Out* out,
                             int num_ops,
                             int64_t numel,
                             cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  bool aligned = is_aligned(start) && is_aligned(out);
  for (int k = 0; k < num_ops; ++k) aligned = aligned && is_aligned(xs[k]);
  constexpr int kWide = vector_width<X>(true);
  const int width = vector_width<X>(aligned);
  const auto blocks = static_cast<unsigned>(blocks_for(numel, forward_tile(width), kMaxBlocks));
  const auto packed = pack<const X*>(xs, num_ops);
  if (aligned) {
    mixed_sum_kernel<kWide>
        <<<blocks, kThreads, 0, stream>>>(packed, weights, start, out, num_ops, numel);
  } else {
    mixed_sum_kernel<1>
        <<<blocks, kThreads, 0, stream>>>(packed, weights, start, out, num_ops, numel);
  }
  return cudaGetLastError();
}

template <typename X, typename Y>
bool mixed_sum_backward_is_aligned(const Y* grad,
                                   const X* const* xs,
                                   X* const* grad_xs,
                                   int64_t num_ops) {
  bool aligned = is_aligned(grad);
  for (int64_t k = 0; k < num_ops; ++k) {
    aligned = aligned && is_aligned(xs[k]) && is_aligned(grad_xs[k]);
  }
  return aligned;
}

template <typename X, typename Y>
cudaError_t launch_mixed_sum_backward(const Y* grad,
                                      const X* const* xs,
                                      const Y* weights,
                                      X* const* grad_xs,
                                      acc_t<X>* partial,
                                      int row_length,
                                      int num_ops,
                                      int64_t numel,
                                      bool is_aligned,
                                      cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  constexpr int kWide = vector_width<X>(true);
  const auto blocks = static_cast<unsigned>(partial_rows<X>(numel, is_aligned));
  const auto from = pack<const X*>(xs, num_ops);
  const auto to = pack<X*>(grad_xs, num_ops);
  const auto launch = [&](auto kernel) {
    kernel<<<blocks, kThreads, 0, stream>>>(grad, from, weights, to, partial, row_length, num_ops,
                                            numel);
  };
  if (is_aligned && partial != nullptr) {
    launch(mixed_sum_backward_kernel<kWide, true, X, Y>);
  } else if (is_aligned) {
    launch(mixed_sum_backward_kernel<kWide, false, X, Y>);
  } else if (partial != nullptr) {
    launch(mixed_sum_backward_kernel<1, true, X, Y>);
  } else {
    launch(mixed_sum_backward_kernel<1, false, X, Y>);
  }
  return cudaGetLastError();
}

template <typename Acc, typename W>
cudaError_t launch_mixed_sum_merge(
    const Acc* partial, W* grad_weights, int64_t num_rows, int num_ops, cudaStream_t stream) {
  mixed_sum_merge_kernel<<<static_cast<unsigned>(num_ops), kThreads, 0, stream>>>(
      partial, grad_weights, num_rows);
  return cudaGetLastError();
}

#define PFN_INSTANTIATE_SUM(X, W, Out)                                                         \
  template cudaError_t launch_mixed_sum<X, W, Out>(const X* const*, const W*, const acc_t<X>*, \
                                                   Out*, int, int64_t, cudaStream_t);
#define PFN_INSTANTIATE(X, Y)                                                                   \
  PFN_INSTANTIATE_SUM(X, Y, Y)                                                                  \
  template bool mixed_sum_backward_is_aligned<X, Y>(const Y*, const X* const*, X* const*,       \
                                                    int64_t);                                   \
  template cudaError_t launch_mixed_sum_backward<X, Y>(const Y*, const X* const*, const Y*,     \
                                                       X* const*, acc_t<X>*, int, int, int64_t, \
                                                       bool, cudaStream_t);
PFN_INSTANTIATE(double, double)
PFN_INSTANTIATE(float, float)
PFN_INSTANTIATE(math::Half, math::Half)
PFN_INSTANTIATE(math::Half, float)
PFN_INSTANTIATE(math::BFloat16, math::BFloat16)
PFN_INSTANTIATE(math::BFloat16, float)
// More candidates than one launch takes leave an unrounded running sum between launches.
PFN_INSTANTIATE_SUM(math::Half, math::Half, float)
PFN_INSTANTIATE_SUM(math::BFloat16, math::BFloat16, float)

#define PFN_INSTANTIATE_MERGE(Acc, W) \
  template cudaError_t launch_mixed_sum_merge<Acc, W>(const Acc*, W*, int64_t, int, cudaStream_t);
PFN_INSTANTIATE_MERGE(double, double)
PFN_INSTANTIATE_MERGE(float, float)
PFN_INSTANTIATE_MERGE(float, math::Half)
PFN_INSTANTIATE_MERGE(float, math::BFloat16)

}  // namespace pfn::cuda
