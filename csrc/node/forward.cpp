// Forward of a fused node, edge by edge. A batch norm needs the whole batch before the next step
// can begin, so an edge takes three passes over the samples: first stages and pools, second stages,
// the sum. What is cheap to compute again is not kept from one pass to the next: a map that leaves
// the second-level cache costs more time than its arithmetic.
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
    for (size_t b = 0; b < stages_.size(); ++b) {
      const bool is_kept = stages_[b].size() == 2 ||
                           (stages_[b].size() == 1 &&
                            (stages_[b][0].is_full() || edge.channels > kMostChannelsAgain));
      slots_.push_back(is_kept ? kept_++ : -1);
    }
    maps_ = batch_arena().numbers<T>(node.samples * kept_ * map_size() + kSlackPixels * lanes_);
    moments_.resize(stages_.size() * 2 * static_cast<size_t>(node.samples * blocks_ * lanes_));
  }

  void run(const Images<T>& y, bool adds, const Parallel& parallel) {
    parallel(node_.samples, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) measure_first_stages(n);
    });
    bool has_second = false;
    for (size_t b = 0; b < stages_.size(); ++b) {
      merge(b, first_norm(b));
      if (stages_[b].size() < 2) continue;
      stages_[b][0].folded = fold(first_norm(b));
      has_second = true;
    }
    if (has_second) {
      parallel(node_.samples, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) second_stages(n);
      });
      for (size_t b = 0; b < stages_.size(); ++b) {
        if (stages_[b].size() == 2) merge(b, last_norm(b));
      }
    }
    sum(y, adds, parallel);
  }

 private:
  // Convolutions of one stage and at most so many input channels are computed twice rather than
  // kept: above, the product takes longer than the memory.
  static constexpr int64_t kMostChannelsAgain = 32;

  // Scratch of one sample.
  struct Sample {
    int64_t index;
    MapView<T> x;
    T *relu, *z, *own;  // own: [branches, map], of the branches that are not kept
  };
  Sample sample(int64_t n) const {
    const int64_t relu_size = framed_size(in_frame(), in_blocks_);
    const int64_t z_size = this->z_blocks_ * pixels_ * lanes_;
    const int64_t own_size = static_cast<int64_t>(stages_.size()) * map_size();
    T* relu = sample_arena().template numbers<T>(relu_size + z_size + own_size +
                                                 in_blocks_ * in_pixels_ * lanes_);
    T *z = relu + relu_size, *own = z + z_size;
    return {n, view(edge_.x, n, edge_.channels, in_pixels_, own + own_size), relu, z, own};
  }
  T* kept(int64_t n, size_t b) const { return maps_ + (n * kept_ + slots_[b]) * map_size(); }
  T* output(const Sample& sample, size_t b) const {
    return slots_[b] >= 0 ? kept(sample.index, b)
                          : sample.own + static_cast<int64_t>(b) * map_size();
  }
  double* moments(int64_t n, size_t b) {
    return moments_.data() + (n * static_cast<int64_t>(stages_.size()) + static_cast<int64_t>(b)) *
                                 2 * blocks_ * lanes_;
  }
  const Norm<T>& first_norm(size_t b) const {
    return stages_[b].empty() ? edge_.branches[b].norm : stages_[b][0].stage->norm;
  }
  static bool is_measured(const Norm<T>& norm) { return norm.exists && !norm.is_given; }

  // Outputs of the first stages and pools that `wants(branch)`.
  template <typename Wants>
  void first_stages(const Sample& sample, Wants&& wants) const {
    bool has_relu = false;
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (stages_[b].empty() || !wants(b)) continue;
      if (!has_relu) kernels_.relu(sample.x, sample.relu, in_frame(), in_blocks_);
      has_relu = true;
      this->stage_output(stages_[b][0], {sample.relu, in_frame()}, sample.z, output(sample, b));
    }
    this->pool_branches(sample.x, wants, [&](size_t b) { return output(sample, b); });
  }

  void measure(int64_t n, size_t b, const Norm<T>& norm, const T* map) {
    if (!is_measured(norm)) return;
    double* to = moments(n, b);
    kernels_.moments(map, pixels_, blocks_, to, to + blocks_ * lanes_);
  }

  void measure_first_stages(int64_t n) {
    const Sample one = sample(n);
    first_stages(one, [&](size_t b) { return slots_[b] >= 0 || is_measured(first_norm(b)); });
    for (size_t b = 0; b < stages_.size(); ++b) measure(n, b, first_norm(b), output(one, b));
  }

  void second_stages(int64_t n) {
    const int64_t hidden_size = framed_size(hidden_frame(), blocks_);
    T* hidden = sample_arena().template numbers<T>(hidden_size + map_size());
    T* z = hidden + hidden_size;
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (stages_[b].size() < 2) continue;
      const Folded<T>& norm = stages_[b][0].folded;
      const PackedStage<T>& stage = stages_[b][1];
      T* y = kept(n, b);
      kernels_.norm_relu(y, norm.mean.data(), norm.scale.data(), norm.shift.data(), hidden,
                         hidden_frame(), blocks_);
      this->stage_output(stage, {hidden, hidden_frame()}, z, y);
      measure(n, b, stage.stage->norm, y);
    }
  }

  // Statistics of the batch from those of the samples, in their order (Chan et al. 1983).
  void merge(size_t b, const Norm<T>& norm) {
    if (!is_measured(norm)) return;
    const double count = static_cast<double>(pixels_);
    for (int64_t c = 0; c < node_.channels; ++c) {
      double mean_so_far = 0.0, deviation = 0.0, before = 0.0;
      for (int64_t n = 0; n < node_.samples; ++n, before += count) {
        const double* sample = moments(n, b);
        const double apart = sample[c] - mean_so_far;
        mean_so_far += apart * count / (before + count);
        deviation +=
            sample[blocks_ * lanes_ + c] + apart * apart * before * count / (before + count);
      }
      mean(norm)[c] = mean_so_far;
      variance(norm)[c] = deviation / before;
    }
  }

  void sum(const Images<T>& y, bool adds, const Parallel& parallel) {
    const size_t width = static_cast<size_t>(blocks_ * lanes_);
    std::vector<Folded<T>> norms;
    for (size_t b = 0; b < stages_.size(); ++b) {
      Folded<T>& norm = norms.emplace_back(fold(last_norm(b)));
      const T weight = *edge_.branches[b].weight;
      for (size_t c = 0; c < width; ++c) {
        norm.scale[c] *= weight;
        norm.shift[c] *= weight;
      }
    }
    parallel(node_.samples, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const Sample one = sample(n);
        first_stages(one, [&](size_t b) { return slots_[b] < 0; });
        for (size_t first = 0; first < norms.size(); first += cpu::kMaxTerms) {
          add_terms(one, first, norms, y, adds || first > 0);
        }
      }
    });
  }

  void add_terms(const Sample& sample,
                 size_t first,
                 const std::vector<Folded<T>>& norms,
                 const Images<T>& y,
                 bool adds) {
    MapView<T> terms[cpu::kMaxTerms];
    const T *scale[cpu::kMaxTerms], *means[cpu::kMaxTerms];
    const size_t count = std::min<size_t>(norms.size() - first, cpu::kMaxTerms);
    std::vector<T> shift(static_cast<size_t>(blocks_ * lanes_));
    for (size_t t = 0; t < count; ++t) {
      const Folded<T>& norm = norms[first + t];
      const bool is_skip = edge_.branches[first + t].kind == Kind::skip;
      terms[t] = is_skip ? sample.x : blocked(output(sample, first + t), pixels_);
      scale[t] = norm.scale.data();
      means[t] = norm.mean.data();
      for (size_t c = 0; c < shift.size(); ++c) shift[c] += norm.shift[c];
    }
    kernels_.combine(terms, scale, means, static_cast<int>(count), shift.data(), y.at(sample.index),
                     y.pixel, node_.channels, pixels_, adds);
  }

  std::vector<int64_t> slots_;  // [branches]: place among the kept maps, or -1
  int64_t kept_ = 0;
  T* maps_ = nullptr;            // [samples, kept, map]: of each, the latest stage
  std::vector<double> moments_;  // [samples, branches, 2, channels]
};

}  // namespace

template <typename T>
void forward(const Node<T>& node, const Images<T>& y, const Parallel& parallel) {
  bool adds = false;
  for (const Edge<T>& edge : node.edges) {
    if (edge.branches.empty()) continue;
    ForwardEdge<T>(node, edge).run(y, adds, parallel);
    adds = true;
  }
  if (!adds) clear(y, node.samples, node.height * node.width, node.channels);
}

template void forward(const Node<float>&, const Images<float>&, const Parallel&);
template void forward(const Node<double>&, const Images<double>&, const Parallel&);

}  // namespace pfn::node
