// What the loops of norm_mixed_sum take, read from tensors: candidates in float64, sizes, tables of
// coefficients, room for partial sums.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/norm_geometry.h"
#include "registration/tensor_args.h"

namespace pfn {

using cpu::NormGeometry;

// Kinds of candidates as Python codes them: 1 normalised, 2 normalised with scale and shift, and 4
// more where mean and variance are given; 0 is added up as it is.
inline bool has_norm(int64_t kind) { return kind != 0; }
inline bool is_affine(int64_t kind) { return (kind & 2) != 0; }
inline bool is_given(int64_t kind) { return (kind & 4) != 0; }

inline bool is_dense(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1) dims.emplace_back(strides[dim], sizes[dim]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The sizes of a dense tensor in the order of its memory; the stride of the channels is what lies
// inside of them.
struct DenseShape {
  int64_t outer, channels, inner;

  explicit DenseShape(const Tensor& dense) : outer(0), channels(dense.size(1)), inner(0) {
    const int64_t numel = dense.numel();
    if (numel == 0) return;
    inner = channels == 1 ? numel : dense.stride(1);
    outer = numel / (channels * inner);
  }
};

inline NormGeometry geometry_of(const Tensor& dense) {
  const DenseShape shape(dense);
  return cpu::norm_geometry(shape.outer, shape.channels, shape.inner);
}

inline std::vector<double> read_vector(const char* op, const char* name, const Tensor& tensor) {
  std::vector<double> values(static_cast<size_t>(tensor.numel()));
  dispatch_floating(op, name, tensor, [&](auto tag) {
    const auto* data = const_data<typename decltype(tag)::type>(op, name, tensor);
    const int64_t stride = tensor.stride(0);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<double>(math::widen(data[static_cast<int64_t>(i) * stride]));
    }
  });
  return values;
}

inline void write_vector(const char* op, const Tensor& tensor, const std::vector<double>& values) {
  dispatch_floating(op, "the gradient", tensor, [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* data = mutable_data<T>(op, "the gradient", tensor);
    for (size_t i = 0; i < values.size(); ++i) {
      math::narrow(static_cast<math::acc_t<T>>(values[i]), data + i);
    }
  });
}

// What the numbers of a call say of one candidate.
struct NormPlan {
  int64_t kind = 0;
  int64_t norm = -1;   // which row of the statistics
  int64_t param = -1;  // where its scale stands among the parameters

  bool uses_batch() const { return has_norm(kind) && !is_given(kind); }
};

// What belongs to one candidate, all in float64.
struct NormCandidate : NormPlan {
  double weight = 0.0;
  std::vector<double> gamma, beta;        // [channels]
  const double* mean = nullptr;           // [channels]
  std::vector<double> inverse_deviation;  // [channels]

