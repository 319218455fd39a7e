#include <cstdint>

#include "cuda/gumbel_geometry.h"
#include "cuda/launch.h"
#include "math/gumbel.h"
#include "math/philox.h"
#include "math/sample_row.h"
#include "math/softmax.h"
#include "math/topk.h"

namespace pfn::cuda {
namespace {

__device__ __forceinline__ math::PhiloxSeed read_seed(const int64_t* seed, int64_t stride) {
  return math::philox_seed(seed[0], seed[stride]);
}

// A row that cannot be sampled gets index -1 and weight 0, and the flag is raised.
template <typename T>
__device__ __forceinline__ void refuse_row(const GumbelTopkLaunch<T>& args,
                                           int64_t row,
                                           int first,
                                           int step) {
  for (int64_t r = first; r < args.k; r += step) {
    args.weights[row * args.k + r] = T{};
    args.indices[row * args.k + r] = -1;
  }
  if (first == 0) *args.flag = 1;
}

// One thread a row: k best keys and the running sum stay in registers.
template <typename T, int kTop>
__global__ void __launch_bounds__(kRowThreads)
    sample_rows_kernel(const __grid_constant__ GumbelTopkLaunch<T> args) {
  const math::PhiloxSeed seed = read_seed(args.seed, args.seed_stride);
  const int64_t step = int64_t{gridDim.x} * kRowThreads;
  for (int64_t row = first_item(blockIdx.x, kRowThreads, static_cast<int>(threadIdx.x));
       row < args.rows; row += step) {
    const int64_t at = row * args.columns;
    const bool usable = math::sample_row<T, kTop>(
        args.logits + at, args.noise != nullptr ? args.noise + at : nullptr, args.columns, seed,
        static_cast<uint32_t>(row), args.inv_tau, args.conditional, args.weights + row * kTop,
        args.indices + row * kTop, args.keys != nullptr ? args.keys + at : nullptr);
    if (!usable) refuse_row(args, row, 0, 1);
  }
}

template <typename T>
struct Pick {
  T key;
  int32_t column;
};

template <typename T>
__device__ __forceinline__ Pick<T> better(const Pick<T>& a, const Pick<T>& b) {
  return math::ranks_before(b.key, b.column, a.key, a.column) ? b : a;
}

// The best pick of a block, known to all its threads.
template <int kBlock, typename T>
__device__ __forceinline__ Pick<T> best_of_block(Pick<T> mine) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const Pick<T> other{__shfl_xor_sync(0xffffffffu, mine.key, lanes),
                        __shfl_xor_sync(0xffffffffu, mine.column, lanes)};
    mine = better(mine, other);
  }
  if constexpr (kBlock > kWarpSize) {
    __shared__ T keys[kBlock / kWarpSize];
    __shared__ int32_t columns[kBlock / kWarpSize];
    __syncthreads();
    if (threadIdx.x % kWarpSize == 0) {
      keys[threadIdx.x / kWarpSize] = mine.key;
      columns[threadIdx.x / kWarpSize] = mine.column;
    }
    __syncthreads();
    mine = Pick<T>{keys[0], columns[0]};
    for (int warp = 1; warp < kBlock / kWarpSize; ++warp) {
      mine = better(mine, Pick<T>{keys[warp], columns[warp]});
    }
  }
  return mine;
}

// The sum over a block in a fixed order, known to all its threads.
template <int kBlock, typename T>
__device__ __forceinline__ T sum_of_block(T mine) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    mine += __shfl_xor_sync(0xffffffffu, mine, lanes);
  }
  if constexpr (kBlock > kWarpSize) {
    __shared__ T sums[kBlock / kWarpSize];
    __syncthreads();
    if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = mine;
    __syncthreads();
    mine = T{};
    for (int warp = 0; warp < kBlock / kWarpSize; ++warp) mine += sums[warp];
  }
  return mine;
}

// Keys of one row by the whole block; returns to every thread whether all were below +inf.
template <int kBlock, typename T>
__device__ bool write_keys(const GumbelTopkLaunch<T>& args,
                           const math::PhiloxSeed& seed,
                           int64_t row) {
  const int64_t at = row * args.columns;
  bool usable = true;
  for (int64_t block = threadIdx.x; block < counters_per_row(args.columns); block += kBlock) {
    uint32_t words[4] = {};
    if (args.noise == nullptr) {
      math::philox_words(seed, math::philox_block(block, 0), static_cast<uint32_t>(row), words);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t j = 4 * block + i;
      if (j < args.columns) {
        const T noise =
            args.noise != nullptr ? args.noise[at + j] : math::gumbel<math::Scalar<T>>(words[i]);
        const T key = args.logits[at + j] + noise;
        args.keys[at + j] = key;
        usable &= key < HUGE_VALF;
      }
    }
  }
  return __syncthreads_and(usable) != 0;
}

