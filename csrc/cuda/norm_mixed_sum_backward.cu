// The backward of norm_mixed_sum: dot products per channel, what follows from them, the gradients
// of the candidates.
#include <cstdint>

#include "cuda/norm_block.cuh"

namespace pfn::cuda {
namespace {

using math::acc_t;
using math::kMaxCudaOps;

// Candidates that a block takes together with one reading of grad.
constexpr int kDots = 4;
// Candidates whose loads are in flight together.
constexpr int kGroup = 2;

// Blocks that read the same part of grad for different candidates are neighbours in the grid: all
// but the first find it in the cache.
template <typename X, typename Y, int kWidth, bool kRuns>
struct NormDots {
  static constexpr int kThreads = cuda::kThreads;
  static constexpr int kSlots = kRuns ? 1 : kWidth;
  using Acc = acc_t<X>;
  struct Shared {
    Acc sums[kDots + 1][kThreads * kSlots];  // the last of grad alone
  };

  NormTiles tiles;
  Pack<const X*> xs;
  Pack<const double*> means;
  const Y* grad;
  Acc* partial;
  Acc* total;
  int num_ops;
  int groups;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const int first = static_cast<int>(block.x() % groups) * kDots;
    const NormPlace place = norm_place(tiles, block.x() / groups);
    const NormThread thread = norm_thread(tiles, place, block.thread());
    Acc mean[kDots][kSlots], sums[kDots + 1][kSlots] = {};
    read_means(first, place, thread, mean);
    for (int step = 0; step < tiles.steps; ++step) {
      const int64_t at = norm_offset(tiles, place, thread, step);
      if (at >= 0) add(first, at, mean, sums);
    }
#pragma unroll
    for (int j = 0; j <= kDots; ++j) {
#pragma unroll
      for (int i = 0; i < kSlots; ++i) shared.sums[j][block.thread() * kSlots + i] = sums[j][i];
    }
    norm_fold<kDots + 1, kSlots>(block, tiles, shared.sums);
    const int64_t size = tiles.pieces * norm_entries(tiles);
    norm_leave<kSlots>(block, tiles, place, [&](int, int from, int64_t entry) {
#pragma unroll
      for (int j = 0; j < kDots; ++j) {
        if (first + j < num_ops) partial[(first + j) * size + entry] = shared.sums[j][from];
      }
      if (total != nullptr && first == 0) total[entry] = shared.sums[kDots][from];
    });
  }

  PFN_DEVICE void read_means(int first,
                             const NormPlace& place,
                             const NormThread& thread,
                             Acc (&mean)[kDots][kSlots]) const {
#pragma unroll
    for (int j = 0; j < kDots; ++j) {
      const double* from = first + j < num_ops ? means.at[first + j] : nullptr;
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        const int64_t column = thread.column + i;
        const int64_t channel = kRuns ? place.channel : column / tiles.inner;
        const bool is_there = from != nullptr && (kRuns || column < place.end);
        mean[j][i] = is_there ? static_cast<Acc>(from[channel]) : Acc{0};
      }
    }
  }

  PFN_DEVICE void add(int first,
                      int64_t at,
                      const Acc (&mean)[kDots][kSlots],
                      Acc (&sums)[kDots + 1][kSlots]) const {
    Values<Y, kWidth> g;
    Values<X, kWidth> x[kDots];
    load_kept(grad + at, g);
#pragma unroll
    for (int j = 0; j < kDots; ++j) {
      if (first + j < num_ops) load_kept(xs.at[first + j] + at, x[j]);
    }
#pragma unroll
    for (int j = 0; j < kDots; ++j) {
      if (first + j >= num_ops) break;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const int slot = kRuns ? 0 : i;
        const Acc distance = math::widen(x[j].values[i]) - mean[j][slot];
        sums[j][slot] += math::widen(g.values[i]) * distance;
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sums[kDots][kRuns ? 0 : i] += math::widen(g.values[i]);
  }
};

// A block for each channel, a warp for each of its candidates in turn.
template <typename Acc>
struct NormGradients {
  static constexpr int kThreads = cuda::kThreads;
  struct Shared {
    double total;
  };

  NormTiles tiles;
  Pack<NormGradientOperand> operands;
  const Acc* partial;
  const Acc* total;
  const void* weights;
  const double* statistics;
  double* of_weights;
  Acc* table;
  int num_ops;
  NumberType weights_type;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const int64_t channel = block.x();
    if (block.thread() < kWarpSize) {
      const double sum = total != nullptr ? sum_of(block, total, channel) : 0.0;
      if (block.thread() == 0) shared.total = sum;
    }
    block.sync();
    const int64_t size = tiles.pieces * norm_entries(tiles);
    for (int k = block.thread() / kWarpSize; k < num_ops; k += kWarps) {
      const int part = operands.at[k].part;
      const double dot = part >= 0 ? sum_of(block, partial + part * size, channel) : 0.0;
      finish(k, channel, block.thread() % kWarpSize, dot, shared.total);
    }
  }

