#include <cstdint>

#include "cuda/block.h"
#include "cuda/gumbel_geometry.h"
#include "cuda/launch.h"
#include "cuda/row_block.h"
#include "math/gumbel.h"
#include "math/philox.h"
#include "math/sample_row.h"
#include "math/softmax.h"

namespace pfn::cuda {
namespace {

PFN_DEVICE math::PhiloxSeed read_seed(const int64_t* seed, int64_t stride) {
  return math::philox_seed(seed[0], seed[stride]);
}

// A row that cannot be sampled gets index -1 and weight 0, and the flag is raised.
template <typename T>
PFN_DEVICE void refuse_row(const GumbelTopkLaunch<T>& args, int64_t row, int first, int step) {
  for (int64_t r = first; r < args.k; r += step) {
    args.weights[row * args.k + r] = T{};
    args.indices[row * args.k + r] = -1;
  }
  if (first == 0) *args.flag = 1;
}

// One thread a row: k best keys and the running sum stay in registers.
template <typename T, int kTop>
struct SampleRows {
  static constexpr int kThreads = kRowThreads;
  using Shared = NothingShared;

  GumbelTopkLaunch<T> args;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const math::PhiloxSeed seed = read_seed(args.seed, args.seed_stride);
    for (int64_t row = first_item(block.x(), kThreads, block.thread()); row < args.rows;
         row += block.blocks() * kThreads) {
      const int64_t at = row * args.columns;
      const bool usable = math::sample_row<T, kTop>(
          args.logits + at, args.noise != nullptr ? args.noise + at : nullptr, args.columns, seed,
          static_cast<uint32_t>(row), args.inv_tau, args.conditional, args.weights + row * kTop,
          args.indices + row * kTop, args.keys != nullptr ? args.keys + at : nullptr);
      if (!usable) refuse_row(args, row, 0, 1);
    }
  }
};

// One block a row, one pass over the keys for each rank.
template <typename T, int kBlock>
struct SampleLongRows {
  static constexpr int kThreads = kBlock;
  using Shared = WarpPicks<T, kBlock>;
  using L = math::Scalar<T>;

  GumbelTopkLaunch<T> args;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const math::PhiloxSeed seed = read_seed(args.seed, args.seed_stride);
    for (int64_t row = block.x(); row < args.rows; row += block.blocks()) {
      bool usable = write_keys(block, seed, row);
      T top = -static_cast<T>(HUGE_VALF);
      Pick<T> last{static_cast<T>(HUGE_VALF), -1};
      for (int64_t r = 0; r < args.k && usable; ++r) {
        last = best_after(block, shared, row, last);
        usable = last.key > -static_cast<T>(HUGE_VALF);
        top = r == 0 ? last.key : top;
        if (block.thread() == 0) {
          args.weights[row * args.k + r] = last.key;
          args.indices[row * args.k + r] = last.column;
        }
      }
      if (usable) {
        relax(block, shared, row, top, last);
      } else {
        block.sync();
        refuse_row(args, row, block.thread(), kBlock);
      }
    }
  }

  // Keys of one row; returns to every thread whether all were below +inf.
  PFN_DEVICE bool write_keys(const Block& block, const math::PhiloxSeed& seed, int64_t row) const {
    const int64_t at = row * args.columns;
    bool usable = true;
    for (int64_t n = block.thread(); n < counters_per_row(args.columns); n += kBlock) {
      uint32_t words[4] = {};
      if (args.noise == nullptr) {
        math::philox_words(seed, math::philox_block(n, 0), static_cast<uint32_t>(row), words);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t j = 4 * n + i;
        if (j < args.columns) {
          const T noise = args.noise != nullptr ? args.noise[at + j] : math::gumbel<L>(words[i]);
          const T key = args.logits[at + j] + noise;
          args.keys[at + j] = key;
          usable &= key < HUGE_VALF;
        }
      }
    }
    return block.all(usable);
  }

