// What every registration needs of its tensors: checks that name operator and argument, typed data
// pointers, dispatch over dtypes, layouts, the current stream. Checks here guard memory safety
// only; Python has refused everything else by name before.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "math/accumulate.h"

#ifdef PFN_WITH_CUDA
#include "cuda/runtime.h"
#endif

// The device that kernels of csrc/cuda/ are registered for. Where the CPU runs them itself (twin/),
// they take the place of its own.
#ifdef PFN_TWIN
#define PFN_CUDA_KEY CPU
#else
#define PFN_CUDA_KEY CUDA
#endif

namespace pfn {

using torch::stable::Tensor;

template <typename... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::runtime_error(message.str());
  }
}

template <typename T>
struct TypeTag {
  using type = T;
};

// torch's own number for a dtype. The header's ScalarType takes forty calls to translate, which
// shows in operators that small searches call thousands of times a step.
inline int32_t dtype_code(const Tensor& tensor) {
  int32_t code = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

inline int32_t code_of(TypeTag<double>) { return aoti_torch_dtype_float64(); }
inline int32_t code_of(TypeTag<float>) { return aoti_torch_dtype_float32(); }
inline int32_t code_of(TypeTag<math::Half>) { return aoti_torch_dtype_float16(); }
inline int32_t code_of(TypeTag<math::BFloat16>) { return aoti_torch_dtype_bfloat16(); }
inline int32_t code_of(TypeTag<int64_t>) { return aoti_torch_dtype_int64(); }
inline int32_t code_of(TypeTag<bool>) { return aoti_torch_dtype_bool(); }

// Calls function(TypeTag<T>{}) for the C++ type of a floating dtype.
template <typename Function>
auto dispatch_floating(const char* op,
                       const char* name,
                       const Tensor& tensor,
                       Function&& function) {
  const int32_t code = dtype_code(tensor);
  if (code == code_of(TypeTag<float>{})) return function(TypeTag<float>{});
  if (code == code_of(TypeTag<double>{})) return function(TypeTag<double>{});
  if (code == code_of(TypeTag<math::Half>{})) return function(TypeTag<math::Half>{});
  check(code == code_of(TypeTag<math::BFloat16>{}), op, ": ", name,
        " must have dtype float64, float32, bfloat16 or float16");
  return function(TypeTag<math::BFloat16>{});
}

template <typename T>
void check_dtype(const char* op, const char* name, const Tensor& tensor) {
  check(dtype_code(tensor) == code_of(TypeTag<T>{}), op, ": ", name, " has an unexpected dtype, ",
        torch::headeronly::toString(tensor.scalar_type()));
}

template <typename T>
const T* const_data(const char* op, const char* name, const Tensor& tensor) {
  check_dtype<T>(op, name, tensor);
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const char* op, const char* name, const Tensor& tensor) {
  check_dtype<T>(op, name, tensor);
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline bool has_default_strides(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t expected = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    if (strides[dim] != expected) return false;
    expected *= sizes[dim] > 1 ? sizes[dim] : 1;
  }
  return true;
}

// torch.empty_like(like) in the dtype of `typed`: dense layouts are kept.
inline Tensor empty_like(const Tensor& like, const Tensor& typed) {
  if (has_default_strides(like)) {
    int32_t dtype = dtype_code(typed);
    const auto sizes = like.sizes();
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_aten_new_empty(like.get(), sizes.data(), static_cast<int64_t>(sizes.size()),
                                  &dtype, nullptr, nullptr, 0, nullptr, &handle));
    return Tensor(handle);
  }
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like),         from(std::optional(typed.scalar_type())),
                                    from(std::nullopt), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), others = b.sizes();
  return sizes.size() == others.size() && std::equal(sizes.begin(), sizes.end(), others.begin());
}

// Whether two tensors of one shape keep element i at the same place; the stride of a dimension of
// size 1 says nothing.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  const auto strides = a.strides(), others = b.strides();
  if (std::equal(strides.begin(), strides.end(), others.begin())) return true;
  const auto sizes = a.sizes();
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1 && strides[dim] != others[dim]) return false;
  }
  return true;
}

// `tensor` itself where it is laid out like `model` (which must be dense), else a copy that is.
inline Tensor laid_out_like(const Tensor& model, const Tensor& tensor) {
  if (same_layout(model, tensor)) return tensor;
  Tensor copy = empty_like(model, tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

#ifdef PFN_TWIN
// The CPU is one device with one queue, and a launch that returns is done.
struct DeviceGuard {
  explicit DeviceGuard(torch::stable::accelerator::DeviceIndex) {}
};
inline constexpr bool kLaunchesWait = true;
inline cudaStream_t current_stream(const Tensor&) { return nullptr; }
#elif defined(PFN_WITH_CUDA)
using torch::stable::accelerator::DeviceGuard;
inline constexpr bool kLaunchesWait = false;
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

#ifdef PFN_WITH_CUDA
inline void check_launch(const char* op, cudaError_t status) {
  check(status == cudaSuccess, op,
        ": the kernel could not be launched: ", cudaGetErrorString(status));
}
#endif

}  // namespace pfn