  PFN_DEVICE double sum_of(const Block& block, const Acc* sums, int64_t channel) const {
    const int64_t items = norm_items(tiles);
    double sum = 0.0;
    for (int64_t item = block.thread() % kWarpSize; item < items; item += kWarpSize) {
      sum += static_cast<double>(sums[norm_item(tiles, channel, item)]);
    }
    return norm_warp_sum(block, sum);
  }

  // The gradients that the sums of one candidate in one channel give.
  PFN_DEVICE void finish(int k, int64_t channel, int lane, double dot, double total_of_grad) const {
    const NormGradientOperand& operand = operands.at[k];
    const double weight = read_number(weights, weights_type, k);
    const double count = static_cast<double>(norm_values(tiles));
    double rho = 1.0, gamma = 1.0, beta = 0.0, mean = 0.0, below = 0.0;
    if (operand.row >= 0) {
      const double* from = statistics + 2 * operand.row * tiles.channels + channel;
      mean = from[0];
      below = mean_below<Acc>(mean);
      if (below != 0.0) dot -= below * total_of_grad;
      // The statistics of nothing are NaN, the gradients zero.
      rho = norm_values(tiles) > 0 ? 1.0 / sqrt(from[tiles.channels] + operand.eps) : 0.0;
    }
    if (operand.gamma != nullptr) {
      gamma = read_number(operand.gamma, operand.gamma_type, channel);
      beta = read_number(operand.beta, operand.beta_type, channel);
    }
    if (lane == 0) {
      double of_weight = gamma * rho * dot;
      if (operand.gamma != nullptr) of_weight += beta * total_of_grad;
      if (of_weights != nullptr) of_weights[k * tiles.channels + channel] = of_weight;
      if (operand.grad_gamma != nullptr) {
        write_number(weight * rho * dot, operand.grad_gamma, operand.gamma_type, channel);
      }
      if (operand.grad_beta != nullptr) {
        write_number(weight * total_of_grad, operand.grad_beta, operand.beta_type, channel);
      }
    }
    if (table == nullptr) return;
    fill(4 * k, channel, lane, weight * gamma * rho);
    if (!operand.uses_batch) return;
    const double slope = -rho * rho * dot / count;
    fill(4 * k + 1, channel, lane, slope);
    fill(4 * k + 2, channel, lane, mean);
    fill(4 * k + 3, channel, lane, -total_of_grad / count - (below != 0.0 ? slope * below : 0.0));
  }

  PFN_DEVICE void fill(int row, int64_t channel, int lane, double value) const {
    const int64_t repeat = norm_repeat(tiles);
    Acc* to = table + row * norm_table_size(tiles) + channel * repeat;
    for (int64_t i = lane; i < repeat; i += kWarpSize) to[i] = static_cast<Acc>(value);
  }
};

// A block for each candidate.
struct NormWeights {
  static constexpr int kThreads = cuda::kThreads;
  struct Shared {
    double sums[kWarps];
  };

  const double* of_weights;
  void* grad_weights;
  int64_t channels;
  NumberType type;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const double* from = of_weights + block.x() * channels;
    double sum = 0.0;
    for (int64_t c = block.thread(); c < channels; c += kThreads) sum += from[c];
    sum = norm_warp_sum(block, sum);
    if (block.thread() % kWarpSize == 0) shared.sums[block.thread() / kWarpSize] = sum;
    block.sync();
    if (block.thread() != 0) return;
    double all = 0.0;
    for (int w = 0; w < kWarps; ++w) all += shared.sums[w];
    write_number(all, grad_weights, type, block.x());
  }
};

template <typename X, typename Y, int kWidth, bool kRuns>
struct NormScatter {
  static constexpr int kThreads = cuda::kThreads;
  using Shared = NothingShared;
  using Acc = acc_t<X>;

  NormTiles tiles;
  Pack<const X*> xs;
  Pack<X*> grad_xs;
  const Y* grad;
  const Acc* table;
  int num_ops;

