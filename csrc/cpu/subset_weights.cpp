#include "cpu/subset_weights.h"

#include <cstdint>

#include "cpu/gumbel_topk_lanes.h"
#include "math/subset.h"

namespace pfn::cpu::PFN_ISA {
namespace {

// One row, lanes along it.
template <typename T>
class SubsetRow {
  using L = row_lanes_t<T>;
  using Value = typename L::Value;
  using Index = typename L::Index;
  using Rank = math::SubsetRank<T>;
  static constexpr int64_t kWidth = L::kWidth;

 public:
  SubsetRow(const SubsetArgs<T>& args, T* scratch, Rank* ranks, int64_t row)
      : args_(args),
        keys_(args.keys + row * args.columns),
        indices_(args.indices + row * args.k),
        scratch_(scratch),
        ranks_(ranks) {}

  bool has_valid_indices() const {
    for (int64_t r = 0; r < args_.k; ++r) {
      if (indices_[r] < 0 || indices_[r] >= args_.columns) {
        return false;
      }
    }
    return true;
  }

  // Fills ranks_, and weights where they are wanted.
  void forward(T* weights /* [k] or null */) const {
    __builtin_memcpy(scratch_, keys_, static_cast<size_t>(args_.columns) * sizeof(T));
    for (int64_t r = 0; r < args_.k; ++r) {
      const Rank rank = ranks_[r] = rank_of_scores();
      if (weights != nullptr) {
        const T e = math::subset_term<One>(scratch_[indices_[r]], rank, args_.inv_tau);
        weights[r] = e / (1 + rank.others);
      }
      if (r + 1 < args_.k) {
        for_each_vector([&](int64_t column, int64_t count) {
          const Value score = load_some(scratch_ + column, count, Value{});
          const Value next = math::subset_next<L>(score, columns_at(column), rank, args_.inv_tau);
          store_some(scratch_ + column, count, next);
        });
      }
    }
  }

  // From the last rank up; forward() has filled ranks_.
  void backward(const T* grad_weights /* [k] */, T* grad /* [columns] */) const {
    for (int64_t j = 0; j < args_.columns; ++j) {
      grad[j] = T{};
    }
    for (int64_t r = args_.k - 1; r >= 0; --r) {
      write_terms(r);
      const Rank& rank = ranks_[r];
      math::SubsetSums<T> sums = sums_of(rank, grad);
      sums.incoming = grad_weights[r];
      sums.chosen = scratch_[indices_[r]] / (1 + rank.others);
      for_each_vector([&](int64_t column, int64_t count) {
        const Value g = load_some(grad + column, count, Value{});
        const Value e = load_some(scratch_ + column, count, Value{});
        const Index chosen = Index{} + static_cast<int32_t>(indices_[r]);
        const Value before =
            math::subset_backward<L>(g, e, columns_at(column), chosen, rank, sums, args_.inv_tau);
        store_some(grad + column, count, before);
      });
    }
  }

 private:
  using One = math::Scalar<T>;

  static Index columns_at(int64_t column) {
    return columns_from(static_cast<int32_t>(column), Value{});
  }

  // The softmax of the scores in scratch_.
  Rank rank_of_scores() const {
    Rank rank{scratch_[0], T{}, 0};
    for (int64_t j = 1; j < args_.columns; ++j) {
      if (scratch_[j] > rank.top) {
        rank.top = scratch_[j];
        rank.column = static_cast<int32_t>(j);
      }
    }
    rank.others = sum([&](int64_t column, int64_t count) {
      const Value score = load_some(scratch_ + column, count, Value{} - __builtin_huge_valf());
      const Value e = math::subset_term<L>(score, rank, args_.inv_tau);
      return columns_at(column) == rank.column ? Value{} : e;
    });
    return rank;
  }

  // exp((score - top) / tau) of rank r into scratch_.
  void write_terms(int64_t r) const {
    for_each_vector([&](int64_t column, int64_t count) {
      const Value key = load_some(keys_ + column, count, Value{} - __builtin_huge_valf());
      const Value score = math::subset_score<L>(key, columns_at(column), ranks_, r, args_.inv_tau);
      store_some(scratch_ + column, count, math::subset_term<L>(score, ranks_[r], args_.inv_tau));
    });
  }

  math::SubsetSums<T> sums_of(const Rank& rank, const T* grad) const {
    math::SubsetSums<T> sums{};
    sums.best = math::subset_is_differentiable(rank) ? grad[rank.column] : T{};
    const T of_others = sum([&](int64_t column, int64_t count) {
      const Value g = load_some(grad + column, count, Value{});
      const Value e = load_some(scratch_ + column, count, Value{});
      // Each as g (1 / left - 1 / total), which is small where the softmax gave little.
      const Value left = math::subset_left<L>(e, columns_at(column), rank);
      const Value part = g * (e / left) / (1.0f + rank.others);
      return columns_at(column) == rank.column ? Value{} : part;
    });
    sums.shared = of_others - sums.best / (1 + rank.others);
    return sums;
  }

  // Adds up what function(column, count) returns for each vector; lanes beyond a row must be 0.
  template <typename Function>
  T sum(const Function& function) const {
    double total = 0.0;
    Value sums{};
    for_each_vector([&](int64_t column, int64_t count) {
      if (column % kSumBlock == 0) {
        total += static_cast<double>(sum_lanes(sums));
        sums = Value{};
      }
      sums += function(column, count);
    });
    return static_cast<T>(total + static_cast<double>(sum_lanes(sums)));
  }

  template <typename Function>
  void for_each_vector(const Function& function) const {
    for (int64_t column = 0; column < args_.columns; column += kWidth) {
      const int64_t left = args_.columns - column;
      function(column, left < kWidth ? left : kWidth);
    }
  }

  const SubsetArgs<T>& args_;
  const T* keys_;           // [columns]
  const int64_t* indices_;  // [k]
  T* scratch_;              // [columns]
  Rank* ranks_;             // [k]
};

}  // namespace

template <typename T>
bool subset_weights(const SubsetArgs<T>& args,
                    T* weights,
                    T* scratch,
                    math::SubsetRank<T>* ranks,
                    int64_t first_row,
                    int64_t last_row) {
  for (int64_t row = first_row; row < last_row; ++row) {
    const SubsetRow<T> subset(args, scratch, ranks, row);
    if (!subset.has_valid_indices()) {
      return false;
    }
    subset.forward(weights + row * args.k);
  }
  return true;
}

template <typename T>
bool subset_weights_backward(const SubsetArgs<T>& args,
                             const T* grad_weights,
                             T* grad,
                             T* scratch,
                             math::SubsetRank<T>* ranks,
                             int64_t first_row,
                             int64_t last_row) {
  for (int64_t row = first_row; row < last_row; ++row) {
    const SubsetRow<T> subset(args, scratch, ranks, row);
    if (!subset.has_valid_indices()) {
      return false;
    }
    subset.forward(nullptr);
    subset.backward(grad_weights + row * args.k, grad + row * args.columns);
  }
  return true;
}

#define PFN_INSTANTIATE(T)                                                                  \
  template bool subset_weights(const SubsetArgs<T>&, T*, T*, math::SubsetRank<T>*, int64_t, \
                               int64_t);                                                    \
  template bool subset_weights_backward(const SubsetArgs<T>&, const T*, T*, T*,             \
                                        math::SubsetRank<T>*, int64_t, int64_t);
PFN_INSTANTIATE(double)
PFN_INSTANTIATE(float)
#undef PFN_INSTANTIATE

}  // namespace pfn::cpu::PFN_ISA
