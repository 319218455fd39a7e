// Forward of a fused node, edge by edge. A batch norm needs the whole batch before the next step
// can begin, so an edge takes three passes over the samples: first stages and pools, second stages,
// the sum.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "node/edge_pass.h"

namespace pfn::node {
namespace {

template <typename T>
class ForwardEdge : EdgePass<T> {
  using Base = EdgePass<T>;
  using Base::bare, Base::blocked, Base::blocks_, Base::edge_, Base::fold, Base::framed_size,
      Base::hidden_frame, Base::in_blocks_, Base::in_frame, Base::in_pixels_, Base::kernels_,
      Base::lanes_, Base::last_norm, Base::map_size, Base::mean, Base::node_, Base::pixels_,
      Base::stages_, Base::variance, Base::view;

 public:
  ForwardEdge(const Node<T>& node, const Edge<T>& edge) : Base(node, edge) {
    // A branch that is not a skip has one map per sample: its latest stage.
    for (const Branch<T>& branch : edge.branches) {
      slots_.push_back(branch.kind == Kind::skip ? -1 : count_++);
    }
    maps_ = batch_arena().numbers<T>(node.samples * count_ * map_size() + kSlackPixels * lanes_);
    moments_.resize(static_cast<size_t>(2 * count_ * node.samples * blocks_ * lanes_));
  }