  double scale(int64_t c) const {
    if (!has_norm(kind)) return weight;
    return weight * gamma[static_cast<size_t>(c)] * inverse_deviation[static_cast<size_t>(c)];
  }
  // The mean in the accumulator's type, and what that leaves out.
  template <typename Acc>
  Acc mean_above(int64_t c) const {
    return mean == nullptr ? Acc(0) : static_cast<Acc>(mean[c]);
  }
  template <typename Acc>
  double mean_below(int64_t c) const {
    if (mean == nullptr || !std::isfinite(mean[c])) return 0.0;
    return mean[c] - static_cast<double>(mean_above<Acc>(c));
  }
  void set_statistics(const double* statistics, int64_t channels, double eps) {
    mean = statistics + 2 * norm * channels;
    inverse_deviation.assign(static_cast<size_t>(channels), 0.0);
    for (int64_t c = 0; c < channels; ++c) {
      inverse_deviation[static_cast<size_t>(c)] = 1.0 / std::sqrt(mean[channels + c] + eps);
    }
  }
};

// Checks what the memory of a call must be like, and tells which tensors belong to whom.
inline std::vector<NormPlan> plan_candidates(const char* op,
                                             const std::vector<Tensor>& xs,
                                             const Tensor& weights,
                                             const std::vector<Tensor>& params,
                                             const std::vector<int64_t>& kinds,
                                             const std::vector<double>& eps) {
  check(!xs.empty(), op, ": xs must hold at least one candidate, got 0");
  check(xs[0].dim() >= 2, op, ": xs must have channels in their second dimension");
  check(weights.dim() == 1 && weights.size(0) == static_cast<int64_t>(xs.size()) &&
            kinds.size() == xs.size(),
        op, ": weights and norms must be as many as the ", xs.size(), " candidates");
  const auto device = weights.get_device_index();
  const int64_t channels = xs[0].size(1);
  for (const Tensor& param : params) {
    check(param.dim() == 1 && param.size(0) == channels && param.get_device_index() == device, op,
          ": params must hold one number for each of the ", channels, " channels");
  }
  std::vector<NormPlan> plans(xs.size());
  int64_t norms = 0, param = 0;
  for (size_t k = 0; k < xs.size(); ++k) {
    check(same_shape(xs[k], xs[0]), op, ": xs must be of one shape");
    check(xs[k].get_device_index() == device, op, ": xs and weights must be on one device");
    plans[k].kind = kinds[k];
    if (!has_norm(kinds[k])) continue;
    plans[k].norm = norms++;
    if (!is_affine(kinds[k])) continue;
    plans[k].param = param;
    param += 2;
    check(param <= static_cast<int64_t>(params.size()), op, ": params are too few");
  }
  check(param == static_cast<int64_t>(params.size()), op, ": params are too many");
  check(norms == static_cast<int64_t>(eps.size()), op, ": eps must be as many as the norms");
  return plans;
}

// The given mean or variance at `index`, checked.
inline const Tensor& given_at(const char* op,
                              const std::vector<Tensor>& given,
                              size_t index,
                              const Tensor& x0) {
  check(index < given.size() && given[index].dim() == 1 && given[index].size(0) == x0.size(1) &&
            given[index].get_device_index() == x0.get_device_index(),
        op, ": given must hold mean and variance of each norm that uses them");
  return given[index];
}

// The checks that the backward has of its own.
inline void check_norm_backward(const char* op,
                                const Tensor& grad,
                                const Tensor& x0,
                                const Tensor& statistics,
                                const std::vector<double>& eps,
                                const std::vector<Tensor>& params,
                                const std::vector<int64_t>& wanted_params) {
  const auto device = x0.get_device_index();
  check(same_shape(grad, x0), op, ": grad must have the shape of xs");
  check(grad.get_device_index() == device, op, ": grad and weights must be on one device");
  check(statistics.numel() == 2 * static_cast<int64_t>(eps.size()) * x0.size(1) &&
            statistics.get_device_index() == device,
        op, ": statistics must be those of the norms");
  for (int64_t param : wanted_params) {
    check(param >= 0 && param < static_cast<int64_t>(params.size()), op,
          ": wanted_params must index params, got ", param);
  }
}

// A dense tensor in the layout of the backward's outputs.
inline Tensor norm_backward_model(const Tensor& x0, const std::vector<Tensor>& grad_xs) {
  if (!grad_xs.empty()) return grad_xs[0];
  return is_dense(x0) ? x0 : empty_like(x0, x0);
}

inline std::vector<NormCandidate> read_candidates(const char* op,
                                                  const std::vector<Tensor>& xs,
                                                  const Tensor& weights,
                                                  const std::vector<Tensor>& params,
                                                  const std::vector<int64_t>& kinds,
                                                  const std::vector<double>& eps) {
  const auto plans = plan_candidates(op, xs, weights, params, kinds, eps);
  const size_t channels = static_cast<size_t>(xs[0].size(1));
  const auto weight = read_vector(op, "weights", weights);
  std::vector<NormCandidate> candidates;
  for (size_t k = 0; k < plans.size(); ++k) {
    NormCandidate& candidate = candidates.emplace_back();
    static_cast<NormPlan&>(candidate) = plans[k];
    candidate.weight = weight[k];
    if (!has_norm(candidate.kind)) continue;
    candidate.gamma.assign(channels, 1.0);
    candidate.beta.assign(channels, 0.0);
    if (!is_affine(candidate.kind)) continue;
    const size_t param = static_cast<size_t>(candidate.param);
    candidate.gamma = read_vector(op, "params", params[param]);
    candidate.beta = read_vector(op, "params", params[param + 1]);
  }
  return candidates;
}

// Which sums the gradients that are asked for are made of; the last is that of grad alone.
template <typename Plan>
std::vector<bool> wanted_dots(const std::vector<Plan>& plans,
                              const std::vector<int64_t>& wanted_xs,
                              bool wants_weights,
                              const std::vector<int64_t>& wanted_params) {
  std::vector<bool> wanted(plans.size() + 1, wants_weights);
  wanted.back() = false;
  for (int64_t k : wanted_xs) {
    const size_t at = static_cast<size_t>(k);
    if (plans[at].uses_batch()) wanted[at] = true;
  }
  for (size_t k = 0; k < plans.size(); ++k) {
    for (int64_t param : wanted_params) {
      if (plans[k].param < 0) continue;
      if (param == plans[k].param) wanted[k] = true;
      if (param == plans[k].param + 1) wanted.back() = true;
    }
    if (wanted[k] && has_norm(plans[k].kind)) wanted.back() = true;
  }
  return wanted;
}

// Partial sums [pieces, channels] for some of the candidates, and pointers to them.
struct NormPartials {
  std::vector<double> values;
  std::vector<double*> pointers;  // null where nothing is wanted

  NormPartials(const NormGeometry& geo, const std::vector<bool>& wanted)
      : pointers(wanted.size(), nullptr) {
    const size_t size = static_cast<size_t>(geo.pieces * geo.channels);
    values.resize(size * static_cast<size_t>(std::count(wanted.begin(), wanted.end(), true)));
    double* next = values.data();
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (!wanted[i]) continue;
      pointers[i] = next;
      next += size;
    }
  }
};

template <typename Acc>
using NormTable = std::vector<Acc>;

// A table of `width` coefficients per channel; values(c, index) gives them in float64.
template <typename Acc, typename Values>
NormTable<Acc> make_table(const NormGeometry& geo, int64_t width, Values&& values) {
  NormTable<Acc> table(static_cast<size_t>(cpu::norm_table_size(geo) * width));
  std::vector<Acc> per_channel(static_cast<size_t>(geo.channels));
  for (int64_t index = 0; index < width; ++index) {
    for (int64_t c = 0; c < geo.channels; ++c) {
      per_channel[static_cast<size_t>(c)] = static_cast<Acc>(values(c, index));
    }
    cpu::norm_fill_table(geo, per_channel.data(), index, width, table.data());
  }
  return table;
}

template <typename Acc>
std::vector<const Acc*> pointers_to(const std::vector<NormTable<Acc>>& tables) {
  std::vector<const Acc*> pointers;
  for (const auto& table : tables) pointers.push_back(table.data());
  return pointers;
}

}  // namespace pfn
