// Registers norm_mixed_sum and norm_mixed_sum_backward for CPU.
#include "cpu/norm_mixed_sum.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "cpu/pages.h"
#include "registration/mixed_args.h"
#include "registration/norm_args.h"

namespace pfn {
namespace {

// Elements below which a second thread costs more than it brings.
constexpr int64_t kGrain = 16384;

// Merges the pieces of one candidate in their order (Chan, Golub & LeVeque 1983), into mean and
// biased variance.
template <typename X>
void merge_statistics(const NormGeometry& geo,
                      const X* x,
                      const double* means,
                      const double* squares,
                      double* mean,
                      double* var) {
  const int64_t channels = geo.channels;
  std::copy_n(means, channels, mean);
  std::copy_n(squares, channels, var);
  double count = static_cast<double>(cpu::norm_unit(geo, 0).per_channel);
  for (int64_t piece = 1; piece < geo.pieces; ++piece) {
    means += channels;
    squares += channels;
    const double more = static_cast<double>(cpu::norm_unit(geo, piece * geo.groups).per_channel);
    const double share = more / (count + more), product = count * share;
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = means[c] - mean[c];
      mean[c] += distance * share;
      var[c] += squares[c] + distance * distance * product;
    }
    count += more;
  }
  for (int64_t c = 0; c < channels; ++c) {
    if (!std::isfinite(mean[c]) || !std::isfinite(var[c])) {
      cpu::norm_exact_channel(geo, x, c, mean + c, var + c);
    }
    var[c] /= count;
  }
}

template <typename X>
void batch_statistics(const NormGeometry& geo,
                      const std::vector<const X*>& xs,
                      const std::vector<NormCandidate>& candidates,
                      double* statistics) {
  std::vector<const X*> data;
  std::vector<double*> to;
  for (size_t k = 0; k < xs.size(); ++k) {
    if (!candidates[k].uses_batch()) continue;
    data.push_back(xs[k]);
    to.push_back(statistics + 2 * candidates[k].norm * geo.channels);
  }
  if (data.empty()) return;
  if (geo.numel == 0) {
    for (double* place : to) std::fill_n(place, 2 * geo.channels, std::nan(""));
    return;
  }
  const std::vector<bool> all(data.size(), true);
  const NormPartials means(geo, all), squares(geo, all);
  torch::stable::parallel_for(0, geo.pieces * geo.groups, 1, [&](int64_t first, int64_t last) {
    PFN_CPU_CALL(norm_statistics, geo, data.data(), means.pointers.data(), squares.pointers.data(),
                 static_cast<int64_t>(data.size()), first, last);
  });
  for (size_t i = 0; i < data.size(); ++i) {
    merge_statistics(geo, data[i], means.pointers[i], squares.pointers[i], to[i],
                     to[i] + geo.channels);
  }
}

// The strips are shared out among threads; each first backs its part of the outputs with memory.
template <typename T, typename Function>
void for_each_strips(const NormGeometry& geo, const std::vector<T*>& outputs, Function&& function) {
  const int64_t strips = geo.rows * geo.strips_per_row;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, geo.strip));
  torch::stable::parallel_for(0, strips, grain, [&](int64_t first, int64_t last) {
    const int64_t begin = cpu::norm_strip_offset(geo, first);
    const int64_t end = cpu::norm_strip_offset(geo, last);
    for (T* to : outputs) {
      if (to == nullptr) continue;
      cpu::back_with_memory(to + begin, static_cast<size_t>(end - begin) * sizeof(T));
    }
    function(first, last);
  });
}

