// What the weighted sums share: dtypes of candidates and sum, gradients of the wanted candidates.
#pragma once

#include <cstdint>
#include <vector>

#include "registration/tensor_args.h"

namespace pfn {

// Bytes of gradients from which they are stored past the caches. Measured with 2 MiB of
// second-level cache: half the time from here on, and no slower with a reader behind it; below, the
// reader loses.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

// Calls function(TypeTag<X>, TypeTag<Y>) with the candidates' type and that of weights and sum,
// which is the same or, with 16-bit candidates, float.
template <typename Function>
void dispatch_mixed(const char* op, const Tensor& x, const Tensor& weights, Function&& function) {
  dispatch_floating(op, "xs", x, [&](auto tag) {
    using X = typename decltype(tag)::type;
    if constexpr (sizeof(X) == 2) {
      if (dtype_code(weights) == code_of(TypeTag<float>{})) return function(tag, TypeTag<float>{});
    }
    return function(tag, tag);
  });
}

// Outputs of the backward: one gradient per wanted candidate, in the order asked for.
inline std::vector<Tensor> empty_gradients(const char* op,
                                           const Tensor& x0,
                                           int64_t num_ops,
                                           const std::vector<int64_t>& wanted) {
  std::vector<Tensor> grads;
  grads.reserve(wanted.size());
  for (int64_t k : wanted) {
    check(k >= 0 && k < num_ops, op, ": wanted must index candidates, got ", k);
    grads.push_back(empty_like(x0, x0));
  }
  return grads;
}

// A dense tensor in the layout of the outputs: one of them, else the first candidate if it is
// dense, else a fresh one whose memory is never touched.
inline Tensor backward_model(const Tensor& x0, const std::vector<Tensor>& grads) {
  if (!grads.empty()) return grads[0];
  return x0.is_contiguous() ? x0 : empty_like(x0, x0);
}

template <typename X>
std::vector<X*> gradient_pointers(const char* op,
                                  int64_t num_ops,
                                  const std::vector<int64_t>& wanted,
                                  const std::vector<Tensor>& grads) {
  std::vector<X*> pointers(static_cast<size_t>(num_ops), nullptr);
  for (size_t i = 0; i < wanted.size(); ++i) {
    X*& place = pointers[static_cast<size_t>(wanted[i])];
    check(place == nullptr, op, ": wanted must not repeat a candidate, got ", wanted[i], " twice");
    place = mutable_data<X>(op, "grad_xs", grads[i]);
  }
  return pointers;
}

// A fresh vector of float or double on the device of `like`.
template <typename T>
Tensor scratch(const Tensor& like, int64_t count) {
  const auto dtype =
      sizeof(T) == 8 ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
  return torch::stable::new_empty(like, {count}, dtype);
}

}  // namespace pfn
