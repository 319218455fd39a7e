#include <cstdint>

#include "cuda/block.h"
#include "cuda/gumbel_geometry.h"
#include "cuda/launch.h"
#include "cuda/row_block.h"
#include "math/gumbel.h"
#include "math/subset.h"

namespace pfn::cuda {
namespace {

// Threads that a multiprocessor is to hold at once: 128 registers each.
constexpr int kResidentThreads = 512;

// One block a row. A column belongs to one thread, which alone touches its scratch and gradient.
template <typename T, int kBlock>
struct SubsetRows {
  using Shared = WarpPicks<T, kBlock>;
  using L = math::Scalar<T>;
  using Rank = math::SubsetRank<T>;

  SubsetLaunch<T> args;

  PFN_DEVICE bool is_valid(const Block& block, int64_t row) const {
    bool valid = true;
    for (int64_t r = block.thread(); r < args.k; r += kBlock) {
      const int64_t index = args.indices[row * args.k + r];
      valid &= index >= 0 && index < args.columns;
    }
    return block.all(valid);
  }

  PFN_DEVICE void start(const Block& block, int64_t row) const {
    const int64_t at = row * args.columns;
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      args.scratch[at + j] = args.keys[at + j];
    }
  }

  // The softmax of the scores in scratch, known to all threads.
  PFN_DEVICE Rank rank_of_scores(const Block& block, Shared& shared, int64_t row) const {
    const T* scores = args.scratch + row * args.columns;
    Pick<T> best{-static_cast<T>(HUGE_VALF), INT32_MAX};
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      best = better(best, Pick<T>{scores[j], static_cast<int32_t>(j)});
    }
    best = best_of_block<kBlock>(block, shared, best);
    Rank rank{best.key, T{}, best.column};
    T others{};
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      others += j == rank.column ? T{} : math::subset_term<L>(scores[j], rank, args.inv_tau);
    }
    rank.others = sum_of_block<kBlock>(block, shared, others);
    return rank;
  }

  PFN_DEVICE void advance(const Block& block, int64_t row, const Rank& rank) const {
    T* scores = args.scratch + row * args.columns;
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      scores[j] = math::subset_next<L>(scores[j], static_cast<int32_t>(j), rank, args.inv_tau);
    }
  }
};

template <typename T, int kBlock>
struct SubsetWeights : SubsetRows<T, kBlock> {
  static constexpr int kThreads = kBlock;
  static constexpr int kBlocks = kResidentThreads / kBlock;
  using Base = SubsetRows<T, kBlock>;
  using typename Base::Shared;

  T* weights;  // [rows, k]

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    for (int64_t row = block.x(); row < this->args.rows; row += block.blocks()) {
      T* out = weights + row * this->args.k;
      if (!this->is_valid(block, row)) {
        for (int64_t r = block.thread(); r < this->args.k; r += kBlock) out[r] = T{};
        continue;
      }
      this->start(block, row);
      for (int64_t r = 0; r < this->args.k; ++r) {
        const auto rank = this->rank_of_scores(block, shared, row);
        const int64_t chosen = this->args.indices[row * this->args.k + r];
        if (block.thread() == chosen % kBlock) {
          const T score = this->args.scratch[row * this->args.columns + chosen];
          const T e = math::subset_term<typename Base::L>(score, rank, this->args.inv_tau);
          out[r] = e / (1 + rank.others);
        }
        if (r + 1 < this->args.k) this->advance(block, row, rank);
      }
      block.sync();
    }
  }
};

template <typename T, int kBlock>
struct SubsetBackward : SubsetRows<T, kBlock> {
  static constexpr int kThreads = kBlock;
  static constexpr int kBlocks = kResidentThreads / kBlock;
  using Base = SubsetRows<T, kBlock>;
  using typename Base::L;
  using typename Base::Rank;
  using typename Base::Shared;