template <typename X, typename Y>
void weighted_sum(const NormGeometry& geo,
                  const std::vector<const X*>& xs,
                  const std::vector<NormCandidate>& candidates,
                  Y* y) {
  using Acc = math::acc_t<X>;
  const int64_t num_ops = static_cast<int64_t>(xs.size());
  std::vector<NormTable<Acc>> tables;
  for (int64_t from = 0; from < num_ops; from += PFN_NORM_GROUP) {
    const int64_t size = std::min<int64_t>(PFN_NORM_GROUP, num_ops - from);
    tables.push_back(make_table<Acc>(geo, 2 * size, [&](int64_t c, int64_t index) {
      const NormCandidate& candidate = candidates[static_cast<size_t>(from + index / 2)];
      return index % 2 == 0 ? candidate.scale(c)
                            : static_cast<double>(candidate.mean_above<Acc>(c));
    }));
  }
  const auto bias = make_table<Acc>(geo, 1, [&](int64_t c, int64_t) {
    double sum = 0.0;
    for (const NormCandidate& candidate : candidates) {
      if (!has_norm(candidate.kind)) continue;
      sum += candidate.weight * candidate.beta[static_cast<size_t>(c)];
      const double below = candidate.mean_below<Acc>(c);
      if (below != 0.0) sum -= candidate.scale(c) * below;
    }
    return sum;
  });
  const auto pointers = pointers_to(tables);
  for_each_strips(geo, std::vector<Y*>{y}, [&](int64_t first, int64_t last) {
    PFN_CPU_CALL(norm_sum, geo, xs.data(), pointers.data(), bias.data(), y, num_ops, first, last);
  });
}

std::tuple<Tensor, Tensor> norm_mixed_sum_cpu(const std::vector<Tensor>& xs,
                                              const Tensor& weights,
                                              const std::vector<Tensor>& params,
                                              const std::vector<Tensor>& given,
                                              const std::vector<int64_t>& kinds,
                                              const std::vector<double>& eps) {
  constexpr const char* op = "norm_mixed_sum";
  auto candidates = read_candidates(op, xs, weights, params, kinds, eps);
  const int64_t channels = xs[0].size(1);
  Tensor y = empty_like(xs[0], weights);
  Tensor statistics =
      torch::stable::new_empty(xs[0], {static_cast<int64_t>(eps.size()), 2, channels},
                               torch::headeronly::ScalarType::Double);
  double* numbers = mutable_data<double>(op, "statistics", statistics);
  size_t next = 0;
  for (const NormCandidate& candidate : candidates) {
    if (!is_given(candidate.kind)) continue;
    for (int64_t which = 0; which < 2; ++which) {
      const auto values = read_vector(op, "given", given_at(op, given, next++, xs[0]));
      std::copy(values.begin(), values.end(), numbers + (2 * candidate.norm + which) * channels);
    }
  }
  const NormGeometry geo = geometry_of(y);
  std::vector<Tensor> laid_out;
  for (const Tensor& x : xs) laid_out.push_back(laid_out_like(y, x));
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    std::vector<const X*> in;
    for (const Tensor& x : laid_out) in.push_back(const_data<X>(op, "xs", x));
    batch_statistics(geo, in, candidates, numbers);
    for (NormCandidate& candidate : candidates) {
      if (!has_norm(candidate.kind)) continue;
      candidate.set_statistics(numbers, channels, eps[static_cast<size_t>(candidate.norm)]);
    }
    if (geo.numel > 0) weighted_sum(geo, in, candidates, mutable_data<Y>(op, "y", y));
  });
  return {std::move(y), std::move(statistics)};
}

// Sums over each channel: of grad, and of grad times the distance of each candidate from its mean.
struct Dots {
  std::vector<std::vector<double>> of;  // [num_ops][channels], empty where not wanted
  std::vector<double> grad;             // [channels], likewise
};

