// Backward of a fused node, edge by edge. Forward is computed again sample by sample; three passes
// over the samples, since each batch norm needs sums over the batch: dots with the outputs of the
// last stages, second stages, first stages. From one pass to the next only hidden maps are kept.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "node/edge_pass.h"

namespace pfn::node {
namespace {

// A batch norm's backward as grad_y = a g + b (y - mean) + c, per channel.
template <typename T>
struct NormGradient {
  std::vector<T> a, b, mean, c;
};

// Sums over the batch of an output gradient g, and of g (y - mean), per channel.
struct BatchSums {
  std::vector<double> grad, dot;
};

// Samples are dealt out in this many runs at most, each with gradients of its own, which are added
// up in order: so results do not depend on the number of threads. A run has about so many pixels
// at least.
constexpr int64_t kMostRuns = 32;
constexpr int64_t kRunPixels = 256;
// Bytes that the gradients of all runs may take.
constexpr int64_t kRunBytes = int64_t{64} << 20;

template <typename T>
class BackwardEdge : EdgePass<T> {
  using Base = EdgePass<T>;
  using Base::bare, Base::blocked, Base::blocks_, Base::edge_, Base::fold, Base::framed_size,
      Base::grad_frame, Base::hidden_frame, Base::in_blocks_, Base::in_frame, Base::in_pixels_,
      Base::kernels_, Base::lanes_, Base::last_norm, Base::map_size, Base::mean, Base::node_,
      Base::pixels_, Base::rho, Base::stages_, Base::view;

 public:
  BackwardEdge(const Node<T>& node,
               const Edge<T>& edge,
               const Images<const T>& grad,
               const std::vector<double>& grad_sum,
               double* grad_weights)
      : Base(node, edge), grad_(grad), grad_sum_(grad_sum), grad_weights_(grad_weights) {
    for (const std::vector<PackedStage<T>>& stages : stages_) {
      const bool is_kept = stages.size() == 2 || (stages.size() == 1 && stages[0].is_full());
      slots_.push_back(is_kept ? kept_++ : -1);
    }
    maps_ = batch_arena().numbers<T>(node.samples * kept_ * map_size() + kSlackPixels * lanes_);
    last_.resize(edge.branches.size());
    first_.resize(edge.branches.size());
    for (size_t b = 0; b < edge.branches.size(); ++b) {
      for (PackedStage<T>& stage : stages_[b]) stage.folded = fold(stage.stage->norm);
      pool_norms_.push_back(stages_[b].empty() ? fold(edge.branches[b].norm) : Folded<T>{});
    }
  }

  void run(const Parallel& parallel) {
    sums_.resize(static_cast<size_t>(node_.samples * sums_size()));
    parallel(node_.samples, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) outputs(n);
    });
    for (size_t b = 0; b < stages_.size(); ++b) close_branch(b);
    if (!wants_more()) return;
    plan_runs();
    const bool has_second = std::any_of(stages_.begin(), stages_.end(),
                                        [](const auto& stages) { return stages.size() == 2; });
    if (has_second) {
      parallel(runs_, [&](int64_t begin, int64_t end) {
        for (int64_t run = begin; run < end; ++run) each_sample(run, &BackwardEdge::second_stages);
      });
      for (size_t b = 0; b < stages_.size(); ++b) {
        if (stages_[b].size() == 2) close_first_stage(b);
      }
    }
    if (wants_first_stages()) {
      parallel(runs_, [&](int64_t begin, int64_t end) {
        for (int64_t run = begin; run < end; ++run) each_sample(run, &BackwardEdge::first_stages);
      });
    }
    merge_runs(parallel);
    for (size_t b = 0; b < stages_.size(); ++b) {
      for (size_t s = 0; s < stages_[b].size(); ++s) unpack_gradients(b, s);
    }
  }

 private:
  T* kept(int64_t n, size_t b) const { return maps_ + (n * kept_ + slots_[b]) * map_size(); }
  MapView<T> grad_view(int64_t n, T* copy) const {
    return view(grad_, n, node_.channels, pixels_, copy);
  }
  MapView<T> x_view(int64_t n, T* copy) const {
    return view(edge_.x, n, edge_.channels, in_pixels_, copy);
  }

