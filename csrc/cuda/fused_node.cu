// Forward and backward of a fused node: a fixed list of launches, each over all branches of all
// edges. What a launch leaves for the next lies in scratch; nothing is read on the host.
#include "cuda/launch.h"
#include "cuda/node/plan.h"

namespace pfn::cuda {
namespace {

template <typename T>
void forward(const node::Node<T>& node, const node::Images<T>& y, Scratch& scratch, Queue* queue) {
  NodePlan<T> plan(node, false, scratch);
  if (queue == nullptr) return;
  plan.run_outputs(*queue);
  const std::vector<BranchPlan<T>>& branches = plan.branches();
  Queue::in_groups(branches.size(), kTermUnits, [&](size_t first, size_t count) {
    Combine<T> kernel{};
    for (size_t t = 0; t < count; ++t) {
      const BranchPlan<T>& branch = branches[first + t];
      kernel.at[t] = {branch.last, branch.branch->weight,
                      branch.norms.empty() ? nullptr : branch.norms.back().table,
                      branch.selected()};
    }
    kernel.sizes = plan.sizes();
    kernel.terms = static_cast<int>(count);
    kernel.adds = first > 0;
    kernel.out = y.data;
    kernel.sample = y.sample;
    kernel.pixel = y.pixel;
    queue->run(kernel, plan.map_blocks(plan.numbers()), 1);
  });
}

template <typename T>
class Backward {
 public:
  using Acc = math::acc_t<T>;

  Backward(const node::Node<T>& node,
           const node::Images<const T>& grad,
           Acc* grad_weights,
           Scratch& scratch)
      : node_(node),
        plan_(node, true, scratch),
        grad_(NodePlan<T>::own(grad)),
        grad_weights_(grad_weights),
        scratch_(scratch) {
    const int64_t strips = make_strips(sizes().samples, sizes().height, sizes().width).count;
    splits_ = blocks_for(strips, kSplitStrips, kMostSplits);
    sums_ = table();
    for (BranchPlan<T>& branch : plan_.branches()) {
      Through& through = through_.emplace_back();
      through.last = scratch.take<Acc>(4 * sizes().channels);
      through.last_dots = table();
      place_stages(branch, through);
    }
  }

  void run(Queue& queue) {
    plan_.run_outputs(queue);
    std::vector<DotsUnit<T>> dots{{grad_, {}, nullptr, sums_, {}}};
    std::vector<ThroughUnit<Acc>> norms;
    for (size_t b = 0; b < branches().size(); ++b) {
      const BranchPlan<T>& branch = branches()[b];
      const Acc* mean = branch.norms.empty() ? nullptr : branch.norms.back().table;
      dots.push_back({grad_, branch.last, mean, through_[b].last_dots, branch.selected()});
      norms.push_back(through_last(b));
    }
    sum(queue, dots);
    close(queue, norms);
    run_second_stages(queue);
    std::vector<StageUnit<T>> first;
    for (size_t b = 0; b < branches().size(); ++b) {
      if (wants_first(branches()[b])) first.push_back(branches()[b].stages[0]);
    }
    run_stages(queue, first);
    sum_parts(queue);
    for (const node::Edge<T>& edge : node_.edges) {
      if (edge.grad_x.exists()) run_input(queue, edge);
    }
  }

 private:
  // Splits of the pixels for the gradients of parameters: of so many strips at least.
  static constexpr int64_t kSplitStrips = 64, kMostSplits = 64;

  // What a branch needs besides its outputs.
  struct Through {
    Acc* last = nullptr;   // [4, channels]
    Acc* first = nullptr;  // [4, channels], of two stages
    double *last_dots = nullptr, *first_sums = nullptr, *first_dots = nullptr;
    Acc* hidden = nullptr;  // gradient of the hidden map
  };

  const NodeSizes& sizes() const { return plan_.sizes(); }
  std::vector<BranchPlan<T>>& branches() { return plan_.branches(); }
  double* table() { return scratch_.template take<double>(norm_tiles(sizes()) * sizes().channels); }

  static bool wants(const node::Stage<Acc>& stage) {
    return stage.grad_taps != nullptr || stage.grad_matrix != nullptr ||
           stage.grad_shifted != nullptr;
  }
  static bool wants_first(const BranchPlan<T>& plan) {
    if (plan.stages.empty()) return false;
    return plan.edge->grad_x.exists() || wants(plan.branch->stages[0]);
  }
  static bool wants_second(const BranchPlan<T>& plan) {
    if (plan.stages.size() < 2) return false;
    const node::Norm<Acc>& norm = plan.branch->stages[0].norm;
    return wants_first(plan) || wants(plan.branch->stages[1]) || norm.grad_gamma != nullptr ||
           norm.grad_beta != nullptr;
  }