template <typename X, typename Y>
Dots sum_dots(const NormGeometry& geo,
              const Y* grad,
              const std::vector<const X*>& xs,
              const std::vector<NormCandidate>& candidates,
              std::vector<bool> wanted) {  // [num_ops + 1], the last for grad alone
  using Acc = math::acc_t<X>;
  const size_t num_ops = xs.size();
  std::vector<NormTable<Acc>> means;
  for (size_t k = 0; k < num_ops; ++k) {
    means.push_back(make_table<Acc>(
        geo, 1, [&](int64_t c, int64_t) { return candidates[k].template mean_above<Acc>(c); }));
  }
  const auto pointers = pointers_to(means);
  const NormPartials partials(geo, wanted);
  torch::stable::parallel_for(0, geo.pieces * geo.groups, 1, [&](int64_t first, int64_t last) {
    PFN_CPU_CALL(norm_dots, geo, grad, xs.data(), pointers.data(), partials.pointers.data(),
                 static_cast<int64_t>(num_ops), first, last);
  });
  const size_t channels = static_cast<size_t>(geo.channels);
  const auto merged = [&](size_t k) {
    std::vector<double> sums(wanted[k] ? channels : 0);
    const double* from = partials.pointers[k];
    for (int64_t piece = 0; wanted[k] && piece < geo.pieces; ++piece, from += channels) {
      for (size_t c = 0; c < channels; ++c) sums[c] += from[c];
    }
    return sums;
  };
  Dots dots;
  dots.grad = merged(num_ops);
  for (size_t k = 0; k < num_ops; ++k) {
    dots.of.push_back(merged(k));
    if (!wanted[k] || !has_norm(candidates[k].kind)) continue;
    for (size_t c = 0; c < channels; ++c) {
      const double below = candidates[k].template mean_below<Acc>(static_cast<int64_t>(c));
      if (below != 0.0) dots.of[k][c] -= below * dots.grad[c];
    }
  }
  return dots;
}

// Gradients of the candidates' inputs where grad_xs[k] is not null.
template <typename X, typename Y>
void scatter(const NormGeometry& geo,
             const Y* grad,
             std::vector<const X*> xs,
             const std::vector<NormCandidate>& candidates,
             const Dots& dots,
             const std::vector<X*>& grad_xs) {
  using Acc = math::acc_t<X>;
  const double count = static_cast<double>(geo.outer * geo.inner);
  std::vector<NormTable<Acc>> tables(xs.size());
  for (size_t k = 0; k < xs.size(); ++k) {
    const NormCandidate& candidate = candidates[k];
    if (!candidate.uses_batch()) xs[k] = nullptr;
    if (grad_xs[k] == nullptr) continue;
    const int64_t width = candidate.uses_batch() ? PFN_NORM_SCATTER : 1;
    tables[k] = make_table<Acc>(geo, width, [&](int64_t c, int64_t index) -> double {
      const double scale = candidate.scale(c);
      if (index == 0) return scale;
      const size_t at = static_cast<size_t>(c);
      const double rho = candidate.inverse_deviation[at];
      const double slope = -rho * rho * dots.of[k][at] / count;
      if (index == 1) return slope;
      if (index == 2) return static_cast<double>(candidate.mean_above<Acc>(c));
      const double below = candidate.mean_below<Acc>(c);
      return -dots.grad[at] / count - (below != 0.0 ? slope * below : 0.0);
    });
  }
  const auto pointers = pointers_to(tables);
  const auto wanted = std::count_if(grad_xs.begin(), grad_xs.end(), [](X* to) { return to; });
  const bool streams = geo.numel * wanted * static_cast<int64_t>(sizeof(X)) >= kStreamBytes;
  for_each_strips(geo, grad_xs, [&](int64_t first, int64_t last) {
    PFN_CPU_CALL(norm_scatter, geo, grad, xs.data(), pointers.data(), grad_xs.data(),
                 static_cast<int64_t>(xs.size()), first, last, streams);
  });
}

// Gradients of weights, scales and shifts from the sums.
void small_gradients(const char* op,
                     const std::vector<NormCandidate>& candidates,
                     const Dots& dots,
                     int64_t channels,
                     const Tensor* grad_weights,
                     const std::vector<int64_t>& wanted_params,
                     const std::vector<Tensor>& grad_params) {
  std::vector<double> of_weights(candidates.size(), 0.0);
  for (size_t k = 0; k < candidates.size() && grad_weights != nullptr; ++k) {
    const NormCandidate& candidate = candidates[k];
    for (size_t c = 0; c < static_cast<size_t>(channels); ++c) {
      if (!has_norm(candidate.kind)) {
        of_weights[k] += dots.of[k][c];
        continue;
      }
      of_weights[k] += candidate.gamma[c] * candidate.inverse_deviation[c] * dots.of[k][c];
      if (is_affine(candidate.kind)) of_weights[k] += candidate.beta[c] * dots.grad[c];
    }
  }
  if (grad_weights != nullptr) write_vector(op, *grad_weights, of_weights);
  std::vector<double> values(static_cast<size_t>(channels));
  for (size_t i = 0; i < wanted_params.size(); ++i) {
    for (size_t k = 0; k < candidates.size(); ++k) {
      const NormCandidate& candidate = candidates[k];
      const int64_t which = wanted_params[i] - candidate.param;
      if (candidate.param < 0 || which < 0 || which > 1) continue;
      for (size_t c = 0; c < values.size(); ++c) {
        values[c] = which == 1 ? candidate.weight * dots.grad[c]
                               : candidate.weight * candidate.inverse_deviation[c] * dots.of[k][c];
      }
      write_vector(op, grad_params[i], values);
    }
  }
}