  // Two rows of channels for each branch: the dot with its output; and, after the second pass, sum
  // and dot of its hidden map.
  int64_t row_size() const { return blocks_ * lanes_; }
  int64_t sums_size() const { return static_cast<int64_t>(stages_.size()) * 2 * row_size(); }
  double* sums(int64_t sample, size_t branch) {
    return sums_.data() + sample * sums_size() + static_cast<int64_t>(branch) * 2 * row_size();
  }
  std::vector<double> total(size_t branch, int64_t row) {
    std::vector<double> total(static_cast<size_t>(node_.channels));
    for (int64_t n = 0; n < node_.samples; ++n) {
      const double* sample = sums(n, branch) + row * row_size();
      for (int64_t c = 0; c < node_.channels; ++c) total[static_cast<size_t>(c)] += sample[c];
    }
    return total;
  }

  static bool wants(const Stage<T>& stage) {
    return stage.grad_taps != nullptr || stage.grad_matrix != nullptr ||
           stage.grad_shifted != nullptr;
  }
  static bool wants_matrix(const Stage<T>& stage) {
    return stage.grad_matrix != nullptr || stage.grad_shifted != nullptr;
  }
  bool wants_first_stages() const {
    if (edge_.grad_x.exists()) return true;
    return std::any_of(stages_.begin(), stages_.end(), [](const auto& stages) {
      return !stages.empty() && wants(*stages[0].stage);
    });
  }
  bool wants_more() const {
    if (wants_first_stages()) return true;
    return std::any_of(stages_.begin(), stages_.end(), [](const auto& stages) {
      if (stages.size() < 2) return false;
      const Norm<T>& norm = stages[0].stage->norm;
      return wants(*stages[1].stage) || norm.grad_gamma != nullptr || norm.grad_beta != nullptr;
    });
  }