  // A thread's part of grad and the places where its vectors begin.
  struct Part {
    Values<Y, kWidth> g[kNormVectors];
    int64_t at[kNormVectors];
  };

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const NormPlace place = norm_place(tiles, block.x());
    const NormThread thread = norm_thread(tiles, place, block.thread());
    Part part;
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      part.at[v] = norm_offset(tiles, place, thread, v);
      if (part.at[v] >= 0) part.g[v].load(grad + part.at[v]);
    }
    if (part.at[0] < 0) return;
    const Acc* mine = table + (kRuns ? place.channel : thread.column);
    for (int first = 0; first < num_ops; first += kGroup) write_group(first, mine, part);
  }

  PFN_DEVICE void write_group(int first, const Acc* mine, const Part& part) const {
    Values<X, kWidth> x[kGroup][kNormVectors];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (first + j >= num_ops || xs.at[first + j] == nullptr) continue;
#pragma unroll
      for (int v = 0; v < kNormVectors; ++v) {
        if (part.at[v] >= 0) x[j][v].load(xs.at[first + j] + part.at[v]);
      }
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int k = first + j;
      if (k >= num_ops || grad_xs.at[k] == nullptr) continue;
      const Acc* from = mine + 4 * k * norm_table_size(tiles);
      if (xs.at[k] != nullptr) {
        write(k, from, part, x[j]);
      } else {
        write_scaled(k, from, part);
      }
    }
  }

  PFN_DEVICE void write(int k,
                        const Acc* from,
                        const Part& part,
                        const Values<X, kWidth> (&x)[kNormVectors]) const {
    const int64_t size = norm_table_size(tiles);
    const auto scale = coefficients<kRuns, kWidth>(from);
    const auto slope = coefficients<kRuns, kWidth>(from + size);
    const auto mean = coefficients<kRuns, kWidth>(from + 2 * size);
    const auto shift = coefficients<kRuns, kWidth>(from + 3 * size);
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      if (part.at[v] < 0) continue;
      Values<X, kWidth> result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        // Scaled last: with large inputs the scaled slope would be too small for the type.
        const Acc distance = math::widen(x[v].values[i]) - mean.values[i];
        const Acc value =
            math::widen(part.g[v].values[i]) + (slope.values[i] * distance + shift.values[i]);
        math::narrow(scale.values[i] * value, &result.values[i]);
      }
      result.store(grad_xs.at[k] + part.at[v]);
    }
  }

  PFN_DEVICE void write_scaled(int k, const Acc* from, const Part& part) const {
    const auto scale = coefficients<kRuns, kWidth>(from);
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      if (part.at[v] < 0) continue;
      Values<X, kWidth> result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        math::narrow(scale.values[i] * math::widen(part.g[v].values[i]), &result.values[i]);
      }
      result.store(grad_xs.at[k] + part.at[v]);
    }
  }
};

}  // namespace

template <typename X, typename Y>
cudaError_t launch_norm_dots(const NormTiles& tiles,
                             const Y* grad,
                             const X* const* xs,
                             const double* const* means,
                             acc_t<X>* partial,
                             acc_t<X>* total,
                             int num_ops,
                             cudaStream_t stream) {
  const auto packed = pack(xs, num_ops);
  const auto packed_means = pack(means, num_ops);
  // One group even without candidates: for the sums of grad.
  const int groups = num_ops > 0 ? (num_ops + kDots - 1) / kDots : 1;
  return norm_dispatch<X>(tiles, [&](auto width, auto runs) {
    const NormDots<X, Y, decltype(width)::value, decltype(runs)::value> kernel{
        tiles, packed, packed_means, grad, partial, total, num_ops, groups};
    return launch(kernel, norm_blocks(tiles) * groups, 1, stream);
  });
}

template <typename Acc>
cudaError_t launch_norm_gradients(const NormTiles& tiles,
                                  const NormGradientsLaunch<Acc>& args,
                                  cudaStream_t stream) {
  const NormGradients<Acc> kernel{tiles,           pack(args.operands, args.num_ops),
                                  args.partial,    args.total,
                                  args.weights,    args.statistics,
                                  args.of_weights, args.table,
                                  args.num_ops,    args.weights_type};
  return launch(kernel, tiles.channels, 1, stream);
}

cudaError_t launch_norm_weights(const double* of_weights,
                                void* grad_weights,
                                NumberType type,
                                int64_t num_ops,
                                int64_t channels,
                                cudaStream_t stream) {
  const NormWeights kernel{of_weights, grad_weights, channels, type};
  return launch(kernel, num_ops, 1, stream);
}

template <typename X, typename Y>
cudaError_t launch_norm_scatter(const NormTiles& tiles,
                                const Y* grad,
                                const X* const* xs,
                                const acc_t<X>* table,
                                X* const* grad_xs,
                                int num_ops,
                                cudaStream_t stream) {
  const auto from = pack(xs, num_ops);
  const auto to = pack(grad_xs, num_ops);
  return norm_dispatch<X>(tiles, [&](auto width, auto runs) {
    const NormScatter<X, Y, decltype(width)::value, decltype(runs)::value> kernel{
        tiles, from, to, grad, table, num_ops};
    return launch(kernel, norm_blocks(tiles), 1, stream);
  });
}

#define PFN_INSTANTIATE(X, Y)                                                                  \
  template cudaError_t launch_norm_dots<X, Y>(const NormTiles&, const Y*, const X* const*,     \
                                              const double* const*, acc_t<X>*, acc_t<X>*, int, \
                                              cudaStream_t);                                   \
  template cudaError_t launch_norm_scatter<X, Y>(const NormTiles&, const Y*, const X* const*,  \
                                                 const acc_t<X>*, X* const*, int, cudaStream_t);
PFN_INSTANTIATE(double, double)
PFN_INSTANTIATE(float, float)
PFN_INSTANTIATE(math::Half, math::Half)
PFN_INSTANTIATE(math::Half, float)
PFN_INSTANTIATE(math::BFloat16, math::BFloat16)
PFN_INSTANTIATE(math::BFloat16, float)

template cudaError_t launch_norm_gradients<float>(const NormTiles&,
                                                  const NormGradientsLaunch<float>&,
                                                  cudaStream_t);
template cudaError_t launch_norm_gradients<double>(const NormTiles&,
                                                   const NormGradientsLaunch<double>&,
                                                   cudaStream_t);

}  // namespace pfn::cuda