// One block a row, one pass over the keys for each rank.
template <typename T, int kBlock>
__global__ void __launch_bounds__(kBlock)
    sample_long_rows_kernel(const __grid_constant__ GumbelTopkLaunch<T> args) {
  using L = math::Scalar<T>;
  const T masked = -static_cast<T>(HUGE_VALF);
  const math::PhiloxSeed seed = read_seed(args.seed, args.seed_stride);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    bool usable = write_keys<kBlock>(args, seed, row);
    const T* keys = args.keys + row * args.columns;
    T* weights = args.weights + row * args.k;
    int64_t* indices = args.indices + row * args.k;
    T top = masked;
    Pick<T> last{-masked, -1};
    for (int64_t r = 0; r < args.k && usable; ++r) {
      Pick<T> mine{masked, INT32_MAX};
      for (int64_t j = thread; j < args.columns; j += kBlock) {
        const Pick<T> here{keys[j], static_cast<int32_t>(j)};
        if (math::ranks_before(last.key, last.column, here.key, here.column)) {
          mine = better(mine, here);
        }
      }
      last = best_of_block<kBlock>(mine);
      usable = last.key > masked;
      top = r == 0 ? last.key : top;
      if (thread == 0) {
        weights[r] = last.key;
        indices[r] = last.column;
      }
    }
    if (!usable) {
      __syncthreads();
      refuse_row(args, row, thread, kBlock);
      continue;
    }
    const T reference = args.conditional ? last.key : top;
    T sum{};
    for (int64_t j = thread; j < args.columns; j += kBlock) {
      sum += math::relaxed_term<L>(keys[j], static_cast<int32_t>(j), reference, last.key,
                                   last.column, args.inv_tau, args.conditional);
    }
    sum = sum_of_block<kBlock>(sum);
    __syncthreads();
    if (args.conditional) {
      if (thread == 0) {
        math::relaxed_weights<L>(weights, sum, args.k, args.inv_tau, true, weights);
      }
    } else {
      for (int64_t r = thread; r < args.k; r += kBlock) {
        weights[r] = L::exp((weights[r] - top) * args.inv_tau) / sum;
      }
    }
    __syncthreads();
  }
}

// Out of line, so that the registers of one thread's long way do not spill those of the others.
template <typename T>
__device__ __noinline__ T conditional_ranks(const GumbelTopkBackwardLaunch<T>& args,
                                            int64_t row,
                                            T rest) {
  return math::conditional_backward<math::Scalar<T>>(
      args.keys + row * args.columns, args.indices + row * args.k, args.grad_weights + row * args.k,
      args.k, args.inv_tau, rest, args.grad + row * args.columns);
}

// One block a row; the same formulas as on the CPU.
template <typename T, int kBlock>
__global__ void __launch_bounds__(kBlock)
    backward_kernel(const __grid_constant__ GumbelTopkBackwardLaunch<T> args) {
  using L = math::Scalar<T>;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const T* keys = args.keys + row * args.columns;
    T* grad = args.grad + row * args.columns;
    const int64_t* indices = args.indices + row * args.k;
    const T* grad_weights = args.grad_weights + row * args.k;
    bool valid = true;
    for (int64_t r = thread; r < args.k; r += kBlock) {
      valid &= indices[r] >= 0 && indices[r] < args.columns;
    }
    if (__syncthreads_and(valid) == 0) {
      // A row that could not be sampled; its flag was raised then.
      for (int64_t j = thread; j < args.columns; j += kBlock) grad[j] = T{};
      continue;
    }
    const T top = keys[indices[0]], last = keys[indices[args.k - 1]];
    const int32_t last_column = static_cast<int32_t>(indices[args.k - 1]);
    const T reference = args.conditional ? last : top;
    T sum{};
    for (int64_t j = thread; j < args.columns; j += kBlock) {
      sum += math::relaxed_term<L>(keys[j], static_cast<int32_t>(j), reference, last, last_column,
                                   args.inv_tau, args.conditional);
    }
    sum = sum_of_block<kBlock>(sum);
    T mean{}, factor;
    if (args.conditional) {
      __shared__ T carried;
      if (thread == 0) {
        carried = conditional_ranks(args, row, sum);
      }
      __syncthreads();
      factor = -carried;
    } else {
      for (int64_t r = thread; r < args.k; r += kBlock) {
        mean += grad_weights[r] * (L::exp((keys[indices[r]] - top) * args.inv_tau) / sum);
      }
      mean = sum_of_block<kBlock>(mean);
      factor = -mean / sum;
    }
    for (int64_t j = thread; j < args.columns; j += kBlock) {
      const bool is_kept = math::is_kept<L>(keys[j], static_cast<int32_t>(j), last, last_column);
      if (!is_kept) grad[j] = L::exp((keys[j] - reference) * args.inv_tau) * factor * args.inv_tau;
    }
    if (!args.conditional) {
      for (int64_t r = thread; r < args.k; r += kBlock) {
        const T q = L::exp((keys[indices[r]] - top) * args.inv_tau) / sum;
        grad[indices[r]] = q * (grad_weights[r] - mean) * args.inv_tau;
      }
    }
    __syncthreads();
  }
}

