#include <cstdint>
#include <type_traits>

#include "cuda/block.h"
#include "cuda/launch.h"
#include "cuda/pack.h"
#include "cuda/vector_io.cuh"

namespace pfn::cuda {
namespace {

using math::acc_t;
using math::kMaxCudaOps;

// Candidates whose loads are in flight together.
constexpr int kGroup = 4;

template <int kWidth, typename X, typename W, typename Out>
struct MixedSum {
  static constexpr int kThreads = cuda::kThreads;
  using Shared = NothingShared;
  using Acc = acc_t<X>;

  Pack<const X*> xs;
  const W* weights;
  const Acc* start;
  Out* out;
  int num_ops;
  int64_t numel;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const int64_t num_tiles = divide_up(numel, forward_tile(kWidth));
    for (int64_t tile = block.x(); tile < num_tiles; tile += block.blocks()) {
      const int64_t at = forward_offset(tile, block.thread(), kWidth);
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
      for (int first = 0; first < num_ops; first += kGroup) add_group(first, at, left, sum);
      Values<Out, kWidth> result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) math::narrow(sum.values[i], &result.values[i]);
      result.store_up_to(out + at, left);
    }
  }

  PFN_DEVICE void add_group(int first, int64_t at, int64_t left, Values<Acc, kWidth>& sum) const {
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
};

// Partial dots of the warps of a block, where there are any.
template <typename Acc, bool kDots>
struct WarpDots {
  Acc sums[kThreads / kWarpSize][kMaxCudaOps];
};
template <typename Acc>
struct WarpDots<Acc, false> {};

// One pass: each thread keeps its part of grad in registers while the candidates go by. Partial
// dots go from thread to warp by shuffles, from warp to block in the order of the warps: two passes
// in a fixed order rather than atomicAdd, so that grad_weights is bit-identical from run to run.
template <int kWidth, bool kDots, typename X, typename Y>
struct MixedSumBackward {
  static constexpr int kThreads = cuda::kThreads;
  using Acc = acc_t<X>;
  using Shared = WarpDots<Acc, kDots>;

  const Y* grad;
  Pack<const X*> xs;
  const Y* weights;
  Pack<X*> grad_xs;
  Acc* partial;
  int row_length;
  int num_ops;
  int64_t numel;

  // A thread's part of grad and the places where its vectors begin.
  struct Part {
    Values<Y, kWidth> g[kVectorsPerThread];
    int64_t at[kVectorsPerThread];
  };

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    if constexpr (kDots) clear(block, shared);
    const int64_t num_tiles = divide_up(numel, backward_tile(kWidth));
    for (int64_t tile = block.x(); tile < num_tiles; tile += block.blocks()) {
      Part part;
#pragma unroll
      for (int v = 0; v < kVectorsPerThread; ++v) {
        part.at[v] = backward_offset(tile, block.thread(), v, kWidth);
        part.g[v].load_up_to(grad + part.at[v], numel - part.at[v]);
      }
      for (int first = 0; first < num_ops; first += kGroup) {
        pass_group(block, shared, first, part);
      }
    }
    if constexpr (kDots) write_dots(block, shared);
  }

  PFN_DEVICE void pass_group(const Block& block,
                             Shared& shared,
                             int first,
                             const Part& part) const {
    Values<X, kWidth> x[kGroup][kVectorsPerThread];
    if constexpr (kDots) {
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if (first + j < num_ops) {
#pragma unroll
          for (int v = 0; v < kVectorsPerThread; ++v) {
            x[j][v].load_up_to(xs.at[first + j] + part.at[v], numel - part.at[v]);
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int k = first + j;
      if (k >= num_ops) break;
      if constexpr (kDots) add_dot(block, shared, k, part, x[j]);
      X* to = grad_xs.at[k];
      if (to != nullptr) scatter(math::widen(weights[k]), part, to);
    }
  }

  PFN_DEVICE void add_dot(const Block& block,
                          Shared& shared,
                          int k,
                          const Part& part,
                          const Values<X, kWidth> (&x)[kVectorsPerThread]) const {
    Acc dot{0};
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        dot += math::widen(part.g[v].values[i]) * math::widen(x[v].values[i]);
      }
    }
    dot = warp_sum(block, dot);
    const int warp = block.thread() / kWarpSize, lane = block.thread() % kWarpSize;
    if (lane == 0) shared.sums[warp][k] += dot;
  }

