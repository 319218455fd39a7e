// The host's side of a fused node: what each kernel is told, and where in one piece of scratch
// everything lies that passes from one kernel to the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cuda/node/maps.h"
#include "cuda/node/norms.h"
#include "cuda/node/stage_backward.h"
#include "node/node.h"

namespace pfn::cuda {

// Deals out one piece of memory; without any it only counts.
class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <typename N>
  N* take(int64_t count) {
    constexpr int64_t kAlign = 256;
    N* place = memory_ != nullptr ? reinterpret_cast<N*>(memory_ + bytes_) : nullptr;
    bytes_ += divide_up(count * static_cast<int64_t>(sizeof(N)), kAlign) * kAlign;
    return place;
  }
  int64_t bytes() const { return bytes_; }

 private:
  unsigned char* memory_;
  int64_t bytes_ = 0;
};

// Launches one after the other until one fails.
class Queue {
 public:
  explicit Queue(cudaStream_t stream) : stream_(stream) {}

  template <typename Kernel>
  void run(const Kernel& kernel, int64_t x, int64_t y) {
    static_assert(sizeof(Kernel) <= 4096, "more than a parameter block holds");
    if (status_ == cudaSuccess) status_ = launch(kernel, x, y, stream_);
  }
  // Calls run(first, count) for groups of at most `most`.
  template <typename Run>
  static void in_groups(size_t count, size_t most, Run&& run) {
    for (size_t first = 0; first < count; first += most) run(first, std::min(most, count - first));
  }
  cudaError_t status() const { return status_; }

 private:
  cudaStream_t stream_;
  cudaError_t status_ = cudaSuccess;
};

template <typename T>
struct BranchPlan {
  using Acc = math::acc_t<T>;

  const node::Edge<T>* edge = nullptr;
  const node::Branch<Acc>* branch = nullptr;
  std::vector<StageUnit<T>> stages;
  std::vector<NormUnit<Acc>> norms;  // of each stage, or of the pool
  Acc* pooled = nullptr;             // [pixels, channels]
  // What the node sums, before the last norm.
  Map<T> last{};

  bool is_pool() const {
    return branch->kind == node::Kind::max_pool || branch->kind == node::Kind::mean_pool;
  }
  Selected selected() const { return Selected{branch->selected}; }
};

// The outputs of all branches, in forward and again in backward.
template <typename T>
class NodePlan {
 public:
  using Acc = math::acc_t<T>;

  // With known statistics none is measured.
  NodePlan(const node::Node<T>& node, bool is_known, Scratch& scratch)
      : sizes_{node.samples, static_cast<int>(node.channels), static_cast<int>(node.height),
               static_cast<int>(node.width)},
        node_(node),
        is_known_(is_known),
        uses_tensor_cores_(node.allow_tf32 && has_tf32()) {
    for (const node::Edge<T>& edge : node.edges) {
      for (const node::Branch<Acc>& branch : edge.branches) {
        branches_.push_back(plan(edge, branch, scratch));
      }
    }
  }

  const NodeSizes& sizes() const { return sizes_; }
  std::vector<BranchPlan<T>>& branches() { return branches_; }

  // A scratch map [pixels, channels].
  Acc* map(Scratch& scratch) const { return scratch.take<Acc>(numbers()); }
  Map<T> dense(const Acc* map) const {
    return {nullptr, map, numbers() / sizes_.samples, sizes_.channels};
  }
  static Map<T> own(const node::Images<const T>& images) {
    return {images.data, nullptr, images.sample, images.pixel};
  }
  int64_t numbers() const { return sizes_.pixels() * sizes_.channels; }
  int64_t map_blocks(int64_t count) const { return blocks_for(count, kMapThreads, kMaxBlocks); }

