#include "cpu/mixed_sum.h"

#include <cstdint>

#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {
namespace {

// Candidates summed in registers at once; more would spill their pointers.
constexpr int kGroup = 8;
// Elements of the running sum kept in the first-level cache while the groups of candidates pass.
constexpr int64_t kTile = 1024;
// How far ahead of its use a line is asked for, in bytes: eight streams are more than the
// hardware's own prefetching follows well.
constexpr int64_t kAhead = 2048;

// out[i] = (start[i] +) sum_k weights[k] * xs[k][i] over kCount candidates and `count` elements.
template <int kCount, bool kFromStart, typename X, typename Out>
void sum_group(const X* const* xs,
               const math::acc_t<X>* weights,
               const math::acc_t<X>* start,
               Out* out,
               int64_t offset,
               int64_t count) {
  using Acc = math::acc_t<X>;
  constexpr int64_t kStep = kLanes<X>;
  const X* x[kCount];
  Acc w[kCount];
  for (int k = 0; k < kCount; ++k) {
    x[k] = xs[k] + offset;
    w[k] = weights[k];
  }
  const auto sum_at = [&](int64_t at, auto&& read) __attribute__((always_inline)) {
    auto sum = w[0] * read(x[0] + at);
    if constexpr (kFromStart) sum += read(start + at);
    for (int k = 1; k < kCount; ++k) {
      sum += w[k] * read(x[k] + at);
    }
    return sum;
  };
  const auto whole = [](auto* from) __attribute__((always_inline)) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
    return load(from);
  };
  int64_t i = 0;
  for (; i + 2 * kStep <= count; i += 2 * kStep) {
    store(out + i, sum_at(i, whole));
    store(out + i + kStep, sum_at(i + kStep, whole));
  }
  for (; i < count; i += kStep) {
    const int64_t left = count - i < kStep ? count - i : kStep;
    const auto some = [&](auto* from)
                          __attribute__((always_inline)) { return load_some(from, left); };
    store_some(out + i, sum_at(i, some), left);
  }
}

// The same for a count of candidates known at run time, 1 to kGroup.
template <bool kFromStart, typename X, typename Out>
void sum_up_to_group(int64_t num_ops,
                     const X* const* xs,
                     const math::acc_t<X>* weights,
                     const math::acc_t<X>* start,
                     Out* out,
                     int64_t offset,
                     int64_t count) {
  switch (num_ops) {
    case 1:
      return sum_group<1, kFromStart>(xs, weights, start, out, offset, count);
    case 2:
      return sum_group<2, kFromStart>(xs, weights, start, out, offset, count);
    case 3:
      return sum_group<3, kFromStart>(xs, weights, start, out, offset, count);
    case 4:
      return sum_group<4, kFromStart>(xs, weights, start, out, offset, count);
    case 5:
      return sum_group<5, kFromStart>(xs, weights, start, out, offset, count);
    case 6:
      return sum_group<6, kFromStart>(xs, weights, start, out, offset, count);
    case 7:
      return sum_group<7, kFromStart>(xs, weights, start, out, offset, count);
    default:
      return sum_group<8, kFromStart>(xs, weights, start, out, offset, count);
  }
}

// One candidate's share of the backward over `count` elements: to = weight * grad, and the dot
// product of grad and x.
template <bool kScatter, bool kDot, bool kStream, typename X, typename Y>
double backward_one(const Y* grad, const X* x, math::acc_t<X> weight, X* to, int64_t count) {
  constexpr int64_t kStep = kLanes<X>;
  constexpr int kUnroll = 4;
  lanes_t<X> sums[kUnroll] = {};
  int64_t i = 0;
  for (; i + kUnroll * kStep <= count; i += kUnroll * kStep) {
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + u * kStep;
      const auto g = load(grad + at);
      if constexpr (kDot) sums[u] += g * load(x + at);
      if constexpr (kStream) {
        stream(to + at, weight * g);
      } else if constexpr (kScatter) {
        store(to + at, weight * g);
      }
    }
  }
  for (; i < count; i += kStep) {
    const int64_t left = count - i < kStep ? count - i : kStep;
    const auto g = load_some(grad + i, left);
    if constexpr (kDot) sums[0] += g * load_some(x + i, left);
    if constexpr (kScatter) store_some(to + i, weight * g, left);
  }
  return kDot ? sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) : 0.0;
}

