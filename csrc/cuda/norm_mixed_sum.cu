// The forward of norm_mixed_sum: statistics in parts, their merge, the sum.
#include <cstdint>

#include "cuda/norm_block.cuh"

namespace pfn::cuda {
namespace {

using math::acc_t;
using math::kMaxCudaOps;

// Vectors whose loads are in flight together, and whose mean is a thread's first guess.
constexpr int kBatch = 4;
// Candidates whose loads are in flight together.
constexpr int kGroup = 2;

// A thread adds up distances from a guess of its own, in the accumulator's type; from there on sums
// are of float64 and of distances from a value that all threads of the channel share.
template <typename X, int kWidth, bool kRuns>
struct NormStatistics {
  static constexpr int kThreads = cuda::kThreads;
  static constexpr int kSlots = kRuns ? 1 : kWidth;
  using Acc = acc_t<X>;
  struct Shared {
    double sums[2][kThreads * kSlots];
  };

  NormTiles tiles;
  Pack<const X*> xs;
  double* partial;

  struct Sums {
    Acc guess[kSlots], distances[kSlots], squares[kSlots];
    int vectors;
  };

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const NormPlace place = norm_place(tiles, block.x());
    const NormThread thread = norm_thread(tiles, place, block.thread());
    const X* x = xs.at[block.y()];
    const Sums sums = add_up(x, place, thread);
    // Inside of the tensor for every thread, or the block would have no column or no sample.
    const X* values = x + place.first * tiles.row;
    Acc origin[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const int64_t column = kRuns || thread.column >= place.end ? place.begin : thread.column + i;
      origin[i] = math::widen(values[column]);
    }
    const double count = static_cast<double>(sums.vectors) * (kWidth / kSlots);
    const double share = sums.vectors > 0 ? 1.0 / count : 0.0;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) {
      const double mean = static_cast<double>(sums.distances[i]) * share;
      const double distance =
          static_cast<double>(sums.guess[i]) - static_cast<double>(origin[i]) + mean;
      const double within = static_cast<double>(sums.squares[i]) - count * mean * mean;
      const int at = block.thread() * kSlots + i;
      shared.sums[0][at] = sums.vectors > 0 ? count * distance : 0.0;
      shared.sums[1][at] = sums.vectors > 0 ? within + count * distance * distance : 0.0;
    }
    norm_fold<2, kSlots>(block, tiles, shared.sums);
    leave(block, place, origin, shared);
  }

  PFN_DEVICE Sums add_up(const X* x, const NormPlace& place, const NormThread& thread) const {
    Sums sums{};
    for (int step = 0; step < tiles.steps; step += kBatch) {
      Values<X, kWidth> batch[kBatch];
      bool is_there[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t at = norm_offset(tiles, place, thread, step + b);
        is_there[b] = at >= 0;
        if (is_there[b]) load_kept(x + at, batch[b]);
      }
      if (!is_there[0] && step == 0) break;
      if (step == 0) guess(batch, is_there, sums);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (!is_there[b]) continue;
        ++sums.vectors;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          const int slot = kRuns ? 0 : i;
          const Acc distance = math::widen(batch[b].values[i]) - sums.guess[slot];
          sums.distances[slot] += distance;
          sums.squares[slot] += distance * distance;
        }
      }
    }
    return sums;
  }

  // The mean of the first batch: one value alone could be far from all others.
  PFN_DEVICE void guess(const Values<X, kWidth> (&batch)[kBatch],
                        const bool (&is_there)[kBatch],
                        Sums& sums) const {
    int count = 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) count += is_there[b] ? 1 : 0;
    const Acc share = Acc{1} / static_cast<Acc>(count * (kWidth / kSlots));
    Acc first[kSlots];
#pragma unroll
    for (int i = 0; i < kSlots; ++i) first[i] = math::widen(batch[0].values[i]);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (!is_there[b]) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const int slot = kRuns ? 0 : i;
        sums.guess[slot] += (math::widen(batch[b].values[i]) - first[slot]) * share;
      }
    }
#pragma unroll
    for (int i = 0; i < kSlots; ++i) sums.guess[i] += first[i];
  }

  PFN_DEVICE void leave(const Block& block,
                        const NormPlace& place,
                        const Acc (&origin)[kSlots],
                        const Shared& shared) const {
    const int64_t size = tiles.pieces * norm_entries(tiles);
    double* means = partial + 2 * block.y() * size;
    const int64_t values =
        (place.last - place.first) * (kRuns ? place.end - place.begin : int64_t{1});
    norm_leave<kSlots>(block, tiles, place, [&](int slot, int at, int64_t entry) {
      const double sum = shared.sums[0][at], distance = sum / static_cast<double>(values);
      const double squares = shared.sums[1][at] - sum * distance;
      means[entry] = static_cast<double>(origin[slot]) + distance;
      means[size + entry] = squares < 0.0 ? 0.0 : squares;
    });
  }
};

// A block for each channel, a warp for each of its candidates in turn.
template <typename X>
struct NormMerge {
  static constexpr int kThreads = cuda::kThreads;
  using Acc = acc_t<X>;
  struct Shared {
    double terms[kMaxCudaOps];
  };

