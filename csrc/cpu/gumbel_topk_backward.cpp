#include <cstdint>

#include "cpu/gumbel_topk.h"
#include "cpu/gumbel_topk_lanes.h"
#include "math/softmax.h"

namespace pfn::cpu::PFN_ISA {
namespace {

// One row at a time, lanes along the row. With q the relaxed weights, d_r their incoming gradient:
//   shared       grad_j = q_j ([j kept at r] d_r - sum_s d_s q_s) / tau
//   conditional  the same for each rank on its own softmax over what that rank chose from, summed.
template <typename T>
class RowBackward {
  using L = row_lanes_t<T>;
  using Value = typename L::Value;
  static constexpr int64_t kWidth = L::kWidth;

 public:
  RowBackward(const GumbelTopkBackwardArgs<T>& args, int64_t row)
      : args_(args),
        keys_(args.keys + row * args.columns),
        indices_(args.indices + row * args.k),
        grad_weights_(args.grad_weights + row * args.k),
        grad_(args.grad + row * args.columns) {}

  bool has_valid_indices() const {
    for (int64_t r = 0; r < args_.k; ++r) {
      if (indices_[r] < 0 || indices_[r] >= args_.columns) {
        return false;
      }
    }
    return true;
  }

  void shared() const {
    const T total = exponentials</*kConditional=*/false>(key(0));
    T mean{};
    for (int64_t r = 0; r < args_.k; ++r) {
      mean += grad_weights_[r] * (grad_[indices_[r]] / total);
    }
    // At kept places the final value, elsewhere the rest of the product.
    for (int64_t r = 0; r < args_.k; ++r) {
      const T q = grad_[indices_[r]] / total;
      grad_[indices_[r]] = q * (grad_weights_[r] - mean) * args_.inv_tau;
    }
    scale(-mean / total);
  }

  void conditional() const {
    const T rest = exponentials</*kConditional=*/true>(key(args_.k - 1));
    const T carried = math::conditional_backward<math::Scalar<T>>(
        keys_, indices_, grad_weights_, args_.k, args_.inv_tau, rest, grad_);
    scale(-carried);
  }

 private:
  T key(int64_t rank) const { return keys_[indices_[rank]]; }

  // Whether lanes of `keys` from `column` on were kept.
  PFN_HD auto kept(Value keys, int64_t column, T last, int32_t last_column) {
    return math::is_kept<L>(keys, columns_from(static_cast<int32_t>(column), keys), Value{} + last,
                            typename L::Index{} + last_column);
  }

  // Writes exp((key - reference) / tau) to grad_, returns the sum; 0 for kept ones if conditional.
  template <bool kConditional>
  T exponentials(T reference) const {
    const T last = key(args_.k - 1);
    const int32_t last_column = static_cast<int32_t>(indices_[args_.k - 1]);
    double total = 0.0;
    Value sum{};
    for_each_vector([&](int64_t column, int64_t count) {
      if (column % kSumBlock == 0) {
        total += static_cast<double>(sum_lanes(sum));
        sum = Value{};
      }
      const Value keys = load_some(keys_ + column, count, Value{} - __builtin_huge_valf());
      Value e = L::exp((keys - reference) * args_.inv_tau);
      if constexpr (kConditional) {
        e = kept(keys, column, last, last_column) ? Value{} : e;
      }
      sum += e;
      store_some(grad_ + column, count, e);
    });
    return static_cast<T>(total + static_cast<double>(sum_lanes(sum)));
  }

  // Multiplies grad_ by factor / tau, except at kept candidates.
  void scale(T factor) const {
    const T last = key(args_.k - 1);
    const int32_t last_column = static_cast<int32_t>(indices_[args_.k - 1]);
    for_each_vector([&](int64_t column, int64_t count) {
      const Value keys = load_some(keys_ + column, count, Value{});
      const Value e = load_some(grad_ + column, count, Value{});
      // In this order a zero stays zero however small tau is.
      const Value scaled = e * factor * args_.inv_tau;
      store_some(grad_ + column, count, kept(keys, column, last, last_column) ? e : scaled);
    });
  }

  template <typename Function>
  void for_each_vector(const Function& function) const {
    int64_t column = 0;
    for (; column + kWidth <= args_.columns; column += kWidth) {
      function(column, kWidth);
    }
    if (column < args_.columns) {
      function(column, args_.columns - column);
    }
  }

  const GumbelTopkBackwardArgs<T>& args_;
  const T* keys_;           // [columns]
  const int64_t* indices_;  // [k]
  const T* grad_weights_;   // [k]
  T* grad_;                 // [columns]
};

}  // namespace

template <typename T>
bool gumbel_topk_backward(const GumbelTopkBackwardArgs<T>& args,
                          int64_t first_row,
                          int64_t last_row) {
  for (int64_t row = first_row; row < last_row; ++row) {
    const RowBackward<T> backward(args, row);
    if (!backward.has_valid_indices()) {
      return false;
    }
    args.conditional ? backward.conditional() : backward.shared();
  }
  return true;
}

template bool gumbel_topk_backward(const GumbelTopkBackwardArgs<double>&, int64_t, int64_t);
template bool gumbel_topk_backward(const GumbelTopkBackwardArgs<float>&, int64_t, int64_t);

}  // namespace pfn::cpu::PFN_ISA