  void run_outputs(Queue& queue) {
    std::vector<StageUnit<T>> first, second;
    std::vector<NormUnit<Acc>> first_norms, second_norms;
    for (const BranchPlan<T>& plan : branches_) {
      if (!plan.stages.empty()) first.push_back(plan.stages[0]);
      if (plan.stages.size() == 2) second.push_back(plan.stages[1]);
      if (!plan.norms.empty()) first_norms.push_back(plan.norms[0]);
      if (plan.norms.size() == 2) second_norms.push_back(plan.norms[1]);
    }
    run_stages<StageForward>(queue, first);
    run_pools(queue);
    close(queue, first_norms);
    run_stages<StageForward>(queue, second);
    close(queue, second_norms);
  }

  // Runs StageForward or StageBelow over stages.
  template <template <typename, int, bool> class Kernel>
  void run_stages(Queue& queue, const std::vector<StageUnit<T>>& stages) const {
    constexpr bool is_below = std::is_same_v<Kernel<T, 16, false>, StageBelow<T, 16, false>>;
    Queue::in_groups(stages.size(), kUnits, [&](size_t begin, size_t count) {
      int most_channels = sizes_.channels;
      int64_t strips = make_strips(sizes_.samples, sizes_.height, sizes_.width).count;
      if (is_below) most_channels = 0;
      for (size_t u = begin; u < begin + count && is_below; ++u) {
        const StageUnit<T>& unit = stages[u];
        most_channels = std::max(most_channels, unit.z_channels());
        if (!unit.is_full) continue;
        strips = std::max(strips, make_strips(sizes_.samples, unit.in_height, unit.in_width).count);
      }
      with_tile(most_channels, [&](auto width, auto tensor) {
        constexpr int kC = decltype(width)::value;
        Kernel<T, kC, decltype(tensor)::value> kernel{};
        std::copy_n(stages.begin() + static_cast<std::ptrdiff_t>(begin), count, kernel.units.at);
        kernel.sizes = sizes_;
        kernel.pieces = (most_channels + kC - 1) / kC;
        queue.run(kernel, divide_up(strips, decltype(kernel)::Shape::kStrips),
                  static_cast<int64_t>(count) * kernel.pieces);
      });
    });
  }

  // Calls run with the channels of a tile, and whether tensor cores multiply it, as constants.
  template <typename Run>
  void with_tile(int channels, Run&& run) const {
    if (channels <= 16) {
      with_cores(std::integral_constant<int, 16>{}, run);
    } else if (channels <= 32) {
      with_cores(std::integral_constant<int, 32>{}, run);
    } else {
      with_cores(std::integral_constant<int, 64>{}, run);
    }
  }

 private:
  template <typename Width, typename Run>
  void with_cores(Width width, Run&& run) const {
    if constexpr (std::is_same_v<Acc, float>) {
      if (uses_tensor_cores_) return run(width, std::true_type{});
    }
    run(width, std::false_type{});
  }

  BranchPlan<T> plan(const node::Edge<T>& edge, const node::Branch<Acc>& branch, Scratch& scratch) {
    BranchPlan<T> plan;
    plan.edge = &edge;
    plan.branch = &branch;
    plan.last = own(edge.x);
    if (plan.is_pool()) {
      plan.pooled = map(scratch);
      plan.norms.push_back(norm(branch.norm, plan.pooled, plan.selected(), scratch));
      plan.last = dense(plan.pooled);
    }
    for (const node::Stage<Acc>& stage : branch.stages) {
      StageUnit<T> unit = stage_unit(edge, stage, plan.stages.empty());
      unit.selected = plan.selected();
      if (!plan.stages.empty()) {
        unit.input = plan.last;
        unit.norm = plan.norms.back().table;
      }
      unit.y = map(scratch);
      plan.norms.push_back(norm(stage.norm, unit.y, plan.selected(), scratch));
      plan.last = dense(unit.y);
      plan.stages.push_back(unit);
    }
    return plan;
  }

