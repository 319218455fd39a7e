// What the sampler's operators need of matrices of keys: checks, allocation, dispatch.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>

#include "registration/tensor_args.h"

namespace pfn {

// Random numbers below which a second thread costs more than it brings.
constexpr int64_t kGrain = 8192;

inline int64_t rows_per_task(int64_t columns) { return columns > kGrain ? 1 : kGrain / columns; }

// An uninitialised contiguous matrix. A third of the time that a dispatched torch.empty takes,
// which at a few rows is as long as the sampling.
inline Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns, int32_t dtype) {
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {columns > 0 ? columns : 1, 1};
  const int32_t device =
      like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(2, sizes, strides, dtype, device, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns) {
  return empty_matrix(like, rows, columns, dtype_code(like));
}

template <typename T>
bool holds(const Tensor& tensor) {
  return dtype_code(tensor) == code_of(TypeTag<T>{});
}

inline Tensor packed(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline int32_t device_type(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return type;
}

// Whether there is memory to read. The quick call comes here past the dispatcher, which otherwise
// keeps sparse and meta tensors away.
inline bool is_dense(const Tensor& tensor) {
  int32_t layout = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  const int32_t device = device_type(tensor);
  return layout == aoti_torch_layout_strided() &&
         (device == aoti_torch_device_type_cpu() || device == aoti_torch_device_type_cuda());
}

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return device_type(a) == device_type(b) && a.get_device_index() == b.get_device_index();
}

// Calls function(TypeTag<T>{}) for the type of keys.
template <typename Function>
void dispatch_keys(const char* op, const Tensor& keys, Function&& function) {
  if (holds<float>(keys)) {
    function(TypeTag<float>{});
    return;
  }
  check(holds<double>(keys), op, ": keys must have dtype float64 or float32");
  function(TypeTag<double>{});
}

}  // namespace pfn
