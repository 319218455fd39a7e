// Two mistakes that compute-sanitizer must report, each in a kernel of the name that it looks at.
#include <cstdio>
#include <cstring>

__global__ void run_kernel_overrun(int* values, int size) { values[threadIdx.x + 1] = size; }

__global__ void run_kernel_race(int* values) {
  __shared__ int shared[64];
  shared[threadIdx.x] = values[threadIdx.x];
  // A barrier is missing: the other warp's half may not be there yet.
  values[threadIdx.x] = shared[63 - threadIdx.x];
}

int main(int, char** arguments) {
  int* values = nullptr;
  if (cudaMalloc(&values, 64 * sizeof(int)) != cudaSuccess) return 2;
  if (cudaMemset(values, 0, 64 * sizeof(int)) != cudaSuccess) return 2;
  if (std::strcmp(arguments[1], "memcheck") == 0) {
    run_kernel_overrun<<<1, 64>>>(values, 64);
  } else {
    run_kernel_race<<<1, 64>>>(values);
  }
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  return 0;
}