  void place_stages(BranchPlan<T>& branch, Through& through) {
    const size_t count = branch.stages.size();
    if (count == 0 || !(wants_first(branch) || wants_second(branch))) return;
    // The first stage's takes the place of the second's, which nobody reads any more.
    int64_t most = 0;
    for (const StageUnit<T>& unit : branch.stages) most = std::max(most, below_numbers(unit));
    Acc* below = scratch_.template take<Acc>(most);
    for (size_t s = 0; s < count; ++s) {
      StageUnit<T>& unit = branch.stages[s];
      const node::Stage<Acc>& stage = branch.branch->stages[s];
      unit.below = below;
      if (stage.grad_matrix != nullptr || stage.grad_shifted != nullptr) {
        unit.matrix_parts = scratch_.template take<Acc>(splits_ * matrix_numbers(unit));
      }
      if (stage.grad_taps != nullptr) {
        unit.taps_parts = scratch_.template take<Acc>(splits_ * taps_numbers(unit));
      }
    }
    branch.stages.back().grad = grad_;
    branch.stages.back().through = through.last;
    if (count < 2) return;
    through.first = scratch_.template take<Acc>(4 * sizes().channels);
    through.first_sums = table();
    through.first_dots = table();
    through.hidden = plan_.map(scratch_);
    branch.stages[0].grad = plan_.dense(through.hidden);
    branch.stages[0].through = through.first;
  }
  int64_t below_numbers(const StageUnit<T>& unit) const {
    const int64_t pixels =
        unit.is_full ? sizes().samples * unit.in_height * unit.in_width : sizes().pixels();
    return pixels * unit.z_channels();
  }
  int64_t matrix_numbers(const StageUnit<T>& unit) const {
    const int64_t taps = unit.is_full ? unit.taps_count() : 1;
    return static_cast<int64_t>(sizes().channels) * unit.in_channels * taps;
  }
  static int64_t taps_numbers(const StageUnit<T>& unit) {
    return static_cast<int64_t>(unit.in_channels) * unit.taps_count();
  }

  ThroughUnit<Acc> through_last(size_t b) {
    const BranchPlan<T>& plan = branches()[b];
    const node::Branch<Acc>& branch = *plan.branch;
    ThroughUnit<Acc> unit{};
    if (!plan.norms.empty()) {
      const node::Norm<Acc>& norm = branch.stages.empty() ? branch.norm : branch.stages.back().norm;
      unit.norm = plan.norms.back();
      unit.is_given = norm.is_given;
      unit.grad_gamma = norm.grad_gamma;
      unit.grad_beta = norm.grad_beta;
    }
    unit.sums = sums_;
    unit.dots = through_[b].last_dots;
    unit.weight = branch.weight;
    if (grad_weights_ != nullptr) unit.grad_weight = grad_weights_ + branch.column;
    unit.through = through_[b].last;
    unit.selected = plan.selected();
    return unit;
  }

  // Of all branches with two stages: the second, down to the norm between them.
  void run_second_stages(Queue& queue) {
    std::vector<StageUnit<T>> stages;
    std::vector<Acc*> hidden;
    std::vector<DotsUnit<T>> dots;
    std::vector<ThroughUnit<Acc>> norms;
    for (size_t b = 0; b < branches().size(); ++b) {
      const BranchPlan<T>& plan = branches()[b];
      if (!wants_second(plan)) continue;
      const Through& through = through_[b];
      const node::Norm<Acc>& norm = plan.branch->stages[0].norm;
      stages.push_back(plan.stages[1]);
      hidden.push_back(through.hidden);
      const Map<T> grad = plan_.dense(through.hidden);
      dots.push_back({grad, {}, nullptr, through.first_sums, plan.selected()});
      dots.push_back({grad, plan_.dense(plan.stages[0].y), plan.norms[0].table, through.first_dots,
                      plan.selected()});
      norms.push_back({plan.norms[0], norm.is_given, through.first_sums, through.first_dots,
                       nullptr, nullptr, norm.grad_gamma, norm.grad_beta, through.first,
                       plan.selected()});
    }
    run_stages(queue, stages);
    Queue::in_groups(stages.size(), kUnits, [&](size_t first, size_t count) {
      HiddenGradient<T> kernel{};
      std::copy_n(stages.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.units.at);
      std::copy_n(hidden.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.out);
      kernel.sizes = sizes();
      queue.run(kernel, plan_.map_blocks(plan_.numbers()), static_cast<int64_t>(count));
    });
    sum(queue, dots);
    close(queue, norms);
  }

