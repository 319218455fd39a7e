// What every registration needs of its tensors: checks that name operator and argument, typed data
// pointers, dispatch over dtypes, layouts, the current stream. Checks here guard memory safety
// only; Python has refused everything else by name before.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "math/accumulate.h"

#ifdef PFN_WITH_CUDA
#include <cuda_runtime.h>
#endif

namespace pfn {

using torch::headeronly::ScalarType;
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

template <typename T>
constexpr ScalarType kScalarType = ScalarType::Undefined;
template <>
inline constexpr ScalarType kScalarType<double> = ScalarType::Double;
template <>
inline constexpr ScalarType kScalarType<float> = ScalarType::Float;
template <>
inline constexpr ScalarType kScalarType<math::Half> = ScalarType::Half;
template <>
inline constexpr ScalarType kScalarType<math::BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType kScalarType<int64_t> = ScalarType::Long;

// Calls function(TypeTag<T>{}) for the C++ type of a floating dtype.
template <typename Function>
auto dispatch_floating(const char* op, const char* name, ScalarType dtype, Function&& function) {
  switch (dtype) {
    case ScalarType::Double: return function(TypeTag<double>{});
    case ScalarType::Float: return function(TypeTag<float>{});
    case ScalarType::Half: return function(TypeTag<math::Half>{});
    case ScalarType::BFloat16: return function(TypeTag<math::BFloat16>{});
    default:
      check(false, op, ": ", name, " must have dtype float64, float32, bfloat16 or float16, got ",
            torch::headeronly::toString(dtype));
      return function(TypeTag<float>{});
  }
}

template <typename T>
const T* const_data(const char* op, const char* name, const Tensor& tensor) {
  check(tensor.scalar_type() == kScalarType<T>, op, ": ", name, " must have dtype ",
        torch::headeronly::toString(kScalarType<T>), ", got ",
        torch::headeronly::toString(tensor.scalar_type()));
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(const char* op, const char* name, const Tensor& tensor) {
  check(tensor.scalar_type() == kScalarType<T>, op, ": ", name, " must have dtype ",
        torch::headeronly::toString(kScalarType<T>), ", got ",
        torch::headeronly::toString(tensor.scalar_type()));
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// torch.empty_like(like, dtype=dtype): dense layouts are kept.
inline Tensor empty_like(const Tensor& like, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like),         from(std::optional<ScalarType>(dtype)),
                                    from(std::nullopt), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), others = b.sizes();
  if (sizes.size() != others.size()) return false;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] != others[dim]) return false;
  }
  return true;
}

// Whether two tensors of one shape keep element i at the same place; the stride of a dimension of
// size 1 says nothing.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), strides = a.strides(), others = b.strides();
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1 && strides[dim] != others[dim]) return false;
  }
  return true;
}

// `tensor` itself where it is laid out like `model` (which must be dense), else a copy that is.
inline Tensor laid_out_like(const Tensor& model, const Tensor& tensor) {
  if (same_layout(model, tensor)) return tensor;
  Tensor copy = empty_like(model, tensor.scalar_type());
  torch::stable::copy_(copy, tensor);
  return copy;
}

#ifdef PFN_WITH_CUDA
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t status) {
  check(status == cudaSuccess, op, ": the kernel could not be launched: ",
        cudaGetErrorString(status));
}
#endif

}  // namespace pfn
