#include <cstdint>

#include "cuda/block.h"
#include "cuda/list_launch.h"
#include "cuda/pack.h"
#include "cuda/vector_io.cuh"

namespace pfn::cuda {
namespace {

using math::acc_t;
using math::Segment;

constexpr int kWarps = kThreads / kWarpSize;

// The segments of one launch. A table in the memory of the device would hold all of them at once,
// but to fill it takes as many launches, or pinned memory that has to outlive the copy and every
// replay of a graph.
template <int kLists>
struct SegmentPack {
  static constexpr int kMost = list_segments(kLists);

  void* at[kLists][kMost];
  int64_t numel[kMost];
  int64_t first_tile[kMost];
  int64_t tiles;
  int count;

  // Packs the first of `left` segments; returns how many.
  int64_t take(const Segment* segments, int64_t left, int value_bytes) {
    count = static_cast<int>(left < kMost ? left : kMost);
    tiles = 0;
    for (int i = 0; i < count; ++i) {
      for (int list = 0; list < kLists; ++list) at[list][i] = segments[i].at[list];
      numel[i] = segments[i].numel;
      first_tile[i] = tiles;
      tiles += list_tiles(numel[i], value_bytes);
    }
    return count;
  }

  // Calls function(width, pointers, offset, left) for the vectors that a thread takes of a tile:
  // wide ones where all pointers allow it.
  template <typename T, typename Function>
  PFN_DEVICE void for_each_vector(int64_t tile, int thread, Function&& function) const {
    const int segment = list_segment_of(first_tile, count, tile);
    T* pointers[kLists];
    bool aligned = true;
#pragma unroll
    for (int list = 0; list < kLists; ++list) {
      pointers[list] = static_cast<T*>(at[list][segment]);
      aligned = aligned && reinterpret_cast<uintptr_t>(pointers[list]) % kVectorBytes == 0;
    }
    const int64_t here = tile - first_tile[segment], size = numel[segment];
    const auto with_width = [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      constexpr int kSteps = list_steps(kWidth, sizeof(T));
#pragma unroll 4
      for (int step = 0; step < kSteps; ++step) {
        const int64_t offset = list_offset(here, step, thread, kWidth, sizeof(T));
        if (offset < size) function(width, pointers, offset, size - offset);
      }
    };
    if (aligned) {
      with_width(std::integral_constant<int, vector_width<T>(true)>{});
    } else {
      with_width(std::integral_constant<int, 1>{});
    }
  }
};

PFN_DEVICE bool rests(const math::ScalarFactor&) { return false; }
PFN_DEVICE bool rests(const StateFactor& factor) { return math::cg_is_stopped(factor.state); }
PFN_DEVICE double value_of(const math::ScalarFactor& factor) { return math::factor_of(factor); }
PFN_DEVICE double value_of(const StateFactor& factor) { return factor.state[factor.number]; }

template <typename Pass, typename T, typename Factor>
struct ListPass {
  static constexpr int kThreads = cuda::kThreads;
  using Shared = NothingShared;

  SegmentPack<Pass::kLists> segments;
  Factor factor;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    if (rests(factor)) return;
    const auto a = static_cast<acc_t<T>>(value_of(factor));
    for (int64_t tile = block.x(); tile < segments.tiles; tile += block.blocks()) {
      segments.template for_each_vector<T>(
          tile, block.thread(), [&](auto width, T* const* at, int64_t offset, int64_t left) {
            constexpr int kWidth = decltype(width)::value;
            Values<T, kWidth> values[Pass::kLists];
#pragma unroll
            for (int list = Pass::kFirstRead; list < Pass::kLists; ++list) {
              values[list].load_up_to(at[list] + offset, left);
            }
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
              acc_t<T> wide[Pass::kLists];
#pragma unroll
              for (int list = Pass::kFirstRead; list < Pass::kLists; ++list) {
                wide[list] = math::widen(values[list].values[i]);
              }
              Pass::apply(wide, a);
#pragma unroll
              for (int list = 0; list < Pass::kStored; ++list) {
                math::narrow(wide[list], &values[list].values[i]);
              }
            }
#pragma unroll
            for (int list = 0; list < Pass::kStored; ++list) {
              values[list].store_up_to(at[list] + offset, left);
            }
          });
    }
  }
};

// The sum over a block in the order of its warps; thread 0 holds it.
struct BlockSum {
  double warps[kWarps];
};
PFN_DEVICE double block_sum(const Block& block, BlockSum& shared, double sum) {
  sum = warp_sum(block, sum);
  if (block.thread() % kWarpSize == 0) shared.warps[block.thread() / kWarpSize] = sum;
  block.sync();
  double total = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) total += shared.warps[warp];
  return total;
}

// Partial sums belong to tiles: the number of blocks changes no bit. Float64 throughout: a product
// of two floats is exact in it, and memory is slower still.
template <typename T>
struct ListDot {
  static constexpr int kThreads = cuda::kThreads;
  using Shared = BlockSum;

  SegmentPack<2> segments;
  double* partial;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    for (int64_t tile = block.x(); tile < segments.tiles; tile += block.blocks()) {
      double sum = 0.0;
      segments.for_each_vector<T>(tile, block.thread(),
                                  [&](auto width, T* const* at, int64_t offset, int64_t left) {
                                    constexpr int kWidth = decltype(width)::value;
                                    Values<T, kWidth> x, y;
                                    x.load_up_to(at[0] + offset, left);
                                    y.load_up_to(at[1] + offset, left);
#pragma unroll
                                    for (int i = 0; i < kWidth; ++i) {
                                      sum += static_cast<double>(math::widen(x.values[i])) *
                                             static_cast<double>(math::widen(y.values[i]));
                                    }
                                  });
      sum = block_sum(block, shared, sum);
      if (block.thread() == 0) partial[tile] = sum;
      block.sync();
    }
  }
};

