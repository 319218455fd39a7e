// Relaxed weights of the kept candidates and their gradient (docs/kernels.md, Gumbel-TopK). Every
// exponent is at most zero, so nothing overflows at any temperature.
#pragma once

#include <cstdint>

#include "math/macros.h"

namespace pfn::math {

// 1 / tau with tau kept where both it and its inverse are usable numbers of type T.
PFN_HD float inverse_tau(double tau, float) {
  const double bounded = tau < 0x1p-126 ? 0x1p-126 : tau > 0x1p126 ? 0x1p126 : tau;
  return static_cast<float>(1.0 / bounded);
}
PFN_HD double inverse_tau(double tau, double) {
  const double bounded = tau < 0x1p-1022 ? 0x1p-1022 : tau > 0x1p1022 ? 0x1p1022 : tau;
  return 1.0 / bounded;
}

// Whether candidates are among the kept, given the key and column of the last rank.
template <typename L>
PFN_HD auto is_kept(typename L::Value key,
                    typename L::Index column,
                    typename L::Value last,
                    typename L::Index last_column) {
  return (key > last) | ((key == last) & (column <= last_column));
}

// exp((key - reference) / tau) of one candidate for the sum that relaxed_weights() needs: of every
// candidate (shared) or of those that were not kept (conditional).
template <typename L>
PFN_HD typename L::Value relaxed_term(typename L::Value key,
                                      typename L::Index column,
                                      typename L::Value reference,
                                      typename L::Value last,
                                      typename L::Index last_column,
                                      typename L::Number inv_tau,
                                      bool conditional) {
  const auto term = L::exp((key - reference) * inv_tau);
  if (!conditional) {
    return term;
  }
  return is_kept<L>(key, column, last, last_column) ? typename L::Value{} : term;
}

// Weights from the kept keys and `sum`, the sum of relaxed_term() over the row with the reference
// best[0] (shared) or best[k - 1] (conditional). May write over `best`. O(k).
template <typename L>
PFN_HD void relaxed_weights(const typename L::Value* best,  // [k]
                            typename L::Value sum,
                            int64_t k,
                            typename L::Number inv_tau,
                            bool conditional,
                            typename L::Value* weights  // [k]
) {
  if (!conditional) {
    const auto top = best[0];
    for (int64_t r = 0; r < k; ++r) {
      weights[r] = L::exp((best[r] - top) * inv_tau) / sum;
    }
    return;
  }
  // total = sum over what rank r chooses from of exp((key - best[r]) / tau), from the last rank up.
  auto total = 1.0f + sum;
  for (int64_t r = k - 1; r > 0; --r) {
    const auto step = L::exp((best[r] - best[r - 1]) * inv_tau);
    weights[r] = 1.0f / total;
    total = 1.0f + step * total;
  }
  weights[0] = 1.0f / total;
}

// Gradient of the conditional weights at the kept candidates of one row, by recursions over the
// ranks in place of k softmaxes. `rest` is the sum of relaxed_term() over the row. Returns c, from
// which the gradient at the others follows: -c exp((key - best[k - 1]) / tau) / tau. O(k).
template <typename L>
PFN_HD typename L::Number conditional_backward(const typename L::Number* keys,          // [columns]
                                               const int64_t* indices,                  // [k]
                                               const typename L::Number* grad_weights,  // [k]
                                               int64_t k,
                                               typename L::Number inv_tau,
                                               typename L::Number rest,
                                               typename L::Number* grad  // [columns]
) {
  using T = typename L::Number;
  // First what rank r leaves to later ranks, relative to its own exponential; kept at its place.
  for (int64_t r = k - 1; r >= 0; --r) {
    grad[indices[r]] = rest;
    if (r > 0) {
      rest = L::exp((keys[indices[r]] - keys[indices[r - 1]]) * inv_tau) * (1 + rest);
    }
  }
  // Then, with q_s the weight of rank s, carried = sum over s < r of
  // grad_weights[s] q_s^2 exp((key_r - key_s) / tau).
  T carried{};
  for (int64_t r = 0; r < k; ++r) {
    if (r > 0) {
      carried *= L::exp((keys[indices[r]] - keys[indices[r - 1]]) * inv_tau);
    }
    const T left = grad[indices[r]];
    const T weighted = grad_weights[r] / (1 + left);
    grad[indices[r]] = (weighted * (left / (1 + left)) - carried) * inv_tau;
    carried += weighted / (1 + left);
  }
  return carried;
}

}  // namespace pfn::math