  // The best key that ranks after `last`.
  PFN_DEVICE Pick<T> best_after(const Block& block,
                                Shared& shared,
                                int64_t row,
                                const Pick<T>& last) const {
    const T* keys = args.keys + row * args.columns;
    Pick<T> mine{-static_cast<T>(HUGE_VALF), INT32_MAX};
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      const Pick<T> here{keys[j], static_cast<int32_t>(j)};
      if (math::ranks_before(last.key, last.column, here.key, here.column)) {
        mine = better(mine, here);
      }
    }
    return best_of_block<kBlock>(block, shared, mine);
  }

  // Weights from the kept keys, which stand in their place.
  PFN_DEVICE void relax(
      const Block& block, Shared& shared, int64_t row, T top, const Pick<T>& last) const {
    const T* keys = args.keys + row * args.columns;
    T* weights = args.weights + row * args.k;
    const T reference = args.conditional ? last.key : top;
    T sum{};
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      sum += math::relaxed_term<L>(keys[j], static_cast<int32_t>(j), reference, last.key,
                                   last.column, args.inv_tau, args.conditional);
    }
    sum = sum_of_block<kBlock>(block, shared, sum);
    block.sync();
    if (args.conditional) {
      if (block.thread() == 0) {
        math::relaxed_weights<L>(weights, sum, args.k, args.inv_tau, true, weights);
      }
    } else {
      for (int64_t r = block.thread(); r < args.k; r += kBlock) {
        weights[r] = L::exp((weights[r] - top) * args.inv_tau) / sum;
      }
    }
    block.sync();
  }
};

// Out of line, so that the registers of one thread's long way do not spill those of the others.
template <typename T>
PFN_DEVICE_CALLED T conditional_ranks(const GumbelTopkBackwardLaunch<T>& args,
                                      int64_t row,
                                      T rest) {
  return math::conditional_backward<math::Scalar<T>>(
      args.keys + row * args.columns, args.indices + row * args.k, args.grad_weights + row * args.k,
      args.k, args.inv_tau, rest, args.grad + row * args.columns);
}

// One block a row; the same formulas as on the CPU.
template <typename T, int kBlock>
struct SampleBackward {
  static constexpr int kThreads = kBlock;
  struct Shared : WarpValues<T, kBlock> {
    T carried;
  };
  using L = math::Scalar<T>;

  GumbelTopkBackwardLaunch<T> args;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    for (int64_t row = block.x(); row < args.rows; row += block.blocks()) {
      if (is_valid(block, row)) {
        differentiate(block, shared, row);
      } else {
        // A row that could not be sampled; its flag was raised then.
        T* grad = args.grad + row * args.columns;
        for (int64_t j = block.thread(); j < args.columns; j += kBlock) grad[j] = T{};
      }
    }
  }

  PFN_DEVICE bool is_valid(const Block& block, int64_t row) const {
    const int64_t* indices = args.indices + row * args.k;
    bool valid = true;
    for (int64_t r = block.thread(); r < args.k; r += kBlock) {
      valid &= indices[r] >= 0 && indices[r] < args.columns;
    }
    return block.all(valid);
  }

  PFN_DEVICE void differentiate(const Block& block, Shared& shared, int64_t row) const {
    const T* keys = args.keys + row * args.columns;
    T* grad = args.grad + row * args.columns;
    const int64_t* indices = args.indices + row * args.k;
    const T* grad_weights = args.grad_weights + row * args.k;
    const T top = keys[indices[0]], last = keys[indices[args.k - 1]];
    const int32_t last_column = static_cast<int32_t>(indices[args.k - 1]);
    const T reference = args.conditional ? last : top;
    T sum{};
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      sum += math::relaxed_term<L>(keys[j], static_cast<int32_t>(j), reference, last, last_column,
                                   args.inv_tau, args.conditional);
    }
    sum = sum_of_block<kBlock>(block, shared, sum);
    T mean{}, factor;
    if (args.conditional) {
      if (block.thread() == 0) shared.carried = conditional_ranks(args, row, sum);
      block.sync();
      factor = -shared.carried;
    } else {
      for (int64_t r = block.thread(); r < args.k; r += kBlock) {
        mean += grad_weights[r] * (L::exp((keys[indices[r]] - top) * args.inv_tau) / sum);
      }
      mean = sum_of_block<kBlock>(block, shared, mean);
      factor = -mean / sum;
    }
    for (int64_t j = block.thread(); j < args.columns; j += kBlock) {
      const bool is_kept = math::is_kept<L>(keys[j], static_cast<int32_t>(j), last, last_column);
      if (!is_kept) grad[j] = L::exp((keys[j] - reference) * args.inv_tau) * factor * args.inv_tau;
    }
    if (!args.conditional) {
      for (int64_t r = block.thread(); r < args.k; r += kBlock) {
        const T q = L::exp((keys[indices[r]] - top) * args.inv_tau) / sum;
        grad[indices[r]] = q * (grad_weights[r] - mean) * args.inv_tau;
      }
    }
    block.sync();
  }
};