template <bool kScatter, bool kDot, typename X, typename Y>
double backward_one(
    const Y* grad, const X* x, math::acc_t<X> weight, X* to, int64_t count, bool streams) {
  if (kScatter && streams && is_streamable(to)) {
    return backward_one<kScatter, kDot, kScatter>(grad, x, weight, to, count);
  }
  return backward_one<kScatter, kDot, false>(grad, x, weight, to, count);
}

}  // namespace

template <typename X, typename Y>
void mixed_sum(const X* const* xs,
               const math::acc_t<X>* weights,
               Y* y,
               int64_t num_ops,
               int64_t begin,
               int64_t end) {
  using Acc = math::acc_t<X>;
  if (num_ops <= kGroup) {
    return sum_up_to_group<false>(num_ops, xs, weights, static_cast<const Acc*>(nullptr), y + begin,
                                  begin, end - begin);
  }
  Acc tile[kTile];
  for (int64_t at = begin; at < end; at += kTile) {
    const int64_t count = end - at < kTile ? end - at : kTile;
    sum_group<kGroup, false>(xs, weights, static_cast<const Acc*>(nullptr), tile, at, count);
    int64_t k = kGroup;
    for (; k + kGroup < num_ops; k += kGroup) {
      sum_group<kGroup, true>(xs + k, weights + k, tile, tile, at, count);
    }
    sum_up_to_group<true>(num_ops - k, xs + k, weights + k, tile, y + at, at, count);
  }
}

template <typename X, typename Y>
void mixed_sum_backward(const Y* grad,
                        const X* const* xs,
                        const math::acc_t<X>* weights,
                        X* const* grad_xs,
                        double* dots,
                        int64_t num_ops,
                        int64_t numel,
                        int64_t first_block,
                        int64_t last_block,
                        bool streams) {
  for (int64_t block = first_block; block < last_block; ++block) {
    const int64_t at = block * PFN_MIXED_SUM_BLOCK;
    const int64_t count = numel - at < PFN_MIXED_SUM_BLOCK ? numel - at : PFN_MIXED_SUM_BLOCK;
    const Y* g = grad + at;
    // The block of grad stays in the cache while each candidate streams past it once.
    for (int64_t k = 0; k < num_ops; ++k) {
      X* to = grad_xs[k] != nullptr ? grad_xs[k] + at : nullptr;
      if (dots != nullptr) {
        const X* x = xs[k] + at;
        dots[block * num_ops + k] =
            to != nullptr ? backward_one<true, true>(g, x, weights[k], to, count, streams)
                          : backward_one<false, true>(g, x, weights[k], to, count, streams);
      } else if (to != nullptr) {
        backward_one<true, false>(g, static_cast<const X*>(nullptr), weights[k], to, count,
                                  streams);
      }
    }
  }
  if (streams) end_streams();
}

#define PFN_INSTANTIATE(X, Y)                                                                    \
  template void mixed_sum<X, Y>(const X* const*, const math::acc_t<X>*, Y*, int64_t, int64_t,    \
                                int64_t);                                                        \
  template void mixed_sum_backward<X, Y>(const Y*, const X* const*, const math::acc_t<X>*,       \
                                         X* const*, double*, int64_t, int64_t, int64_t, int64_t, \
                                         bool);
PFN_INSTANTIATE(double, double)
PFN_INSTANTIATE(float, float)
PFN_INSTANTIATE(math::Half, math::Half)
PFN_INSTANTIATE(math::Half, float)
PFN_INSTANTIATE(math::BFloat16, math::BFloat16)
PFN_INSTANTIATE(math::BFloat16, float)

}  // namespace pfn::cpu::PFN_ISA
