// The CUDA runtime, or what stands for it where kernels run on the CPU thread by thread (twin/).
#pragma once

#if defined(PFN_TWIN)

#include <cmath>
#include <cstddef>
#include <cstdlib>

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9
};
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                 : "out of memory";
}

enum : unsigned { cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
inline cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

// Whether the device has tensor cores that take float32 rounded to TF32.
inline bool has_tf32() { return true; }

#define PFN_DEVICE inline
#define PFN_MEMBER inline
#define PFN_DEVICE_CALLED __attribute__((noinline))

#else

#include <cuda_runtime.h>

inline bool has_tf32() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 8;
}

// Code of a kernel: a thread of a GPU runs it, or the CPU in its place.
#define PFN_DEVICE __device__ __forceinline__
// A member that the host calls as well.
#define PFN_MEMBER __host__ __device__ __forceinline__
// The same out of line, with registers of its own.
#define PFN_DEVICE_CALLED __device__ __noinline__

#endif