  // The gradient of z, and those of matrices and taps in parts.
  void run_stages(Queue& queue, const std::vector<StageUnit<T>>& stages) const {
    plan_.template run_stages<StageBelow>(queue, stages);
    Queue::in_groups(stages.size(), kUnits, [&](size_t first, size_t count) {
      run_matrices(queue, stages.data() + first, count);
      run_taps(queue, stages.data() + first, count);
    });
  }
  void run_matrices(Queue& queue, const StageUnit<T>* stages, size_t count) const {
    int steps = 0;
    for (size_t u = 0; u < count; ++u) {
      const int each = (stages[u].in_channels + kDepth - 1) / kDepth;
      if (stages[u].matrix_parts != nullptr) steps = std::max(steps, stages[u].products() * each);
    }
    plan_.with_tile(sizes().channels, [&](auto width, auto tensor) {
      constexpr int kC = decltype(width)::value;
      StageMatrix<T, kC, decltype(tensor)::value> kernel{};
      std::copy_n(stages, count, kernel.units.at);
      kernel.sizes = sizes();
      kernel.steps = steps;
      kernel.pieces = (sizes().channels + kC - 1) / kC;
      queue.run(kernel, splits_, static_cast<int64_t>(count) * steps * kernel.pieces);
    });
  }
  void run_taps(Queue& queue, const StageUnit<T>* stages, size_t count) const {
    StageTaps<T> kernel{};
    std::copy_n(stages, count, kernel.units.at);
    kernel.sizes = sizes();
    for (size_t u = 0; u < count; ++u) {
      if (stages[u].taps_parts == nullptr) continue;
      kernel.pieces = std::max(kernel.pieces, (stages[u].in_channels + kDepth - 1) / kDepth);
    }
    queue.run(kernel, splits_, static_cast<int64_t>(count) * kernel.pieces);
  }

  void sum_parts(Queue& queue) {
    std::vector<PartsUnit<Acc>> parts;
    for (const BranchPlan<T>& plan : branches()) {
      for (size_t s = 0; s < plan.stages.size(); ++s) {
        const StageUnit<T>& unit = plan.stages[s];
        const node::Stage<Acc>& stage = plan.branch->stages[s];
        const int64_t matrix = matrix_numbers(unit), taps = taps_numbers(unit);
        const int64_t rows = matrix / sizes().channels * unit.rows;
        if (stage.grad_matrix != nullptr) {
          parts.push_back(
              {unit.matrix_parts, stage.grad_matrix, 0, rows, matrix, splits_, unit.selected});
        }
        if (stage.grad_shifted != nullptr) {
          parts.push_back({unit.matrix_parts, stage.grad_shifted, rows, matrix - rows, matrix,
                           splits_, unit.selected});
        }
        if (stage.grad_taps != nullptr) {
          parts.push_back(
              {unit.taps_parts, stage.grad_taps, 0, taps, taps, splits_, unit.selected});
        }
      }
    }
    Queue::in_groups(parts.size(), kPartsUnits, [&](size_t first, size_t count) {
      SumParts<Acc> kernel{};
      std::copy_n(parts.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.at);
      int64_t most = 0;
      for (size_t p = first; p < first + count; ++p) most = std::max(most, parts[p].grad_count);
      queue.run(kernel, blocks_for(most, SumParts<Acc>::kThreads, kMaxReducingBlocks),
                static_cast<int64_t>(count));
    });
  }

  void sum(Queue& queue, const std::vector<DotsUnit<T>>& dots) const {
    Queue::in_groups(dots.size(), kDotsUnits, [&](size_t first, size_t count) {
      Dots<T> kernel{};
      std::copy_n(dots.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.at);
      kernel.sizes = sizes();
      queue.run(kernel, norm_tiles(sizes()), static_cast<int64_t>(count));
    });
  }
  void close(Queue& queue, const std::vector<ThroughUnit<Acc>>& norms) const {
    Queue::in_groups(norms.size(), kThroughUnits, [&](size_t first, size_t count) {
      CloseDots<Acc> kernel{};
      std::copy_n(norms.begin() + static_cast<std::ptrdiff_t>(first), count, kernel.at);
      kernel.sizes = sizes();
      queue.run(kernel, 1, static_cast<int64_t>(count));
    });
  }