  NormTiles tiles;
  Pack<NormOperand> operands;
  const double* partial;
  const void* weights;
  double* statistics;
  Acc* table;
  int num_ops;
  NumberType weights_type;

  struct Moments {
    double mean, var;
  };

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const int64_t channel = block.x();
    const int lane = block.thread() % kWarpSize;
    for (int k = block.thread() / kWarpSize; k < num_ops; k += kWarps) {
      const double weight = read_number(weights, weights_type, k);
      const NormOperand& operand = operands.at[k];
      double scale = weight, mean = 0.0, term = 0.0;
      if (operand.row >= 0) {
        const Moments moments =
            operand.var != nullptr ? given(operand, channel) : merged(block, operand, channel);
        if (lane == 0) {
          double* to = statistics + 2 * operand.row * tiles.channels + channel;
          to[0] = moments.mean;
          to[tiles.channels] = moments.var;
        }
        mean = moments.mean;
        scale /= sqrt(moments.var + operand.eps);
        if (operand.gamma != nullptr) {
          scale *= read_number(operand.gamma, operand.gamma_type, channel);
          term = weight * read_number(operand.beta, operand.beta_type, channel);
        }
        const double below = mean_below<Acc>(mean);
        if (below != 0.0) term -= scale * below;
      }
      if (lane == 0) shared.terms[k] = term;
      fill(2 * k, channel, lane, scale);
      fill(2 * k + 1, channel, lane, mean);
    }
    block.sync();
    if (block.thread() >= kWarpSize) return;
    double bias = 0.0;
    for (int k = 0; k < num_ops; ++k) bias += shared.terms[k];
    fill(2 * num_ops, channel, lane, bias);
  }

  PFN_DEVICE void fill(int row, int64_t channel, int lane, double value) const {
    const int64_t repeat = norm_repeat(tiles);
    Acc* to = table + row * norm_table_size(tiles) + channel * repeat;
    for (int64_t i = lane; i < repeat; i += kWarpSize) to[i] = static_cast<Acc>(value);
  }

  PFN_DEVICE Moments given(const NormOperand& operand, int64_t channel) const {
    return {read_number(operand.mean, operand.mean_type, channel),
            read_number(operand.var, operand.var_type, channel)};
  }

  // Mean and biased variance from all parts: first their mean, then squares of distances from it.
  PFN_DEVICE Moments merged(const Block& block, const NormOperand& operand, int64_t channel) const {
    const int lane = block.thread() % kWarpSize;
    const int64_t size = tiles.pieces * norm_entries(tiles), items = norm_items(tiles);
    const double* means = partial + 2 * operand.part * size;
    const double count = static_cast<double>(norm_values(tiles));
    double sum = 0.0;
    for (int64_t item = lane; item < items; item += kWarpSize) {
      sum += means[norm_item(tiles, channel, item)] *
             static_cast<double>(norm_item_values(tiles, item));
    }
    const double mean = norm_warp_sum(block, sum) / count;
    double squares = 0.0;
    for (int64_t item = lane; item < items; item += kWarpSize) {
      const int64_t at = norm_item(tiles, channel, item);
      const double distance = means[at] - mean;
      squares += means[size + at] +
                 distance * distance * static_cast<double>(norm_item_values(tiles, item));
    }
    const double var = norm_warp_sum(block, squares) / count;
    if (std::isfinite(mean) && std::isfinite(var)) return {mean, var};
    return exact(block, static_cast<const X*>(operand.mean), channel);
  }

  // The same in float64 throughout: for channels that hold NaN or infinity, or whose squares are
  // too large for the type they are accumulated in.
  PFN_DEVICE Moments exact(const Block& block, const X* x, int64_t channel) const {
    const int lane = block.thread() % kWarpSize;
    const double count = static_cast<double>(norm_values(tiles));
    double sum = 0.0;
    for_each_value(x, channel, lane, [&](double value) { sum += value; });
    const double mean = norm_warp_sum(block, sum) / count;
    double squares = 0.0;
    for_each_value(x, channel, lane,
                   [&](double value) { squares += (value - mean) * (value - mean); });
    return {mean, norm_warp_sum(block, squares) / count};
  }

  // The lanes of a warp share out each run of a channel where it is long, else the samples.
  template <typename Function>
  PFN_DEVICE void for_each_value(const X* x, int64_t channel, int lane, Function&& function) const {
    const bool is_long = tiles.inner >= kWarpSize;
    const int sample_step = is_long ? 1 : kWarpSize, value_step = is_long ? kWarpSize : 1;
    for (int64_t sample = is_long ? 0 : lane; sample < tiles.outer; sample += sample_step) {
      const X* run = x + sample * tiles.row + channel * tiles.inner;
      for (int64_t i = is_long ? lane : 0; i < tiles.inner; i += value_step) {
        function(static_cast<double>(math::widen(run[i])));
      }
    }
  }
};

template <typename X, typename Out, int kWidth, bool kRuns>
struct NormSum {
  static constexpr int kThreads = cuda::kThreads;
  using Shared = NothingShared;
  using Acc = acc_t<X>;