// One block adds all partial sums up.
template <typename Take>
struct ListMerge {
  static constexpr int kThreads = cuda::kThreads;
  using Shared = BlockSum;

  const double* partial;
  int64_t partials;
  Take take;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    double sum = 0.0;
    for (int64_t i = block.thread(); i < partials; i += kThreads) sum += partial[i];
    sum = block_sum(block, shared, sum);
    if (block.thread() == 0) take(sum);
  }
};

template <typename Out>
struct TakeFinished {
  math::Finish finish;
  double radius;
  Out* out;
  PFN_DEVICE void operator()(double sum) const {
    *out = static_cast<Out>(math::finished(sum, finish, radius));
  }
};

struct TakeForCg {
  bool is_curvature;
  double* state;
  PFN_DEVICE void operator()(double sum) const {
    if (is_curvature) {
      math::cg_take_curvature(sum, state);
    } else {
      math::cg_take_residual(sum, state);
    }
  }
};

template <typename Pass, typename T, typename Factor>
cudaError_t launch_passes(const Segment* segments,
                          int64_t count,
                          const Factor& factor,
                          cudaStream_t stream) {
  for (int64_t first = 0; first < count;) {
    ListPass<Pass, T, Factor> kernel;
    first += kernel.segments.take(segments + first, count - first, sizeof(T));
    kernel.factor = factor;
    const int64_t blocks = blocks_for(kernel.segments.tiles, 1, kMaxBlocks);
    const cudaError_t status_ = launch(kernel, blocks, 1, stream);
    if (status_ != cudaSuccess) return status_;
  }
  return cudaSuccess;
}

}  // namespace

template <typename Pass, typename T>
cudaError_t launch_list_pass(const Segment* segments,
                             int64_t count,
                             const math::ScalarFactor& factor,
                             cudaStream_t stream) {
  return launch_passes<Pass, T>(segments, count, factor, stream);
}

template <typename Pass, typename T>
cudaError_t launch_list_pass(const Segment* segments,
                             int64_t count,
                             const StateFactor& factor,
                             cudaStream_t stream) {
  return launch_passes<Pass, T>(segments, count, factor, stream);
}

int64_t list_partials(const Segment* segments, int64_t count, int value_bytes) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < count; ++i) tiles += list_tiles(segments[i].numel, value_bytes);
  return tiles;
}

template <typename T>
cudaError_t launch_list_dot(const Segment* segments,
                            int64_t count,
                            double* partial,
                            cudaStream_t stream) {
  for (int64_t first = 0; first < count;) {
    ListDot<T> kernel;
    first += kernel.segments.take(segments + first, count - first, sizeof(T));
    kernel.partial = partial;
    partial += kernel.segments.tiles;
    const int64_t blocks = blocks_for(kernel.segments.tiles, 1, kMaxBlocks);
    const cudaError_t status_ = launch(kernel, blocks, 1, stream);
    if (status_ != cudaSuccess) return status_;
  }
  return cudaSuccess;
}

template <typename Out>
cudaError_t launch_list_merge(const double* partial,
                              int64_t partials,
                              math::Finish finish,
                              double radius,
                              Out* out,
                              cudaStream_t stream) {
  const ListMerge<TakeFinished<Out>> kernel{partial, partials, {finish, radius, out}};
  return launch(kernel, 1, 1, stream);
}

cudaError_t launch_cg_merge(const double* partial,
                            int64_t partials,
                            bool is_curvature,
                            double* state,
                            cudaStream_t stream) {
  const ListMerge<TakeForCg> kernel{partial, partials, {is_curvature, state}};
  return launch(kernel, 1, 1, stream);
}

#define PFN_INSTANTIATE_PASS(Pass, Factor, T)                                                  \
  template cudaError_t launch_list_pass<math::Pass, T>(const Segment*, int64_t, const Factor&, \
                                                       cudaStream_t);
#define PFN_INSTANTIATE(T)                                    \
  PFN_INSTANTIATE_PASS(AxpyPass, math::ScalarFactor, T)       \
  PFN_INSTANTIATE_PASS(ScalePass, math::ScalarFactor, T)      \
  PFN_INSTANTIATE_PASS(PerturbPass, math::ScalarFactor, T)    \
  PFN_INSTANTIATE_PASS(DifferencePass, math::ScalarFactor, T) \
  PFN_INSTANTIATE_PASS(NeumannPass, math::ScalarFactor, T)    \
  PFN_INSTANTIATE_PASS(CgSolvePass, StateFactor, T)           \
  PFN_INSTANTIATE_PASS(CgDirectionPass, StateFactor, T)       \
  template cudaError_t launch_list_dot<T>(const Segment*, int64_t, double*, cudaStream_t);
PFN_INSTANTIATE(double)
PFN_INSTANTIATE(float)
PFN_INSTANTIATE(math::Half)
PFN_INSTANTIATE(math::BFloat16)
template cudaError_t launch_list_merge<float>(
    const double*, int64_t, math::Finish, double, float*, cudaStream_t);
template cudaError_t launch_list_merge<double>(
    const double*, int64_t, math::Finish, double, double*, cudaStream_t);

}  // namespace pfn::cuda