// One thread a counter: four columns of a row.
struct PhiloxUniform {
  static constexpr int kThreads = cuda::kThreads;
  using Shared = NothingShared;

  const int64_t* seed_words;
  int64_t seed_stride;
  int stream;
  int64_t first_row;
  int64_t rows;
  int64_t columns;
  float* out;

  PFN_DEVICE void run(const Block& block, Shared&) const {
    const math::PhiloxSeed seed = read_seed(seed_words, seed_stride);
    const int64_t counters = counters_per_row(columns);
    for (int64_t item = first_item(block.x(), kThreads, block.thread()); item < rows * counters;
         item += block.blocks() * kThreads) {
      const int64_t row = item / counters, counter = item % counters;
      uint32_t words[4];
      math::philox_words(seed, math::philox_block(counter, stream),
                         static_cast<uint32_t>(first_row + row), words);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t j = 4 * counter + i;
        if (j < columns) out[row * columns + j] = math::open_uniform<math::Scalar<float>>(words[i]);
      }
    }
  }
};

template <typename T, int kTop>
cudaError_t sample_rows(const GumbelTopkLaunch<T>& args, cudaStream_t stream) {
  return launch(SampleRows<T, kTop>{args}, blocks_for(args.rows, kRowThreads, kMaxGridX), 1,
                stream);
}

}  // namespace

template <typename T>
cudaError_t launch_gumbel_topk(const GumbelTopkLaunch<T>& args, cudaStream_t stream) {
  if (samples_in_registers(args.columns, args.k)) {
    switch (args.k) {
      case 1:
        return sample_rows<T, 1>(args, stream);
      case 2:
        return sample_rows<T, 2>(args, stream);
      case 3:
        return sample_rows<T, 3>(args, stream);
      default:
        return sample_rows<T, 4>(args, stream);
    }
  }
  const int64_t blocks = blocks_for(args.rows, 1, kMaxGridX);
  if (threads_per_row(args.columns) == kWarpSize) {
    return launch(SampleLongRows<T, kWarpSize>{args}, blocks, 1, stream);
  }
  return launch(SampleLongRows<T, kThreads>{args}, blocks, 1, stream);
}

template <typename T>
cudaError_t launch_gumbel_topk_backward(const GumbelTopkBackwardLaunch<T>& args,
                                        cudaStream_t stream) {
  const int64_t blocks = blocks_for(args.rows, 1, kMaxGridX);
  if (threads_per_row(args.columns) == kWarpSize) {
    return launch(SampleBackward<T, kWarpSize>{args}, blocks, 1, stream);
  }
  return launch(SampleBackward<T, kThreads>{args}, blocks, 1, stream);
}

cudaError_t launch_philox_uniform(const int64_t* seed,
                                  int64_t seed_stride,
                                  int stream_number,
                                  int64_t first_row,
                                  int64_t rows,
                                  int64_t columns,
                                  float* out,
                                  cudaStream_t stream) {
  const int64_t blocks = blocks_for(rows * counters_per_row(columns), kThreads, kMaxGridX);
  const PhiloxUniform kernel{seed, seed_stride, stream_number, first_row, rows, columns, out};
  return launch(kernel, blocks, 1, stream);
}

template cudaError_t launch_gumbel_topk(const GumbelTopkLaunch<double>&, cudaStream_t);
template cudaError_t launch_gumbel_topk(const GumbelTopkLaunch<float>&, cudaStream_t);
template cudaError_t launch_gumbel_topk_backward(const GumbelTopkBackwardLaunch<double>&,
                                                 cudaStream_t);
template cudaError_t launch_gumbel_topk_backward(const GumbelTopkBackwardLaunch<float>&,
                                                 cudaStream_t);

}  // namespace pfn::cuda
