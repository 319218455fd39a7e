// What forward and backward of one edge share: packed weights, folded norms, geometry, scratch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/image_kernels.h"
#include "node/arena.h"
#include "node/node.h"

namespace pfn::node {

using cpu::Frame;
using cpu::MapView;
using cpu::Window;

// Numbers past the end of a map that a whole tile may read, though not use.
constexpr int64_t kSlackPixels = 16;

template <typename T>
void clear(const Images<T>& images, int64_t samples, int64_t pixels, int64_t channels) {
  for (int64_t n = 0; n < samples; ++n) {
    T* pixel = images.at(n);
    for (int64_t p = 0; p < pixels; ++p, pixel += images.pixel) std::fill_n(pixel, channels, T{});
  }
}

inline bool is_pool(Kind kind) { return kind == Kind::max_pool || kind == Kind::mean_pool; }

// A norm as (y - mean) * scale + shift; channels past the last are zero.
template <typename T>
struct Folded {
  std::vector<T> mean, scale, shift;
};

// A stage with its weights in blocks of lanes. What its matrix multiplies, z, has the channels of
// the input once for each window (one, or two of a factorised reduction); of a full convolution
// once for each tap, and is never formed.
template <typename T>
struct PackedStage {
  const Stage<T>* stage = nullptr;
  std::vector<Window> windows;
  int64_t in_blocks = 0;
  int64_t z_channels = 0;
  std::vector<T> taps;        // [in_blocks, size * size, lanes]
  std::vector<T> matrix;      // [blocks, z_channels, lanes]
  std::vector<T> transposed;  // [z_blocks, channels, lanes]
  Folded<T> folded;

  bool is_full() const { return stage->is_full(); }
  int64_t taps_count() const { return windows[0].size * windows[0].size; }
  int64_t z_blocks() const {
    return in_blocks * (is_full() ? taps_count() : static_cast<int64_t>(windows.size()));
  }
  // The frame that a gradient needs for the windows to be turned over it.
  int64_t border() const { return windows[0].reach() > 0 ? windows[0].reach() : 0; }
};

// The rectified map that a stage reads.
template <typename T>
struct StageInput {
  const T* map;
  Frame frame;
};

template <typename T>
class EdgePass {
 public:
  EdgePass(const Node<T>& node, const Edge<T>& edge)
      : node_(node),
        edge_(edge),
        kernels_(cpu::image_kernels<T>()),
        lanes_(kernels_.lanes),
        in_blocks_((edge.channels + lanes_ - 1) / lanes_),
        blocks_((node.channels + lanes_ - 1) / lanes_),
        in_pixels_(edge.height * edge.width),
        pixels_(node.height * node.width) {
    for (const Branch<T>& branch : edge.branches) {
      std::vector<PackedStage<T>>& stages = stages_.emplace_back();
      for (const Stage<T>& stage : branch.stages) {
        stages.push_back(pack(stage, stages.empty() ? edge.stride : 1));
        int64_t& border = stages.size() == 1 ? in_border_ : border_;
        border = std::max(border, stages.back().border());
        if (!stages.back().is_full()) z_blocks_ = std::max(z_blocks_, stages.back().z_blocks());
      }
    }
  }

 protected:
  // Frames of relu(x), of the hidden map between two stages, and of a map without any frame.
  Frame in_frame() const { return {edge_.height, edge_.width, in_border_}; }
  Frame hidden_frame() const { return {node_.height, node_.width, border_}; }
  Frame bare() const { return {node_.height, node_.width, 0}; }
  Frame grad_frame(const PackedStage<T>& stage) const {
    return {node_.height, node_.width, stage.border()};
  }

  int64_t map_size() const { return blocks_ * pixels_ * lanes_; }
  int64_t framed_size(const Frame& frame, int64_t blocks) const {
    return (blocks * frame.pixels() + kSlackPixels) * lanes_;
  }

  // The map of one sample, in place where whole vectors allow it, else as a copy.
  MapView<T> view(
      const Images<const T>& images, int64_t n, int64_t channels, int64_t pixels, T* copy) const {
    if (channels % lanes_ == 0) return {images.at(n), lanes_, images.pixel};
    kernels_.pack(images.at(n), images.pixel, copy, channels, pixels);
    return blocked(copy, pixels);
  }
  MapView<T> blocked(const T* map, int64_t pixels) const { return {map, pixels * lanes_, lanes_}; }

  // z = what the windows see, y = its product with the matrix.
  void stage_output(const PackedStage<T>& stage, const StageInput<T>& input, T* z, T* y) const {
    if (stage.is_full()) {
      kernels_.convolve(input.map, input.frame, stage.windows[0], stage.stage->in_channels,
                        stage.matrix.data(), y, node_.height, node_.width, blocks_);
      return;
    }
    for (size_t w = 0; w < stage.windows.size(); ++w) {
      kernels_.depthwise(input.map, input.frame, stage.windows[w], stage.taps.data(),
                         z + static_cast<int64_t>(w) * stage.in_blocks * pixels_ * lanes_,
                         node_.height, node_.width, stage.in_blocks);
    }
    kernels_.product(z, stage.z_channels, stage.matrix.data(), y, bare(), blocks_);
  }