  const T* grad_weights;  // [rows, k]
  Rank* ranks;            // [rows, k]
  T* grad;                // [rows, columns]

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    for (int64_t row = block.x(); row < this->args.rows; row += block.blocks()) {
      const int64_t columns = this->args.columns, k = this->args.k;
      const bool is_valid = this->is_valid(block, row);
      for (int64_t j = block.thread(); j < columns; j += kBlock) grad[row * columns + j] = T{};
      if (!is_valid) continue;
      this->start(block, row);
      for (int64_t r = 0; r < k; ++r) {
        const Rank rank = this->rank_of_scores(block, shared, row);
        if (block.thread() == 0) ranks[row * k + r] = rank;
        if (r + 1 < k) this->advance(block, row, rank);
      }
      block.sync();
      for (int64_t r = k - 1; r >= 0; --r) differentiate(block, shared, row, r);
      block.sync();
    }
  }

  // From the gradient of the scores after rank r to that before it.
  PFN_DEVICE void differentiate(const Block& block, Shared& shared, int64_t row, int64_t r) const {
    const int64_t columns = this->args.columns, k = this->args.k;
    const T inv_tau = this->args.inv_tau;
    const Rank* before = ranks + row * k;
    const Rank rank = before[r];
    const int32_t chosen = static_cast<int32_t>(this->args.indices[row * k + r]);
    const T* keys = this->args.keys + row * columns;
    T* terms = this->args.scratch + row * columns;
    T* g = grad + row * columns;
    T others{}, best{}, q{};
    for (int64_t j = block.thread(); j < columns; j += kBlock) {
      const int32_t column = static_cast<int32_t>(j);
      const T score = math::subset_score<L>(keys[j], column, before, r, inv_tau);
      const T e = math::subset_term<L>(score, rank, inv_tau);
      terms[j] = e;
      q += column == chosen ? e / (1 + rank.others) : T{};
      if (column == rank.column) {
        best += math::subset_is_differentiable(rank) ? g[j] : T{};
      } else {
        others += g[j] * (e / math::subset_left<L>(e, column, rank)) / (1 + rank.others);
      }
    }
    math::SubsetSums<T> sums;
    sums.best = sum_of_block<kBlock>(block, shared, best);
    sums.chosen = sum_of_block<kBlock>(block, shared, q);
    sums.incoming = grad_weights[row * k + r];
    sums.shared = sum_of_block<kBlock>(block, shared, others) - sums.best / (1 + rank.others);
    for (int64_t j = block.thread(); j < columns; j += kBlock) {
      g[j] = math::subset_backward<L>(g[j], terms[j], static_cast<int32_t>(j), chosen, rank, sums,
                                      inv_tau);
    }
  }
};

}  // namespace

template <typename T>
cudaError_t launch_subset_weights(const SubsetLaunch<T>& args, T* weights, cudaStream_t stream) {
  const int64_t blocks = blocks_for(args.rows, 1, kMaxGridX);
  if (threads_per_row(args.columns) == kWarpSize) {
    return launch(SubsetWeights<T, kWarpSize>{{args}, weights}, blocks, 1, stream);
  }
  return launch(SubsetWeights<T, kThreads>{{args}, weights}, blocks, 1, stream);
}

template <typename T>
cudaError_t launch_subset_weights_backward(const SubsetLaunch<T>& args,
                                           const T* grad_weights,
                                           math::SubsetRank<T>* ranks,
                                           T* grad,
                                           cudaStream_t stream) {
  const int64_t blocks = blocks_for(args.rows, 1, kMaxGridX);
  if (threads_per_row(args.columns) == kWarpSize) {
    return launch(SubsetBackward<T, kWarpSize>{{args}, grad_weights, ranks, grad}, blocks, 1,
                  stream);
  }
  return launch(SubsetBackward<T, kThreads>{{args}, grad_weights, ranks, grad}, blocks, 1, stream);
}

template cudaError_t launch_subset_weights(const SubsetLaunch<double>&, double*, cudaStream_t);
template cudaError_t launch_subset_weights(const SubsetLaunch<float>&, float*, cudaStream_t);
template cudaError_t launch_subset_weights_backward(
    const SubsetLaunch<double>&, const double*, math::SubsetRank<double>*, double*, cudaStream_t);
template cudaError_t launch_subset_weights_backward(
    const SubsetLaunch<float>&, const float*, math::SubsetRank<float>*, float*, cudaStream_t);

}  // namespace pfn::cuda