  StageUnit<T> stage_unit(const node::Edge<T>& edge, const node::Stage<Acc>& stage, bool is_first) {
    StageUnit<T> unit{};
    unit.input = own(edge.x);
    unit.in_height = is_first ? static_cast<int>(edge.height) : sizes_.height;
    unit.in_width = is_first ? static_cast<int>(edge.width) : sizes_.width;
    unit.in_channels = static_cast<int>(stage.in_channels);
    unit.size = stage.size > 0 ? static_cast<int>(stage.size) : 1;
    unit.dilation = stage.size > 0 ? static_cast<int>(stage.dilation) : 1;
    unit.stride = is_first ? static_cast<int>(edge.stride) : 1;
    unit.windows = stage.shifted != nullptr ? 2 : 1;
    unit.rows = static_cast<int>(stage.rows);
    unit.is_full = stage.is_full();
    unit.taps = stage.taps;
    unit.matrix = stage.matrix;
    unit.shifted = stage.shifted;
    return unit;
  }

  NormUnit<Acc> norm(const node::Norm<Acc>& norm,
                     const Acc* y,
                     Selected selected,
                     Scratch& scratch) {
    NormUnit<Acc> unit{};
    unit.selected = selected;
    unit.exists = norm.exists;
    unit.is_known = is_known_ || norm.is_given;
    unit.eps = norm.eps;
    unit.gamma = norm.gamma;
    unit.beta = norm.beta;
    unit.table = scratch.take<Acc>(3 * sizes_.channels);
    if (!norm.exists) return unit;
    unit.statistics = node_.statistics + norm.index * 2 * sizes_.channels;
    if (unit.is_known) return unit;
    double* moments = scratch.take<double>(norm_tiles(sizes_) * sizes_.channels * 2);
    unit.moments = moments;
    measured_.push_back({y, moments, selected});
    return unit;
  }

  void run_pools(Queue& queue) const {
    std::vector<PoolUnit<T>> pools;
    for (const BranchPlan<T>& plan : branches_) {
      if (!plan.is_pool()) continue;
      const node::Edge<T>& edge = *plan.edge;
      pools.push_back({own(edge.x), static_cast<int>(edge.height), static_cast<int>(edge.width),
                       static_cast<int>(edge.stride), plan.branch->kind == node::Kind::max_pool,
                       plan.pooled, plan.selected()});
    }
    Queue::in_groups(pools.size(), kPoolUnits, [&](size_t first, size_t count) {
      PoolForward<T> kernel{};
      std::copy_n(pools.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.at);
      kernel.sizes = sizes_;
      queue.run(kernel, map_blocks(numbers()), static_cast<int64_t>(count));
    });
  }

  // Moments of what some norms measure, statistics, tables.
  void close(Queue& queue, const std::vector<NormUnit<Acc>>& norms) const {
    std::vector<MomentsUnit<Acc>> maps;
    for (const MomentsUnit<Acc>& map : measured_) {
      const auto reads = [&](const NormUnit<Acc>& norm) { return norm.moments == map.moments; };
      if (std::any_of(norms.begin(), norms.end(), reads)) maps.push_back(map);
    }
    Queue::in_groups(maps.size(), kMomentsUnits, [&](size_t first, size_t count) {
      TileMoments<Acc> kernel{};
      std::copy_n(maps.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.at);
      kernel.sizes = sizes_;
      queue.run(kernel, norm_tiles(sizes_), static_cast<int64_t>(count));
    });
    Queue::in_groups(norms.size(), kNormUnits, [&](size_t first, size_t count) {
      CloseMoments<Acc> kernel{};
      std::copy_n(norms.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.at);
      kernel.sizes = sizes_;
      queue.run(kernel, 1, static_cast<int64_t>(count));
    });
  }

  const NodeSizes sizes_;
  const node::Node<T>& node_;
  const bool is_known_;
  const bool uses_tensor_cores_;
  std::vector<BranchPlan<T>> branches_;
  std::vector<MomentsUnit<Acc>> measured_;
};

}  // namespace pfn::cuda