std::tuple<std::vector<Tensor>, Tensor, std::vector<Tensor>> norm_mixed_sum_backward_cpu(
    const Tensor& grad,
    const std::vector<Tensor>& xs,
    const Tensor& weights,
    const std::vector<Tensor>& params,
    const Tensor& statistics,
    const std::vector<int64_t>& kinds,
    const std::vector<double>& eps,
    const std::vector<int64_t>& wanted_xs,
    bool wants_weights,
    const std::vector<int64_t>& wanted_params) {
  constexpr const char* op = "norm_mixed_sum_backward";
  auto candidates = read_candidates(op, xs, weights, params, kinds, eps);
  const int64_t num_ops = static_cast<int64_t>(xs.size()), channels = xs[0].size(1);
  check_norm_backward(op, grad, xs[0], statistics, eps, params, wanted_params);
  const Tensor dense_statistics =
      statistics.is_contiguous() ? statistics : torch::stable::contiguous(statistics);
  const double* numbers = const_data<double>(op, "statistics", dense_statistics);
  for (NormCandidate& candidate : candidates) {
    if (!has_norm(candidate.kind)) continue;
    candidate.set_statistics(numbers, channels, eps[static_cast<size_t>(candidate.norm)]);
    // The statistics of nothing are NaN, the gradients zero.
    if (grad.numel() == 0) candidate.inverse_deviation.assign(static_cast<size_t>(channels), 0.0);
  }
  std::vector<Tensor> grad_xs = empty_gradients(op, xs[0], num_ops, wanted_xs), grad_params;
  Tensor grad_weights = torch::stable::new_empty(weights, {wants_weights ? num_ops : 0});
  for (int64_t param : wanted_params) {
    grad_params.push_back(torch::stable::new_empty(params[static_cast<size_t>(param)], {channels}));
  }
  const Tensor model = norm_backward_model(xs[0], grad_xs);
  const auto wanted = wanted_dots(candidates, wanted_xs, wants_weights, wanted_params);
  const NormGeometry geo = geometry_of(model);
  const Tensor laid_out_grad = laid_out_like(model, grad);
  std::vector<Tensor> laid_out;
  for (size_t k = 0; k < xs.size(); ++k) {
    laid_out.push_back(wanted[k] ? laid_out_like(model, xs[k]) : xs[k]);
  }
  dispatch_mixed(op, xs[0], weights, [&](auto x_tag, auto y_tag) {
    using X = typename decltype(x_tag)::type;
    using Y = typename decltype(y_tag)::type;
    const Y* g = const_data<Y>(op, "grad", laid_out_grad);
    std::vector<const X*> in;
    for (const Tensor& x : laid_out) in.push_back(const_data<X>(op, "xs", x));
    const auto out = gradient_pointers<X>(op, num_ops, wanted_xs, grad_xs);
    const Dots dots = sum_dots(geo, g, in, candidates, wanted);
    small_gradients(op, candidates, dots, channels, wants_weights ? &grad_weights : nullptr,
                    wanted_params, grad_params);
    if (!wanted_xs.empty() && geo.numel > 0) scatter(geo, g, in, candidates, dots, out);
  });
  return {std::move(grad_xs), std::move(grad_weights), std::move(grad_params)};
}

}  // namespace
}  // namespace pfn

#ifndef PFN_TWIN
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) {
  m.impl("norm_mixed_sum", TORCH_BOX(&pfn::norm_mixed_sum_cpu));
  m.impl("norm_mixed_sum_backward", TORCH_BOX(&pfn::norm_mixed_sum_backward_cpu));
}
#endif
