// The relaxed subset: softmaxes taken one after another, each of which leaves its candidates the
// less the more it gave them (docs/kernels.md, Gumbel-TopK). With a the scores, at first the keys,
//   q = softmax(a / tau),  a <- a + log(max(1 - q, kSmallest)).
#pragma once

#include <cstdint>

#include "math/macros.h"

namespace pfn::math {

constexpr float kSmallest = 0x1p-126f;  // the smallest normal float

// The softmax of one rank. With e = exp((a - top) / tau) the best candidate has e = 1, the sum of
// all is 1 + others, and 1 - q of the best is others / (1 + others) without cancellation.
template <typename T>
struct SubsetRank {
  T top;           // the largest score
  T others;        // the sum of e over all columns but the best
  int32_t column;  // of the largest score, the lowest of equals
};

template <typename L>
PFN_HD typename L::Value subset_term(typename L::Value score,
                                     const SubsetRank<typename L::Number>& rank,
                                     typename L::Number inv_tau) {
  return L::exp((score - rank.top) * inv_tau);
}

// The sum of e over the columns that a candidate leaves: (1 - q) times the sum over all.
template <typename L>
PFN_HD typename L::Value subset_left(typename L::Value e,
                                     typename L::Index column,
                                     const SubsetRank<typename L::Number>& rank) {
  const auto others = typename L::Value{} + rank.others;
  return column == rank.column ? others : 1.0f + others - e;
}

// Whether 1 - q of the best candidate is large enough to be differentiated; of the rest it always
// is.
template <typename T>
PFN_HD bool subset_is_differentiable(const SubsetRank<T>& rank) {
  return rank.others / (1.0f + rank.others) >= kSmallest;
}

// The score that a rank leaves.
template <typename L>
PFN_HD typename L::Value subset_next(typename L::Value score,
                                     typename L::Index column,
                                     const SubsetRank<typename L::Number>& rank,
                                     typename L::Number inv_tau) {
  const auto e = subset_term<L>(score, rank, inv_tau);
  const auto share = subset_left<L>(e, column, rank) / (1.0f + rank.others);
  const auto smallest = typename L::Value{} + kSmallest;
  return score + L::log(share > smallest ? share : smallest);
}

// The score that stands before rank `before`, from the key.
template <typename L>
PFN_HD typename L::Value subset_score(typename L::Value key,
                                      typename L::Index column,
                                      const SubsetRank<typename L::Number>* ranks,  // [before]
                                      int64_t before,
                                      typename L::Number inv_tau) {
  for (int64_t r = 0; r < before; ++r) {
    key = subset_next<L>(key, column, ranks[r], inv_tau);
  }
  return key;
}

// What one rank's backward sums over a row, from the gradient g of the scores that it leaves.
template <typename T>
struct SubsetSums {
  T shared;    // sum of g / left over all but the best, less sum of g / (1 + others)
  T best;      // g of the best, 0 where it is not differentiable
  T chosen;    // q of the candidate that the weight belongs to
  T incoming;  // gradient of that weight
};

// Gradient of the scores before a rank from that after it, g, at one column.
template <typename L>
PFN_HD typename L::Value subset_backward(typename L::Value g,
                                         typename L::Value e,
                                         typename L::Index column,
                                         typename L::Index chosen,
                                         const SubsetRank<typename L::Number>& rank,
                                         const SubsetSums<typename L::Number>& sums,
                                         typename L::Number inv_tau) {
  using Value = typename L::Value;
  const Value zero{};
  const auto is_best = column == rank.column;
  const Value own = is_best ? zero : g / subset_left<L>(e, column, rank);
  // e / others is a share even where others is next to nothing.
  const auto divisor = sums.best == 0 ? static_cast<typename L::Number>(1) : rank.others;
  const Value of_best = is_best ? zero : e / divisor * sums.best;
  const Value one = zero + sums.incoming;
  const Value through_weight =
      e / (1.0f + rank.others) * ((column == chosen ? one : zero) - sums.incoming * sums.chosen);
  return g + (e * (sums.shared - own) + of_best + through_weight) * inv_tau;
}

}  // namespace pfn::math