// One thread a counter: four columns of a row.
__global__ void __launch_bounds__(kThreads) philox_uniform_kernel(const int64_t* seed_words,
                                                                  int64_t seed_stride,
                                                                  int stream,
                                                                  int64_t first_row,
                                                                  int64_t rows,
                                                                  int64_t columns,
                                                                  float* out) {
  const math::PhiloxSeed seed = read_seed(seed_words, seed_stride);
  const int64_t counters = counters_per_row(columns);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t item = first_item(blockIdx.x, kThreads, static_cast<int>(threadIdx.x));
       item < rows * counters; item += step) {
    const int64_t row = item / counters, block = item % counters;
    uint32_t words[4];
    math::philox_words(seed, math::philox_block(block, stream),
                       static_cast<uint32_t>(first_row + row), words);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t j = 4 * block + i;
      if (j < columns) out[row * columns + j] = math::open_uniform<math::Scalar<float>>(words[i]);
    }
  }
}

template <typename T, int kTop>
void sample_rows(const GumbelTopkLaunch<T>& args, cudaStream_t stream) {
  const int64_t blocks = blocks_for(args.rows, kRowThreads, kMaxGrid);
  sample_rows_kernel<T, kTop><<<static_cast<unsigned>(blocks), kRowThreads, 0, stream>>>(args);
}

}  // namespace

template <typename T>
cudaError_t launch_gumbel_topk(const GumbelTopkLaunch<T>& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>(blocks_for(args.rows, 1, kMaxGrid));
  if (samples_in_registers(args.columns, args.k)) {
    switch (args.k) {
      case 1:
        sample_rows<T, 1>(args, stream);
        break;
      case 2:
        sample_rows<T, 2>(args, stream);
        break;
      case 3:
        sample_rows<T, 3>(args, stream);
        break;
      default:
        sample_rows<T, 4>(args, stream);
    }
  } else if (threads_per_row(args.columns) == kWarpSize) {
    sample_long_rows_kernel<T, kWarpSize><<<blocks, kWarpSize, 0, stream>>>(args);
  } else {
    sample_long_rows_kernel<T, kThreads><<<blocks, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_gumbel_topk_backward(const GumbelTopkBackwardLaunch<T>& args,
                                        cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>(blocks_for(args.rows, 1, kMaxGrid));
  if (threads_per_row(args.columns) == kWarpSize) {
    backward_kernel<T, kWarpSize><<<blocks, kWarpSize, 0, stream>>>(args);
  } else {
    backward_kernel<T, kThreads><<<blocks, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

cudaError_t launch_philox_uniform(const int64_t* seed,
                                  int64_t seed_stride,
                                  int stream_number,
                                  int64_t first_row,
                                  int64_t rows,
                                  int64_t columns,
                                  float* out,
                                  cudaStream_t stream) {
  if (rows == 0 || columns == 0) return cudaSuccess;
  const int64_t blocks = blocks_for(rows * counters_per_row(columns), kThreads, kMaxGrid);
  philox_uniform_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      seed, seed_stride, stream_number, first_row, rows, columns, out);
  return cudaGetLastError();
}

template cudaError_t launch_gumbel_topk(const GumbelTopkLaunch<double>&, cudaStream_t);
template cudaError_t launch_gumbel_topk(const GumbelTopkLaunch<float>&, cudaStream_t);
template cudaError_t launch_gumbel_topk_backward(const GumbelTopkBackwardLaunch<double>&,
                                                 cudaStream_t);
template cudaError_t launch_gumbel_topk_backward(const GumbelTopkBackwardLaunch<float>&,
                                                 cudaStream_t);

}  // namespace pfn::cuda
