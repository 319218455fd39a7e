// What a launch is given for each candidate: it travels in the parameter block of the kernel.
#pragma once

#include <cstdint>

#include "cuda/geometry.h"
#include "math/limits.h"

namespace pfn::cuda {

template <typename T>
struct Pack {
  T at[math::kMaxCudaOps];
};

// The first num_ops of a host array, or zeros where there is none.
template <typename T>
Pack<T> pack(const T* values, int num_ops) {
  Pack<T> packed{};
  for (int k = 0; k < num_ops && values != nullptr; ++k) packed.at[k] = values[k];
  return packed;
}

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0;
}

}  // namespace pfn::cuda