  // First pass: outputs of all branches, and their dots with the gradient. Of two stages the first
  // output is kept, and that of a full convolution, which costs most to compute again.
  void outputs(int64_t n) {
    const int64_t relu_size = framed_size(in_frame(), in_blocks_);
    const int64_t hidden_size = framed_size(hidden_frame(), blocks_);
    const int64_t z_size = this->z_blocks_ * pixels_ * lanes_;
    const int64_t x_size = in_blocks_ * in_pixels_ * lanes_;
    const int64_t own_size = static_cast<int64_t>(stages_.size()) * map_size();
    T* relu = sample_arena().template numbers<T>(relu_size + hidden_size + z_size + x_size +
                                                 map_size() + own_size);
    T *hidden = relu + relu_size, *z = hidden + hidden_size, *copy = z + z_size;
    T* own = copy + x_size + map_size();
    const MapView<T> x = x_view(n, copy), g = grad_view(n, copy + x_size);
    bool has_relu = false;
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (edge_.branches[b].kind == Kind::skip) {
        kernels_.products(g, x, pixels_, blocks_, sums(n, b));
      }
      if (stages_[b].empty()) continue;
      if (!has_relu) kernels_.relu(x, relu, in_frame(), in_blocks_);
      has_relu = true;
      T* y = slots_[b] >= 0 ? kept(n, b) : own;
      this->stage_output(stages_[b][0], {relu, in_frame()}, z, y);
      if (stages_[b].size() == 2) {
        hide(stages_[b][0].folded, y, hidden);
        y = own;
        this->stage_output(stages_[b][1], {hidden, hidden_frame()}, z, y);
      }
      kernels_.dots(g, y, stages_[b].back().folded.mean.data(), pixels_, blocks_, sums(n, b));
    }
    const auto place = [&](size_t b) { return own + static_cast<int64_t>(b) * map_size(); };
    this->pool_branches(x, [](size_t) { return true; }, place);
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (!is_pool(edge_.branches[b].kind)) continue;
      kernels_.dots(g, place(b), pool_norms_[b].mean.data(), pixels_, blocks_, sums(n, b));
    }
  }

  void hide(const Folded<T>& norm, const T* y, T* hidden) const {
    kernels_.norm_relu(y, norm.mean.data(), norm.scale.data(), norm.shift.data(), hidden,
                       hidden_frame(), blocks_);
  }

  // After the first pass: gradients of the weight and of the last norm, and how g goes through it.
  void close_branch(size_t b) {
    const Branch<T>& branch = edge_.branches[b];
    BatchSums sums{grad_sum_, total(b, 0)};
    double* grad_weight = grad_weights_ != nullptr ? grad_weights_ + branch.column : nullptr;
    const Norm<T>& norm = last_norm(b);
    if (!norm.exists) {
      if (grad_weight != nullptr) {
        for (double value : sums.dot) *grad_weight += value;
      }
      const size_t width = static_cast<size_t>(row_size());
      last_[b] = {std::vector<T>(width, *branch.weight), std::vector<T>(width),
                  std::vector<T>(width), std::vector<T>(width)};
      return;
    }
    const Folded<T>& folded = stages_[b].empty() ? pool_norms_[b] : stages_[b].back().folded;
    last_[b] = through(norm, folded, static_cast<double>(*branch.weight), sums, grad_weight);
  }

  // After the second pass: the same for the norm between the two stages.
  void close_first_stage(size_t b) {
    const PackedStage<T>& stage = stages_[b][0];
    first_[b] = through(stage.stage->norm, stage.folded, 1.0, {total(b, 0), total(b, 1)}, nullptr);
  }

  // kernels.md, section 2, with g arriving as weight * g.
  NormGradient<T> through(const Norm<T>& norm,
                          const Folded<T>& folded,
                          double weight,
                          const BatchSums& sums,
                          double* grad_weight) const {
    const size_t width = static_cast<size_t>(row_size());
    NormGradient<T> result{std::vector<T>(width), std::vector<T>(width), folded.mean,
                           std::vector<T>(width)};
    const double count = static_cast<double>(node_.samples * pixels_);
    for (int64_t c = 0; c < node_.channels; ++c) {
      const size_t at = static_cast<size_t>(c);
      const double gamma = norm.gamma != nullptr ? static_cast<double>(norm.gamma[c]) : 1.0;
      const double beta = norm.beta != nullptr ? static_cast<double>(norm.beta[c]) : 0.0;
      // The dots were taken about the rounded mean.
      const double rounded = static_cast<double>(folded.mean[at]) - mean(norm)[c];
      const double r = rho(norm, c), sum = sums.grad[at];
      const double normalised =
          r * (sums.dot[at] + rounded * sum);  // sum of g times the normalised
      if (grad_weight != nullptr) *grad_weight += gamma * normalised + beta * sum;
      if (norm.grad_gamma != nullptr) norm.grad_gamma[c] = static_cast<T>(weight * normalised);
      if (norm.grad_beta != nullptr) norm.grad_beta[c] = static_cast<T>(weight * sum);
      const double t = gamma * weight * r;
      result.a[at] = static_cast<T>(t);
      if (norm.is_given) continue;
      const double by_y = -t * r * normalised / count;
      result.b[at] = static_cast<T>(by_y);
      result.c[at] = static_cast<T>(by_y * rounded - t * sum / count);
    }
    return result;
  }

  // Splits the samples into runs and gives each run places for its gradients.
  void plan_runs() {
    int64_t size = 0;
    for (const std::vector<PackedStage<T>>& stages : stages_) {
      std::vector<Places>& places = places_.emplace_back();
      for (const PackedStage<T>& stage : stages) {
        Places& place = places.emplace_back();
        place.taps = size;
        if (stage.stage->grad_taps != nullptr) {
          size += stage.in_blocks * stage.taps_count() * lanes_;
        }
        place.matrix = size;
        if (wants_matrix(*stage.stage)) size += node_.channels * stage.z_blocks() * lanes_;
      }
    }
    run_size_ = size;
    const int64_t by_pixels = (node_.samples * pixels_ + kRunPixels - 1) / kRunPixels;
    const int64_t by_bytes =
        kRunBytes / std::max<int64_t>(1, size * static_cast<int64_t>(sizeof(T)));
    runs_ = std::max<int64_t>(1, std::min({by_pixels, by_bytes, kMostRuns, node_.samples}));
    gradients_.resize(static_cast<size_t>(runs_ * run_size_));
  }

  void each_sample(int64_t run, void (BackwardEdge::*pass)(int64_t, T*)) {
    const int64_t begin = node_.samples * run / runs_, end = node_.samples * (run + 1) / runs_;
    for (int64_t n = begin; n < end; ++n) (this->*pass)(n, gradients_.data() + run * run_size_);
  }

  // Second pass: last stages of two-stage branches; the gradients of their hidden maps take the
  // place of what was kept.
  void second_stages(int64_t n, T* gradients) {
    const int64_t hidden_size = framed_size(hidden_frame(), blocks_);
    T* hidden = sample_arena().template numbers<T>(2 * hidden_size + 4 * map_size());
    T *framed = hidden + hidden_size, *z = framed + hidden_size, *y = z + map_size();
    T* below = y + map_size();
    const MapView<T> g = grad_view(n, below + map_size());
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (stages_[b].size() < 2) continue;
      const PackedStage<T>& stage = stages_[b][1];
      T* first = kept(n, b);
      hide(stages_[b][0].folded, first, hidden);
      const StageInput<T> input{hidden, hidden_frame()};
      this->stage_output(stage, input, z, y);
      pass_norm(last_[b], g, y, y);
      gather(stage, y, z, input, framed, places_[b][1], gradients);
      std::fill(below, below + map_size(), T{});
      scatter(stage, framed, below, node_.height, node_.width);
      double* to = sums(n, b);
      kernels_.mask_and_dots(below, hidden, hidden_frame(), first, stages_[b][0].folded.mean.data(),
                             blocks_, first, to, to + row_size());
    }
  }

  // Third pass: first stages, pools, skip; everything that reaches x.
  void first_stages(int64_t n, T* gradients) {
    const int64_t relu_size = framed_size(in_frame(), in_blocks_);
    const int64_t x_size = in_blocks_ * in_pixels_ * lanes_;
    const int64_t z_size = this->z_blocks_ * pixels_ * lanes_;
    const int64_t framed_grad = framed_size({node_.height, node_.width, this->in_border_},
                                            std::max(this->z_blocks_, blocks_));
    const int64_t own_size = (static_cast<int64_t>(stages_.size()) + 2) * map_size();
    T* relu = sample_arena().template numbers<T>(relu_size + framed_grad + z_size + own_size +
                                                 2 * x_size + map_size());
    T *framed = relu + relu_size, *z = framed + framed_grad, *own = z + z_size;
    T *grad_x = own + own_size, *copy = grad_x + x_size;
    const MapView<T> x = x_view(n, copy), g = grad_view(n, copy + x_size);
    std::fill(grad_x, grad_x + x_size, T{});
    bool has_relu = false;
    for (size_t b = 0; b < stages_.size(); ++b) {
      if (stages_[b].empty()) continue;
      const PackedStage<T>& stage = stages_[b][0];
      if (!edge_.grad_x.exists() && !wants(*stage.stage)) continue;
      if (!has_relu) kernels_.relu(x, relu, in_frame(), in_blocks_);
      has_relu = true;
      const StageInput<T> input{relu, in_frame()};
      const bool is_last = stages_[b].size() == 1;
      T* y = is_last && slots_[b] >= 0 ? kept(n, b) : own;
      if (y == own) this->stage_output(stage, input, z, own);
      if (is_last) {
        pass_norm(last_[b], g, y, own);
      } else {
        pass_norm(first_[b], blocked(kept(n, b), pixels_), own, own);
      }
      gather(stage, own, z, input, framed, places_[b][0], gradients);
      if (edge_.grad_x.exists()) scatter(stage, framed, grad_x, edge_.height, edge_.width);
    }
    if (!edge_.grad_x.exists()) return;
    reach_x(x, g, has_relu, grad_x, own);
    kernels_.unpack(grad_x, edge_.grad_x.at(n), edge_.grad_x.pixel, edge_.channels, in_pixels_,
                    edge_.adds);
  }

  // e = gradient of what came into a norm.
  void pass_norm(const NormGradient<T>& norm, const MapView<T>& g, const T* y, T* e) const {
    kernels_.affine(g, y, norm.a.data(), norm.b.data(), norm.mean.data(), norm.c.data(), e, pixels_,
                    blocks_);
  }

  struct Places {
    int64_t taps, matrix;
  };

  // The depthwise output's gradient, framed, and with it the gradients of taps and matrix. Of a
  // full convolution its own output's gradient.
  void gather(const PackedStage<T>& stage,
              const T* e,
              const T* z,
              const StageInput<T>& input,
              T* framed,
              const Places& place,
              T* gradients) const {
    const Frame frame = grad_frame(stage);
    if (stage.is_full()) {
      kernels_.put_frame(e, framed, frame, blocks_);
      if (wants_matrix(*stage.stage)) {
        kernels_.convolve_matrix(input.map, input.frame, stage.windows[0], stage.in_blocks, framed,
                                 frame, node_.channels, gradients + place.matrix);
      }
      return;
    }
    kernels_.clear_frame(framed, frame, stage.z_blocks());
    kernels_.product(e, node_.channels, stage.transposed.data(), framed, frame, stage.z_blocks());
    if (wants_matrix(*stage.stage)) {
      kernels_.outer(e, node_.channels, z, stage.z_blocks(), pixels_, gradients + place.matrix);
    }
    if (stage.stage->grad_taps != nullptr) {
      kernels_.depthwise_taps(input.map, input.frame, stage.windows[0], framed, frame,
                              gradients + place.taps, stage.in_blocks);
    }
  }

  // Adds what the windows hand to their input of height x width.
  void scatter(
      const PackedStage<T>& stage, const T* framed, T* grad, int64_t height, int64_t width) const {
    const Frame frame = grad_frame(stage);
    if (stage.is_full()) {
      kernels_.convolve_input(framed, frame, stage.windows[0], node_.channels,
                              stage.transposed.data(), grad, height, width, stage.in_blocks);
      return;
    }
    for (size_t w = 0; w < stage.windows.size(); ++w) {
      kernels_.depthwise_input(
          framed + static_cast<int64_t>(w) * stage.in_blocks * frame.pixels() * lanes_, frame,
          stage.windows[w], stage.taps.data(), grad, height, width, stage.in_blocks);
    }
  }

  // Closes the ReLU and adds what comes through skips and pools.
  void reach_x(const MapView<T>& x, const MapView<T>& g, bool has_relu, T* grad_x, T* own) const {
    T skip{};
    bool has_skip = false;
    std::vector<size_t> pools[2];  // maxima, means
    for (size_t b = 0; b < stages_.size(); ++b) {
      const Branch<T>& branch = edge_.branches[b];
      if (is_pool(branch.kind)) pools[branch.kind == Kind::max_pool ? 0 : 1].push_back(b);
      if (branch.kind != Kind::skip) continue;
      skip += *branch.weight;
      has_skip = true;
    }
    if (has_relu || has_skip) {
      kernels_.relu_input(grad_x, x, has_skip ? &g : nullptr, skip, in_pixels_, in_blocks_);
    }
    const auto place = [&](size_t b) { return own + static_cast<int64_t>(b) * map_size(); };
    this->pool_branches(x, [](size_t) { return true; }, place);
    T* through[2] = {place(stages_.size()), place(stages_.size() + 1)};
    // One pool of each kind goes in one pass; more of a kind is allowed and takes more passes.
    for (size_t i = 0; i < std::max(pools[0].size(), pools[1].size()); ++i) {
      const bool has[2] = {i < pools[0].size(), i < pools[1].size()};
      for (size_t kind = 0; kind < 2; ++kind) {
        if (!has[kind]) continue;
        const size_t b = pools[kind][i];
        pass_norm(last_[b], g, place(b), through[kind]);
      }
      kernels_.pool_input(x, edge_.height, edge_.width, edge_.stride,
                          has[0] ? place(pools[0][i]) : nullptr, has[0] ? through[0] : nullptr,
                          has[1] ? through[1] : nullptr, grad_x, in_blocks_);
    }
  }

  // Adds up the runs in their order, into the place of the first.
  void merge_runs(const Parallel& parallel) {
    constexpr int64_t kPiece = 1024;
    parallel((run_size_ + kPiece - 1) / kPiece, [&](int64_t first, int64_t last) {
      double sums[kPiece];
      for (int64_t begin = first * kPiece; begin < std::min(last * kPiece, run_size_);
           begin += kPiece) {
        const int64_t count = std::min(kPiece, run_size_ - begin);
        T* from = gradients_.data() + begin;
        std::fill(sums, sums + count, 0.0);
        for (int64_t run = 0; run < runs_; ++run) {
          const T* part = from + run * run_size_;
          for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(part[i]);
        }
        for (int64_t i = 0; i < count; ++i) from[i] = static_cast<T>(sums[i]);
      }
    });
  }

  // Takes the gradients of a stage out of their blocks.
  void unpack_gradients(size_t b, size_t s) const {
    const PackedStage<T>& packed = stages_[b][s];
    const Stage<T>& stage = *packed.stage;
    const int64_t count = packed.taps_count();
    const auto at = [&](int64_t place) { return gradients_[static_cast<size_t>(place)]; };
    for (int64_t c = 0; c < stage.in_channels; ++c) {
      if (stage.grad_taps == nullptr) break;
      for (int64_t t = 0; t < count; ++t) {
        stage.grad_taps[c * count + t] =
            at(places_[b][s].taps + (c / lanes_ * count + t) * lanes_ + c % lanes_);
      }
    }
    for (int64_t k = 0; k < node_.channels; ++k) {
      const bool is_shifted = k >= stage.rows;
      T* to = is_shifted ? stage.grad_shifted : stage.grad_matrix;
      if (to == nullptr) continue;
      const int64_t taps = stage.is_full() ? count : 1;
      to += (is_shifted ? k - stage.rows : k) * stage.in_channels * taps;
      const int64_t step = packed.in_blocks * lanes_;
      const int64_t from =
          places_[b][s].matrix + k * packed.z_blocks() * lanes_ + (is_shifted ? step : 0);
      for (int64_t c = 0; c < stage.in_channels; ++c) {
        for (int64_t t = 0; t < taps; ++t) to[c * taps + t] = at(from + t * step + c);
      }
    }
  }

  const Images<const T>& grad_;
  const std::vector<double>& grad_sum_;  // [channels]
  double* grad_weights_;                 // [columns] or null
  std::vector<int64_t> slots_;           // [branches]: place among the kept maps, or -1
  int64_t kept_ = 0;
  T* maps_ = nullptr;         // [samples, kept, map]
  std::vector<double> sums_;  // [samples, branches, 2, channels]
  std::vector<Folded<T>> pool_norms_;
  std::vector<NormGradient<T>> last_, first_;  // [branches]
  std::vector<std::vector<Places>> places_;    // [branches][stages], inside the gradients of a run
  int64_t runs_ = 1, run_size_ = 0;
  std::vector<T> gradients_;  // [runs, run_size]
};