  void run(T* y, bool adds, const Parallel& parallel) {
    parallel(node_.samples, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) first_stages(n);
    });
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (slots_[b] < 0) continue;
      merge(stages_[b].empty() ? edge_.branches[b].norm : stages_[b][0].stage->norm, slots_[b]);
    }
    bool has_second = false;
    for (std::vector<PackedStage<T>>& stages : stages_) {
      if (stages.size() < 2) continue;
      stages[0].folded = fold(stages[0].stage->norm);
      has_second = true;
    }
    if (has_second) {
      parallel(node_.samples, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) second_stages(n);
      });
      for (size_t b = 0; b < stages_.size(); ++b) {
        if (stages_[b].size() == 2) merge(stages_[b][1].stage->norm, slots_[b]);
      }
    }
    sum(y, adds, parallel);
  }

 private:
  T* map(int64_t sample, int64_t slot) const {
    return maps_ + (sample * count_ + slot) * map_size();
  }
  double* moments(int64_t sample, int64_t slot) {
    return moments_.data() + (sample * count_ + slot) * 2 * blocks_ * lanes_;
  }
  void measure(int64_t sample, int64_t slot, const Norm<T>& norm) {
    if (!norm.exists || norm.is_given) return;
    double* to = moments(sample, slot);
    kernels_.moments(map(sample, slot), pixels_, blocks_, to, to + blocks_ * lanes_);
  }

  void first_stages(int64_t n) {
    const int64_t relu_size = framed_size(in_frame(), in_blocks_);
    const int64_t z_size = in_blocks_ * pixels_ * lanes_;
    T* relu =
        sample_arena().template numbers<T>(relu_size + z_size + in_blocks_ * in_pixels_ * lanes_);
    T* z = relu + relu_size;
    const MapView<T> x =
        view(edge_.x + n * in_pixels_ * edge_.channels, edge_.channels, in_pixels_, z + z_size);
    bool has_relu = false;
    T* pools[2] = {nullptr, nullptr};  // maxima, means
    for (size_t b = 0; b < stages_.size(); ++b) {
      const Branch<T>& branch = edge_.branches[b];
      if (branch.kind == Kind::max_pool) pools[0] = map(n, slots_[b]);
      if (branch.kind == Kind::mean_pool) pools[1] = map(n, slots_[b]);
      if (branch.kind != Kind::conv) continue;
      if (!has_relu) kernels_.relu(x, relu, in_frame(), in_blocks_);
      has_relu = true;
      const PackedStage<T>& stage = stages_[b][0];
      kernels_.depthwise(relu, in_frame(), stage.window, stage.taps.data(), z, node_.height,
                         node_.width, in_blocks_);
      kernels_.product(blocked(z, pixels_), edge_.channels, stage.matrix.data(), map(n, slots_[b]),
                       bare(), blocks_);
      measure(n, slots_[b], stage.stage->norm);
    }
    if (pools[0] != nullptr || pools[1] != nullptr) {
      kernels_.pool(x, edge_.height, edge_.width, edge_.stride, pools[0], pools[1], blocks_);
    }
    for (size_t b = 0; b < stages_.size(); ++b) {
      const Branch<T>& branch = edge_.branches[b];
      if (branch.kind != Kind::max_pool && branch.kind != Kind::mean_pool) continue;
      T* own = map(n, slots_[b]);
      // A second pool of the same kind is the same map.
      const T* made = pools[branch.kind == Kind::max_pool ? 0 : 1];
      if (made != own) std::copy(made, made + map_size(), own);
      measure(n, slots_[b], branch.norm);
    }
  }

  void second_stages(int64_t n) {
    const int64_t hidden_size = framed_size(hidden_frame(), blocks_);
    T* hidden = sample_arena().template numbers<T>(hidden_size + map_size());
    T* z = hidden + hidden_size;
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (stages_[b].size() < 2) continue;
      const Folded<T>& norm = stages_[b][0].folded;
      const PackedStage<T>& stage = stages_[b][1];
      T* y = map(n, slots_[b]);
      kernels_.norm_relu(y, norm.mean.data(), norm.scale.data(), norm.shift.data(), hidden,
                         hidden_frame(), blocks_);
      kernels_.depthwise(hidden, hidden_frame(), stage.window, stage.taps.data(), z, node_.height,
                         node_.width, blocks_);
      kernels_.product(blocked(z, pixels_), node_.channels, stage.matrix.data(), y, bare(),
                       blocks_);
      measure(n, slots_[b], stage.stage->norm);
    }
  }

  // Statistics of the batch from those of the samples, in their order (Chan et al. 1983).
  void merge(const Norm<T>& norm, int64_t slot) {
    if (!norm.exists || norm.is_given) return;
    const double count = static_cast<double>(pixels_);
    for (int64_t c = 0; c < node_.channels; ++c) {
      double mean_so_far = 0.0, deviation = 0.0, before = 0.0;
      for (int64_t n = 0; n < node_.samples; ++n, before += count) {
        const double* sample = moments(n, slot);
        const double apart = sample[c] - mean_so_far;
        mean_so_far += apart * count / (before + count);
        deviation +=
            sample[blocks_ * lanes_ + c] + apart * apart * before * count / (before + count);
      }
      mean(norm)[c] = mean_so_far;
      variance(norm)[c] = deviation / before;
    }
  }

  void sum(T* y, bool adds, const Parallel& parallel) {
    const size_t width = static_cast<size_t>(blocks_ * lanes_);
    std::vector<Folded<T>> norms;
    for (size_t b = 0; b < stages_.size(); ++b) {
      Folded<T>& norm = norms.emplace_back(fold(last_norm(b)));
      const T weight = edge_.branches[b].weight;
      for (size_t c = 0; c < width; ++c) {
        norm.scale[c] *= weight;
        norm.shift[c] *= weight;
      }
    }
    parallel(node_.samples, [&](int64_t begin, int64_t end) {
      T* copy = sample_arena().template numbers<T>(in_blocks_ * in_pixels_ * lanes_);
      for (int64_t n = begin; n < end; ++n) {
        for (size_t first = 0; first < norms.size(); first += cpu::kMaxTerms) {
          add_terms(n, first, norms, copy, y, adds || first > 0);
        }
      }
    });
  }

  void add_terms(
      int64_t n, size_t first, const std::vector<Folded<T>>& norms, T* copy, T* y, bool adds) {
    MapView<T> terms[cpu::kMaxTerms];
    const T *scale[cpu::kMaxTerms], *means[cpu::kMaxTerms];
    const size_t count = std::min<size_t>(norms.size() - first, cpu::kMaxTerms);
    std::vector<T> shift(static_cast<size_t>(blocks_ * lanes_));
    for (size_t t = 0; t < count; ++t) {
      const Folded<T>& norm = norms[first + t];
      const int64_t slot = slots_[first + t];
      terms[t] = slot >= 0 ? blocked(map(n, slot), pixels_)
                           : view(edge_.x + n * in_pixels_ * edge_.channels, edge_.channels,
                                  in_pixels_, copy);
      scale[t] = norm.scale.data();
      means[t] = norm.mean.data();
      for (size_t c = 0; c < shift.size(); ++c) shift[c] += norm.shift[c];
    }
    kernels_.combine(terms, scale, means, static_cast<int>(count), shift.data(),
                     y + n * pixels_ * node_.channels, node_.channels, pixels_, adds);
  }

  std::vector<int64_t> slots_;  // [branches]
  int64_t count_ = 0;
  T* maps_ = nullptr;            // [samples, slots, map]
  std::vector<double> moments_;  // [samples, slots, 2, channels]
};

}  // namespace

template <typename T>
void forward(const Node<T>& node, T* y, const Parallel& parallel) {
  bool adds = false;
  for (const Edge<T>& edge : node.edges) {
    if (edge.branches.empty()) continue;
    ForwardEdge<T>(node, edge).run(y, adds, parallel);
    adds = true;
  }
}

template void forward(const Node<float>&, float*, const Parallel&);
template void forward(const Node<double>&, double*, const Parallel&);

}  // namespace pfn::node
