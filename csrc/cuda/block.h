// What a kernel knows of its place in a launch, and how it is launched. A kernel is a struct of its
// arguments with
//
//   static constexpr int kThreads;                               // threads of a block
//   static constexpr int kBlocks;  // perhaps: blocks that a multiprocessor is to hold at once
//   struct Shared;                                               // what they share, trivial
//   PFN_DEVICE void run(const Block& block, Shared& shared) const;
//
// nvcc makes a __global__ function of it. A build with PFN_TWIN runs the same lines on the CPU:
// every thread is a fiber, and barriers and shuffles are where they change places (twin/block.h).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/geometry.h"
#include "cuda/runtime.h"

namespace pfn::cuda {

// The Shared of a kernel whose threads have nothing to tell each other.
struct NothingShared {};

}  // namespace pfn::cuda

#if defined(PFN_TWIN)

#include "twin/block.h"

namespace pfn::cuda {

using twin::Block;
using twin::launch;

}  // namespace pfn::cuda

#else

namespace pfn::cuda {

// The place of one thread.
class Block {
 public:
  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int64_t x() const { return blockIdx.x; }
  __device__ __forceinline__ int64_t y() const { return blockIdx.y; }
  // Blocks along x.
  __device__ __forceinline__ int64_t blocks() const { return gridDim.x; }

  // Barriers of the block, and of a warp.
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void sync_warp() const { __syncwarp(); }
  // Whether it holds for every thread of the block; a barrier.
  __device__ __forceinline__ bool all(bool holds) const { return __syncthreads_and(holds) != 0; }

  // The value of the lane whose number differs in the bits of `lanes`, that is `from`, or stands
  // `lanes` further on; every thread of the warp takes part.
  template <typename T>
  __device__ __forceinline__ T shuffle_xor(T value, int lanes) const {
    return __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  template <typename T>
  __device__ __forceinline__ T shuffle(T value, int from) const {
    return __shfl_sync(0xffffffffu, value, from);
  }
  template <typename T>
  __device__ __forceinline__ T shuffle_down(T value, int lanes) const {
    return __shfl_down_sync(0xffffffffu, value, lanes);
  }
};

template <typename Kernel, typename = void>
struct NamesBlocks : std::false_type {};
template <typename Kernel>
struct NamesBlocks<Kernel, std::void_t<decltype(Kernel::kBlocks)> > : std::true_type {};

template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    run_kernel(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  kernel.run(Block{}, shared);
}
template <typename Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)
    run_kernel_at_once(const __grid_constant__ Kernel kernel) {
  __shared__ typename Kernel::Shared shared;
  kernel.run(Block{}, shared);
}

// How many registers a thread gets follows from the blocks at once: those that the kernel names, or
// as many as the compiler thinks best.
template <typename Kernel>
const void* global_function() {
  if constexpr (NamesBlocks<Kernel>::value) {
    return reinterpret_cast<const void*>(run_kernel_at_once<Kernel>);
  } else {
    return reinterpret_cast<const void*>(run_kernel<Kernel>);
  }
}

// Runs it on a grid of x times y blocks; nothing where there are none.
template <typename Kernel>
cudaError_t launch(const Kernel& kernel, int64_t x, int64_t y, cudaStream_t stream) {
  static_assert(sizeof(typename Kernel::Shared) <= kMaxSharedBytes);
  static_assert(sizeof(Kernel) <= kMaxArgumentBytes);
  if (x == 0 || y == 0) return cudaSuccess;
  if (x > kMaxGridX || y > kMaxGridY) return cudaErrorInvalidConfiguration;
  const dim3 grid(static_cast<unsigned>(x), static_cast<unsigned>(y));
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  cudaLaunchKernel(global_function<Kernel>(), grid, dim3(Kernel::kThreads), arguments, 0, stream);
  return cudaGetLastError();
}

}  // namespace pfn::cuda

#endif