  // Everything that an input is handed; at least one launch, which zeroes what nobody reads.
  void run_input(Queue& queue, const node::Edge<T>& edge) {
    std::vector<StageUnit<T>> stages;
    std::vector<PlainUnit<Acc>> plain;
    for (size_t b = 0; b < branches().size(); ++b) {
      const BranchPlan<T>& branch = branches()[b];
      if (branch.edge != &edge) continue;
      if (!branch.stages.empty()) {
        stages.push_back(branch.stages[0]);
      } else if (branch.is_pool()) {
        plain.push_back({nullptr, branch.pooled, through_[b].last,
                         branch.branch->kind == node::Kind::max_pool, branch.selected()});
      } else {
        plain.push_back({branch.branch->weight, nullptr, nullptr, false, branch.selected()});
      }
    }
    bool adds = edge.adds;
    size_t stage = 0, other = 0;
    do {
      InputGradient<T> kernel{};
      kernel.stages_count =
          static_cast<int>(std::min<size_t>(kStagesOfInput, stages.size() - stage));
      kernel.plain_count = static_cast<int>(std::min<size_t>(kPlainUnits, plain.size() - other));
      for (int s = 0; s < kernel.stages_count; ++s) kernel.stages[s] = stages[stage++];
      for (int p = 0; p < kernel.plain_count; ++p) kernel.plain[p] = plain[other++];
      kernel.sizes = sizes();
      kernel.x = NodePlan<T>::own(edge.x);
      kernel.height = static_cast<int>(edge.height);
      kernel.width = static_cast<int>(edge.width);
      kernel.channels = static_cast<int>(edge.channels);
      kernel.stride = static_cast<int>(edge.stride);
      kernel.grad = grad_;
      kernel.out = edge.grad_x.data;
      kernel.sample = edge.grad_x.sample;
      kernel.pixel = edge.grad_x.pixel;
      kernel.adds = adds;
      adds = true;
      const int64_t count = sizes().samples * edge.height * edge.width * edge.channels;
      queue.run(kernel, plan_.map_blocks(count), 1);
    } while (stage < stages.size() || other < plain.size());
  }

  const node::Node<T>& node_;
  NodePlan<T> plan_;
  Map<T> grad_;
  Acc* grad_weights_;
  Scratch& scratch_;
  int64_t splits_ = 1;
  double* sums_ = nullptr;
  std::vector<Through> through_;  // of each branch
};

}  // namespace

template <typename T>
int64_t fused_node_bytes(const node::Node<T>& node) {
  Scratch scratch(nullptr);
  forward<T>(node, {}, scratch, nullptr);
  return scratch.bytes();
}

template <typename T>
cudaError_t launch_fused_node(const node::Node<T>& node,
                              const node::Images<T>& y,
                              void* memory,
                              cudaStream_t stream) {
  Scratch scratch(memory);
  Queue queue(stream);
  forward(node, y, scratch, &queue);
  return queue.status();
}

template <typename T>
int64_t fused_node_backward_bytes(const node::Node<T>& node) {
  Scratch scratch(nullptr);
  Backward<T>(node, {}, nullptr, scratch);
  return scratch.bytes();
}

template <typename T>
cudaError_t launch_fused_node_backward(const node::Node<T>& node,
                                       const node::Images<const T>& grad,
                                       math::acc_t<T>* grad_weights,
                                       void* memory,
                                       cudaStream_t stream) {
  Scratch scratch(memory);
  Queue queue(stream);
  Backward<T>(node, grad, grad_weights, scratch).run(queue);
  return queue.status();
}

#define PFN_INSTANTIATE(T)                                                                    \
  template int64_t fused_node_bytes(const node::Node<T>&);                                    \
  template cudaError_t launch_fused_node(const node::Node<T>&, const node::Images<T>&, void*, \
                                         cudaStream_t);                                       \
  template int64_t fused_node_backward_bytes(const node::Node<T>&);                           \
  template cudaError_t launch_fused_node_backward(                                            \
      const node::Node<T>&, const node::Images<const T>&, math::acc_t<T>*, void*, cudaStream_t);
PFN_INSTANTIATE(float)
PFN_INSTANTIATE(double)
PFN_INSTANTIATE(math::Half)
PFN_INSTANTIATE(math::BFloat16)

}  // namespace pfn::cuda