  // The pools of an edge that `wants(branch)`, both kinds in one pass; place(branch) says where
  // each goes. More than one of a kind takes more passes.
  template <typename Wants, typename Place>
  void pool_branches(const MapView<T>& x, Wants&& wants, Place&& place) const {
    T* waiting[2] = {nullptr, nullptr};  // maxima, means
    const auto flush = [&] {
      if (waiting[0] == nullptr && waiting[1] == nullptr) return;
      kernels_.pool(x, edge_.height, edge_.width, edge_.stride, waiting[0], waiting[1], blocks_);
      waiting[0] = waiting[1] = nullptr;
    };
    for (size_t b = 0; b < edge_.branches.size(); ++b) {
      const Kind kind = edge_.branches[b].kind;
      if (!is_pool(kind) || !wants(b)) continue;
      T*& slot = waiting[kind == Kind::max_pool ? 0 : 1];
      if (slot != nullptr) flush();
      slot = place(b);
    }
    flush();
  }

  const Norm<T>& last_norm(size_t branch) const {
    const Branch<T>& b = edge_.branches[branch];
    return b.kind == Kind::conv ? b.stages.back().norm : b.norm;
  }

  double rho(const Norm<T>& norm, int64_t channel) const {
    return 1.0 / std::sqrt(variance(norm)[channel] + norm.eps);
  }
  double* mean(const Norm<T>& norm) const {
    return node_.statistics + norm.index * 2 * node_.channels;
  }
  double* variance(const Norm<T>& norm) const { return mean(norm) + node_.channels; }

  // The norm in the number type of the maps; one that does not exist is the identity. What rounding
  // the mean takes away goes into the shift.
  Folded<T> fold(const Norm<T>& norm) const {
    const size_t width = static_cast<size_t>(blocks_ * lanes_);
    Folded<T> folded{std::vector<T>(width), std::vector<T>(width), std::vector<T>(width)};
    for (int64_t c = 0; c < node_.channels; ++c) {
      const size_t at = static_cast<size_t>(c);
      if (!norm.exists) {
        folded.scale[at] = T{1};
        continue;
      }
      const double gamma = norm.gamma != nullptr ? static_cast<double>(norm.gamma[c]) : 1.0;
      const double beta = norm.beta != nullptr ? static_cast<double>(norm.beta[c]) : 0.0;
      const double scale = gamma * rho(norm, c);
      folded.mean[at] = static_cast<T>(mean(norm)[c]);
      folded.scale[at] = static_cast<T>(scale);
      folded.shift[at] =
          static_cast<T>(beta + scale * (static_cast<double>(folded.mean[at]) - mean(norm)[c]));
    }
    return folded;
  }

  const Node<T>& node_;
  const Edge<T>& edge_;
  const cpu::ImageKernels<T>& kernels_;
  const int64_t lanes_;
  const int64_t in_blocks_, blocks_;
  const int64_t in_pixels_, pixels_;
  int64_t in_border_ = 0, border_ = 0;
  int64_t z_blocks_ = 1;                             // the most that any stage forms
  std::vector<std::vector<PackedStage<T>>> stages_;  // [branches][stages]

 private:
  PackedStage<T> pack(const Stage<T>& stage, int64_t stride) const {
    PackedStage<T> packed;
    packed.stage = &stage;
    // Without a window it is one tap of one.
    const bool has_window = stage.size > 0;
    packed.windows.push_back(
        {has_window ? stage.size : 1, has_window ? stage.dilation : 1, stride, 0});
    packed.in_blocks = (stage.in_channels + lanes_ - 1) / lanes_;
    packed.z_channels = stage.in_channels * (stage.is_full() ? packed.taps_count() : 1);
    if (stage.shifted != nullptr) {
      packed.windows.push_back({1, 1, stride, 1});
      packed.z_channels = packed.z_blocks() * lanes_;
    }
    if (!stage.is_full()) pack_taps(packed);
    pack_matrix(packed);
    return packed;
  }
  void pack_taps(PackedStage<T>& packed) const {
    const Stage<T>& stage = *packed.stage;
    const int64_t count = packed.taps_count();
    packed.taps.resize(static_cast<size_t>(packed.in_blocks * count * lanes_));
    for (int64_t c = 0; c < stage.in_channels; ++c) {
      for (int64_t t = 0; t < count; ++t) {
        packed.taps[place(c / lanes_ * count + t, c % lanes_)] =
            stage.taps != nullptr ? stage.taps[c * count + t] : T{1};
      }
    }
  }
  void pack_matrix(PackedStage<T>& packed) const {
    const Stage<T>& stage = *packed.stage;
    const int64_t in = stage.in_channels, count = stage.is_full() ? packed.taps_count() : 1;
    packed.matrix.resize(static_cast<size_t>(blocks_ * packed.z_channels * lanes_));
    packed.transposed.resize(static_cast<size_t>(packed.z_blocks() * node_.channels * lanes_));
    for (int64_t c = 0; c < node_.channels; ++c) {
      const bool is_shifted = c >= stage.rows;
      const T* row =
          is_shifted ? stage.shifted + (c - stage.rows) * in : stage.matrix + c * in * count;
      const int64_t first_block = is_shifted ? packed.in_blocks : 0;
      // Taps lie one after another: in whole blocks where they are outputs.
      for (int64_t t = 0; t < count; ++t) {
        T* to = packed.matrix.data() +
                place(c / lanes_ * packed.z_channels + first_block * lanes_ + t * in, c % lanes_);
        for (int64_t k = 0; k < in; ++k) to[k * lanes_] = row[k * count + t];
        for (int64_t b = 0, k = 0; b < packed.in_blocks; ++b) {
          const int64_t z_block = first_block + t * packed.in_blocks + b;
          to = packed.transposed.data() + place(z_block * node_.channels + c, 0);
          for (int64_t lane = 0; lane < lanes_ && k < in; ++lane, ++k) {
            to[lane] = row[k * count + t];
          }
        }
      }
    }
  }
  size_t place(int64_t row, int64_t lane) const { return static_cast<size_t>(row * lanes_ + lane); }
};

}  // namespace pfn::node
