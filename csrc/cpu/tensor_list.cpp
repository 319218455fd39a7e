#include "cpu/tensor_list.h"

#include <cstdint>

#include "cpu/lanes.h"

namespace pfn::cpu::PFN_ISA {
namespace {

// Calls function(segment, offset, values) for every stretch of a block, in their order; `segment`
// is the first that is not behind the block, and the one to go on with is returned.
template <typename Function>
PFN_INLINE int64_t for_each_stretch(const math::Segment* segments,
                                    const int64_t* starts,
                                    int64_t count,
                                    int64_t block,
                                    int64_t segment,
                                    Function&& function) {
  int64_t at = block * PFN_TENSOR_LIST_BLOCK;
  const int64_t end = at + PFN_TENSOR_LIST_BLOCK;
  for (; segment < count; ++segment) {
    const int64_t last = starts[segment] + segments[segment].numel;
    const int64_t until = last < end ? last : end;
    if (until > at) function(segments[segment], at - starts[segment], until - at);
    at = until > at ? until : at;
    if (last >= end) break;
  }
  return segment;
}

// The segment that holds the first value of a block.
int64_t segment_of(const int64_t* starts, int64_t count, int64_t block) {
  const int64_t at = block * PFN_TENSOR_LIST_BLOCK;
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (starts[middle] <= at ? low : high) = middle;
  }
  return low;
}

template <typename Pass, typename T>
void pass_stretch(const math::Segment& segment,
                  int64_t offset,
                  int64_t count,
                  math::acc_t<T> factor) {
  constexpr int64_t kStep = kLanes<T>;
  T* at[Pass::kLists];
  for (int list = 0; list < Pass::kLists; ++list) {
    at[list] = static_cast<T*>(segment.at[list]) + offset;
  }
  const auto step = [&](int64_t i, auto&& read, auto&& write) __attribute__((always_inline)) {
    lanes_t<T> values[Pass::kLists];
    for (int list = Pass::kFirstRead; list < Pass::kLists; ++list)
      values[list] = read(at[list] + i);
    Pass::apply(values, factor);
    for (int list = 0; list < Pass::kStored; ++list) write(at[list] + i, values[list]);
  };
  const auto load_whole = [](const T* from) __attribute__((always_inline)) { return load(from); };
  const auto store_whole = [](T* to, lanes_t<T> value)
                               __attribute__((always_inline)) { store(to, value); };
  int64_t i = 0;
  for (; i + 2 * kStep <= count; i += 2 * kStep) {
    step(i, load_whole, store_whole);
    step(i + kStep, load_whole, store_whole);
  }
  for (; i < count; i += kStep) {
    const int64_t left = count - i < kStep ? count - i : kStep;
    step(
        i, [&](const T* from) __attribute__((always_inline)) { return load_some(from, left); },
        [&](T* to, lanes_t<T> value)
            __attribute__((always_inline)) { store_some(to, value, left); });
  }
}

// The lanes of float vectors in double, in two halves: a product of two floats is exact there.
PFN_INLINE void add_products(FloatLanes x, FloatLanes y, DoubleLanes (&sums)[2]) {
  using HalfLanes = float __attribute__((vector_size(PFN_VECTOR_BYTES / 2)));
  HalfLanes xs[2], ys[2];
  __builtin_memcpy(xs, &x, sizeof(x));
  __builtin_memcpy(ys, &y, sizeof(y));
  for (int half = 0; half < 2; ++half) {
    sums[half] += __builtin_convertvector(xs[half], DoubleLanes) *
                  __builtin_convertvector(ys[half], DoubleLanes);
  }
}
PFN_INLINE void add_products(DoubleLanes x, DoubleLanes y, DoubleLanes (&sums)[2]) {
  sums[0] += x * y;
}

template <typename T>
double dot_stretch(const math::Segment& segment, int64_t offset, int64_t count) {
  constexpr int64_t kStep = kLanes<T>;
  const T* x = static_cast<const T*>(segment.at[0]) + offset;
  const T* y = static_cast<const T*>(segment.at[1]) + offset;
  DoubleLanes sums[2][2] = {};
  int64_t i = 0;
  for (; i + 2 * kStep <= count; i += 2 * kStep) {
    add_products(load(x + i), load(y + i), sums[0]);
    add_products(load(x + i + kStep), load(y + i + kStep), sums[1]);
  }
  for (; i < count; i += kStep) {
    const int64_t left = count - i < kStep ? count - i : kStep;
    add_products(load_some(x + i, left), load_some(y + i, left), sums[0]);
  }
  return sum_of_lanes((sums[0][0] + sums[0][1]) + (sums[1][0] + sums[1][1]));
}

}  // namespace

template <typename Pass, typename T>
void tensor_list_pass(Pass,
                      math::ValueType<T>,
                      const math::Segment* segments,
                      const int64_t* starts,
                      int64_t count,
                      math::acc_t<T> factor,
                      int64_t first_block,
                      int64_t last_block) {
  int64_t segment = segment_of(starts, count, first_block);
  for (int64_t block = first_block; block < last_block; ++block) {
    segment = for_each_stretch(segments, starts, count, block, segment,
                               [&](const math::Segment& here, int64_t offset, int64_t values)
                                   __attribute__((always_inline)) {
                                     pass_stretch<Pass, T>(here, offset, values, factor);
                                   });
  }
}

template <typename T>
void tensor_list_dot(math::ValueType<T>,
                     const math::Segment* segments,
                     const int64_t* starts,
                     int64_t count,
                     double* partial,
                     int64_t first_block,
                     int64_t last_block) {
  int64_t segment = segment_of(starts, count, first_block);
  for (int64_t block = first_block; block < last_block; ++block) {
    double sum = 0.0;
    segment = for_each_stretch(
        segments, starts, count, block, segment,
        [&](const math::Segment& here, int64_t offset, int64_t values)
            __attribute__((always_inline)) { sum += dot_stretch<T>(here, offset, values); });
    partial[block] = sum;
  }
}

#define PFN_INSTANTIATE_PASS(Pass, T)                                                          \
  template void tensor_list_pass<math::Pass, T>(math::Pass, math::ValueType<T>,                \
                                                const math::Segment*, const int64_t*, int64_t, \
                                                math::acc_t<T>, int64_t, int64_t);
#define PFN_INSTANTIATE(T)                                                                   \
  PFN_INSTANTIATE_PASS(AxpyPass, T)                                                          \
  PFN_INSTANTIATE_PASS(ScalePass, T)                                                         \
  PFN_INSTANTIATE_PASS(PerturbPass, T)                                                       \
  PFN_INSTANTIATE_PASS(DifferencePass, T)                                                    \
  PFN_INSTANTIATE_PASS(NeumannPass, T)                                                       \
  PFN_INSTANTIATE_PASS(CgSolvePass, T)                                                       \
  PFN_INSTANTIATE_PASS(CgDirectionPass, T)                                                   \
  template void tensor_list_dot<T>(math::ValueType<T>, const math::Segment*, const int64_t*, \
                                   int64_t, double*, int64_t, int64_t);
PFN_INSTANTIATE(double)
PFN_INSTANTIATE(float)
PFN_INSTANTIATE(math::Half)
PFN_INSTANTIATE(math::BFloat16)

}  // namespace pfn::cpu::PFN_ISA