  NormTiles tiles;
  Pack<const X*> xs;
  const Acc* table;
  const Acc* start;
  Out* out;
  int num_ops;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const NormPlace place = norm_place(tiles, block.x());
    const NormThread thread = norm_thread(tiles, place, block.thread());
    int64_t at[kNormVectors];
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) at[v] = norm_offset(tiles, place, thread, v);
    if (at[0] < 0) return;
    const int64_t size = norm_table_size(tiles);
    const Acc* mine = table + (kRuns ? place.channel : thread.column);
    const auto bias = coefficients<kRuns, kWidth>(mine + 2 * num_ops * size);
    Values<Acc, kWidth> sum[kNormVectors];
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      sum[v] = bias;
      if (start == nullptr || at[v] < 0) continue;
      Values<Acc, kWidth> before;
      before.load(start + at[v]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[v].values[i] += before.values[i];
    }
    for (int first = 0; first < num_ops; first += kGroup) {
      add_group(first, at, mine + 2 * first * size, sum);
    }
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      if (at[v] < 0) continue;
      Values<Out, kWidth> result;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) math::narrow(sum[v].values[i], &result.values[i]);
      result.store(out + at[v]);
    }
  }

  PFN_DEVICE void add_group(int first,
                            const int64_t (&at)[kNormVectors],
                            const Acc* mine,
                            Values<Acc, kWidth> (&sum)[kNormVectors]) const {
    Values<X, kWidth> x[kGroup][kNormVectors];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
#pragma unroll
      for (int v = 0; v < kNormVectors; ++v) {
        if (first + j < num_ops && at[v] >= 0) x[j][v].load(xs.at[first + j] + at[v]);
      }
    }
    const int64_t size = norm_table_size(tiles);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (first + j >= num_ops) break;
      const auto scale = coefficients<kRuns, kWidth>(mine + 2 * j * size);
      const auto mean = coefficients<kRuns, kWidth>(mine + (2 * j + 1) * size);
#pragma unroll
      for (int v = 0; v < kNormVectors; ++v) {
        if (at[v] < 0) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sum[v].values[i] += scale.values[i] * (math::widen(x[j][v].values[i]) - mean.values[i]);
        }
      }
    }
  }
};

}  // namespace

template <typename X>
cudaError_t launch_norm_statistics(
    const NormTiles& tiles, const X* const* xs, double* partial, int num_ops, cudaStream_t stream) {
  const auto packed = pack(xs, num_ops);
  return norm_dispatch<X>(tiles, [&](auto width, auto runs) {
    const NormStatistics<X, decltype(width)::value, decltype(runs)::value> kernel{tiles, packed,
                                                                                  partial};
    return launch(kernel, norm_blocks(tiles), num_ops, stream);
  });
}

template <typename X>
cudaError_t launch_norm_merge(const NormTiles& tiles,
                              const NormMergeLaunch<X>& args,
                              cudaStream_t stream) {
  const NormMerge<X> kernel{tiles,           pack(args.operands, args.num_ops),
                            args.partial,    args.weights,
                            args.statistics, args.table,
                            args.num_ops,    args.weights_type};
  return launch(kernel, tiles.channels, 1, stream);
}

template <typename X, typename Out>
cudaError_t launch_norm_sum(const NormTiles& tiles,
                            const X* const* xs,
                            const acc_t<X>* table,
                            const acc_t<X>* start,
                            Out* out,
                            int num_ops,
                            cudaStream_t stream) {
  const auto packed = pack(xs, num_ops);
  return norm_dispatch<X>(tiles, [&](auto width, auto runs) {
    const NormSum<X, Out, decltype(width)::value, decltype(runs)::value> kernel{
        tiles, packed, table, start, out, num_ops};
    return launch(kernel, norm_blocks(tiles), 1, stream);
  });
}

#define PFN_INSTANTIATE_X(X)                                                                      \
  template cudaError_t launch_norm_statistics<X>(const NormTiles&, const X* const*, double*, int, \
                                                 cudaStream_t);                                   \
  template cudaError_t launch_norm_merge<X>(const NormTiles&, const NormMergeLaunch<X>&,          \
                                            cudaStream_t);
#define PFN_INSTANTIATE(X, Out)                                                                    \
  template cudaError_t launch_norm_sum<X, Out>(const NormTiles&, const X* const*, const acc_t<X>*, \
                                               const acc_t<X>*, Out*, int, cudaStream_t);
PFN_INSTANTIATE_X(double)
PFN_INSTANTIATE_X(float)
PFN_INSTANTIATE_X(math::Half)
PFN_INSTANTIATE_X(math::BFloat16)
PFN_INSTANTIATE(double, double)
PFN_INSTANTIATE(float, float)
PFN_INSTANTIATE(math::Half, math::Half)
PFN_INSTANTIATE(math::Half, float)
PFN_INSTANTIATE(math::BFloat16, math::BFloat16)
PFN_INSTANTIATE(math::BFloat16, float)

}  // namespace pfn::cuda