// Sum over the batch of the gradient, per channel.
template <typename T>
std::vector<double> sum_gradient(const Node<T>& node,
                                 const Images<const T>& grad,
                                 const Parallel& parallel) {
  const cpu::ImageKernels<T>& kernels = cpu::image_kernels<T>();
  const int64_t blocks = (node.channels + kernels.lanes - 1) / kernels.lanes;
  const int64_t width = blocks * kernels.lanes, pixels = node.height * node.width;
  std::vector<double> parts(static_cast<size_t>(node.samples * width));
  parallel(node.samples, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      MapView<T> view{grad.at(n), kernels.lanes, grad.pixel};
      if (node.channels % kernels.lanes != 0) {
        T* copy = sample_arena().numbers<T>(blocks * pixels * kernels.lanes);
        kernels.pack(grad.at(n), grad.pixel, copy, node.channels, pixels);
        view = {copy, pixels * kernels.lanes, kernels.lanes};
      }
      kernels.sums(view, pixels, blocks, parts.data() + n * width);
    }
  });
  std::vector<double> total(static_cast<size_t>(node.channels));
  for (int64_t n = 0; n < node.samples; ++n) {
    for (int64_t c = 0; c < node.channels; ++c) {
      total[static_cast<size_t>(c)] += parts[static_cast<size_t>(n * width + c)];
    }
  }
  return total;
}

}  // namespace

template <typename T>
void backward(const Node<T>& node,
              const Images<const T>& grad,
              double* grad_weights,
              const Parallel& parallel) {
  const std::vector<double> grad_sum = sum_gradient(node, grad, parallel);
  for (const Edge<T>& edge : node.edges) {
    if (edge.branches.empty()) {
      // Nobody reads the input.
      if (edge.grad_x.exists() && !edge.adds) {
        clear(edge.grad_x, node.samples, edge.height * edge.width, edge.channels);
      }
      continue;
    }
    BackwardEdge<T>(node, edge, grad, grad_sum, grad_weights).run(parallel);
  }
}

template void backward(const Node<float>&, const Images<const float>&, double*, const Parallel&);
template void backward(const Node<double>&, const Images<const double>&, double*, const Parallel&);

}  // namespace pfn::node
