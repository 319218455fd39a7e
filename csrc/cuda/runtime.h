// The CUDA runtime, or what stands for it where kernels run on the CPU thread by thread (twin/).
#pragma once

#if defined(PFN_TWIN)

#include <cmath>

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : "a kernel failed on its CPU twin";
}

#define PFN_DEVICE inline
#define PFN_MEMBER inline

#else

#include <cuda_runtime.h>

// Code of a kernel: a thread of a GPU runs it, or the CPU in its place.
#define PFN_DEVICE __device__ __forceinline__
// A member that the host calls as well.
#define PFN_MEMBER __host__ __device__ __forceinline__

#endif