  PFN_DEVICE void scatter(Acc weight, const Part& part, X* to) const {
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
      Values<X, kWidth> result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        math::narrow(weight * math::widen(part.g[v].values[i]), &result.values[i]);
      }
      result.store_up_to(to + part.at[v], numel - part.at[v]);
    }
  }

  // Each warp clears and fills its own row, so it needs no barrier before the last.
  PFN_DEVICE void clear(const Block& block, Shared& shared) const {
    const int warp = block.thread() / kWarpSize, lane = block.thread() % kWarpSize;
    for (int k = lane; k < num_ops; k += kWarpSize) shared.sums[warp][k] = Acc{0};
    block.sync_warp();
  }

  PFN_DEVICE void write_dots(const Block& block, const Shared& shared) const {
    block.sync();
    for (int k = block.thread(); k < num_ops; k += kThreads) {
      Acc total{0};
#pragma unroll
      for (int w = 0; w < kThreads / kWarpSize; ++w) total += shared.sums[w][k];
      partial[block.x() * row_length + k] = total;
    }
  }
};

// One block per candidate.
template <typename Acc, typename W>
struct MixedSumMerge {
  static constexpr int kThreads = cuda::kThreads;
  static constexpr int kWarps = kThreads / kWarpSize;
  struct Shared {
    double sums[kWarps];
  };

  const Acc* partial;
  W* grad_weights;
  int64_t num_rows;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const int thread = block.thread();
    double sum = 0.0;
    for (int64_t row = thread; row < num_rows; row += kThreads) {
      sum += static_cast<double>(partial[row * block.blocks() + block.x()]);
    }
    sum = warp_sum(block, sum);
    if (thread % kWarpSize == 0) shared.sums[thread / kWarpSize] = sum;
    block.sync();
    if (thread == 0) {
      double total = 0.0;
      for (int w = 0; w < kWarps; ++w) total += shared.sums[w];
      math::narrow(static_cast<acc_t<W>>(total), grad_weights + block.x());
    }
  }
};

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
  const int64_t blocks = blocks_for(numel, forward_tile(vector_width<X>(aligned)), kMaxBlocks);
  const auto packed = pack(xs, num_ops);
  const auto launch_in = [&](auto width) {
    const MixedSum<width(), X, W, Out> kernel{packed, weights, start, out, num_ops, numel};
    return launch(kernel, blocks, 1, stream);
  };
  return aligned ? launch_in(std::integral_constant<int, vector_width<X>(true)>{})
                 : launch_in(std::integral_constant<int, 1>{});
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
  const int64_t blocks = partial_rows<X>(numel, is_aligned);
  const auto from = pack(xs, num_ops);
  const auto to = pack(grad_xs, num_ops);
  const auto launch_in = [&](auto width, auto has_dots) {
    const MixedSumBackward<width(), has_dots(), X, Y> kernel{grad,    from,       weights, to,
                                                             partial, row_length, num_ops, numel};
    return launch(kernel, blocks, 1, stream);
  };
  const auto launch_with = [&](auto has_dots) {
    return is_aligned ? launch_in(std::integral_constant<int, vector_width<X>(true)>{}, has_dots)
                      : launch_in(std::integral_constant<int, 1>{}, has_dots);
  };
  return partial != nullptr ? launch_with(std::true_type{}) : launch_with(std::false_type{});
}

template <typename Acc, typename W>
cudaError_t launch_mixed_sum_merge(
    const Acc* partial, W* grad_weights, int64_t num_rows, int num_ops, cudaStream_t stream) {
  const MixedSumMerge<Acc, W> kernel{partial, grad_weights, num_rows};
  return launch(kernel, num_ops, 1, stream);
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
