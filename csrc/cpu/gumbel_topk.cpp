#include "cpu/gumbel_topk.h"

#include <cstdint>

#include "cpu/gumbel_topk_lanes.h"
#include "math/softmax.h"
#include "math/topk.h"

namespace pfn::cpu::PFN_ISA {
namespace {

// Smaller than any key that is taken.
template <typename Value>
PFN_INLINE Value masked() {
  return Value{} - __builtin_huge_valf();
}

// kFloats rows at once: lane = row, so that no step looks across lanes and one call of Philox fills
// four vectors of keys. kTop > 0 fixes k and keeps the sorted list in registers.
template <int kTop>
bool sample_lanes(const GumbelTopkArgs<float>& args, int64_t first_row, int64_t rows) {
  const int columns = static_cast<int>(args.columns);
  const int k = kTop > 0 ? kTop : static_cast<int>(args.k);
  if (columns < 1 || k < 1) {
    __builtin_unreachable();
  }
  FloatLanes keys[kMaxLaneColumns];
  FloatLanes best[kTop > 0 ? kTop : kMaxLaneColumns];
  IndexLanes index[kTop > 0 ? kTop : kMaxLaneColumns];

  float* turned = reinterpret_cast<float*>(keys);
  const float* logits = args.logits + first_row * columns;
  for (int lane = 0; lane < rows; ++lane) {
    for (int j = 0; j < columns; ++j) {
      turned[j * kFloats + lane] = logits[lane * columns + j];
    }
  }
  for (int lane = static_cast<int>(rows); lane < kFloats; ++lane) {
    for (int j = 0; j < columns; ++j) {
      turned[j * kFloats + lane] = 0.0f;
    }
  }
  if (args.noise) {
    const float* noise = args.noise + first_row * columns;
    for (int lane = 0; lane < rows; ++lane) {
      for (int j = 0; j < columns; ++j) {
        turned[j * kFloats + lane] += noise[lane * columns + j];
      }
    }
  }

  for (int r = 0; r < k; ++r) {
    best[r] = masked<FloatLanes>();
    index[r] = IndexLanes{} - 1;
  }
  IndexLanes usable = IndexLanes{} - 1;
  for (int j = 0; j < columns; j += 4) {
    FloatLanes drawn[4];
    if (!args.noise) {
      WordLanes words[4];
      words_of_rows(args.seed, math::philox_block(j / 4, 0), static_cast<uint32_t>(first_row),
                    words);
      gumbel_together<4>(words, drawn);
    }
    for (int i = 0; i < 4 && j + i < columns; ++i) {
      FloatLanes key = keys[j + i];
      if (!args.noise) {
        key += drawn[i];
        keys[j + i] = key;
      }
      usable &= key < __builtin_huge_valf();
      math::insert_sorted<Lanes>(key, IndexLanes{} + (j + i), k, best, index);
    }
  }
  usable &= best[k - 1] > -__builtin_huge_valf();

  const FloatLanes reference = best[args.conditional ? k - 1 : 0];
  FloatLanes sum{};
  for (int j = 0; j < columns; ++j) {
    sum += math::relaxed_term<Lanes>(keys[j], IndexLanes{} + j, reference, best[k - 1],
                                     index[k - 1], args.inv_tau, args.conditional);
  }
  FloatLanes weights[kTop > 0 ? kTop : kMaxLaneColumns];
  math::relaxed_weights<Lanes>(best, sum, k, args.inv_tau, args.conditional, weights);

  for (int r = 0; r < k; ++r) {
    for (int lane = 0; lane < rows; ++lane) {
      args.weights[(first_row + lane) * k + r] = weights[r][lane];
      args.indices[(first_row + lane) * k + r] = index[r][lane];
    }
  }
  if (args.keys) {
    float* out = args.keys + first_row * columns;
    for (int lane = 0; lane < rows; ++lane) {
      for (int j = 0; j < columns; ++j) {
        out[lane * columns + j] = turned[j * kFloats + lane];
      }
    }
  }
  return every_lane(usable);
}

// The list of the k best of one row: sorted while k is small, a heap above.
template <typename T>
struct Best {
  T* keys;         // [k]
  int32_t* index;  // [k]
  int64_t k;
  int64_t size;  // of the heap
  T threshold;

  void clear() {
    size = 0;
    threshold = masked<T>();
    for (int64_t r = 0; r < k; ++r) {
      keys[r] = threshold;
      index[r] = -1;
    }
  }
  void offer(T key, int32_t column) {
    if (k <= kMaxSorted) {
      math::insert_sorted<math::Scalar<T>>(key, column, static_cast<int>(k), keys, index);
      threshold = keys[k - 1];
      return;
    }
    math::TopHeap<T> heap{keys, index, size};
    math::heap_offer(heap, key, column, k);
    size = heap.size;
    threshold = size == k ? keys[0] : threshold;
  }
  void finish() {
    if (k > kMaxSorted) {
      math::TopHeap<T> heap{keys, index, size};
      math::heap_sort(heap);
    }
  }
};

// Keys of one row into `keys`, padded with -inf to whole chunks, and into `maxima` the largest of
// each lane and vector of the chunks. Returns whether all were below +inf.
template <typename T, typename L>
bool sample_keys(const GumbelTopkArgs<T>& args,
                 int64_t row,
                 T* keys,
                 typename L::Value* maxima /* [kVectors] */) {
  using Value = typename L::Value;
  constexpr int64_t kChunk = L::kVectors * L::kWidth;
  const T* logits = args.logits + row * args.columns;
  const T* noise = args.noise ? args.noise + row * args.columns : nullptr;
  bool usable = true;
  for (int64_t j = 0; j < args.columns; j += kChunk) {
    const int64_t count = args.columns - j < kChunk ? args.columns - j : kChunk;
    Value chunk[L::kVectors];
    T wide[kChunk];
    if (count == kChunk) {
      for (int v = 0; v < L::kVectors; ++v) {
        chunk[v] = L::load_row(logits + j + v * L::kWidth);
      }
    } else {
      for (int64_t i = 0; i < kChunk; ++i) {
        wide[i] = i < count ? logits[j + i] : masked<T>();
      }
      __builtin_memcpy(chunk, wide, sizeof(chunk));
    }
    if (noise) {
      for (int64_t i = 0; i < kChunk; ++i) {
        wide[i] = i < count ? noise[j + i] : T{};
      }
      Value added[L::kVectors];
      __builtin_memcpy(added, wide, sizeof(added));
      for (int v = 0; v < L::kVectors; ++v) {
        chunk[v] += added[v];
      }
    } else {
      typename L::Word words[L::kVectors];
      L::words(args.seed, math::philox_block(j / 4, 0), static_cast<uint32_t>(row), words);
      Value drawn[L::kVectors];
      L::gumbel(words, drawn);
      for (int v = 0; v < L::kVectors; ++v) {
        chunk[v] += drawn[v];
      }
    }
    __builtin_memcpy(keys + j, chunk, sizeof(chunk));
    for (int v = 0; v < L::kVectors; ++v) {
      usable &= every_lane(chunk[v] < __builtin_huge_valf());
      maxima[v] = chunk[v] > maxima[v] ? chunk[v] : maxima[v];
    }
  }
  return usable;
}

// The k-th largest of the maxima, which at least k keys of the row reach; -inf where k are not
// there.
template <typename T, typename L>
T threshold_of(const typename L::Value* maxima, int64_t k) {
  using Index = typename L::Index;
  constexpr int kMaxima = L::kVectors * L::kWidth;
  T values[kMaxima];
  __builtin_memcpy(values, maxima, sizeof(values));
  // How many of them reach each: no branch, where a sort would mispredict most of its own.
  Index reached[L::kVectors] = {};
  for (const T value : values) {
    for (int v = 0; v < L::kVectors; ++v) {
      reached[v] += value >= maxima[v] ? Index{} + 1 : Index{};
    }
  }
  int32_t counts[kMaxima];
  __builtin_memcpy(counts, reached, sizeof(counts));
  T threshold = masked<T>();
  for (int i = 0; i < kMaxima; ++i) {
    threshold = counts[i] >= k && values[i] > threshold ? values[i] : threshold;
  }
  return threshold;
}

// Offers to `best` every key of the row that reaches `threshold`, in ascending order of columns.
template <typename T, typename L>
void select_keys(const T* keys, int64_t padded, T threshold, Best<T>& best) {
  for (int64_t j = 0; j < padded; j += L::kWidth) {
    typename L::Value vector;
    __builtin_memcpy(&vector, keys + j, sizeof(vector));
    if (any_lane(vector >= threshold)) {
      for (int lane = 0; lane < L::kWidth; ++lane) {
        if (keys[j + lane] >= threshold && keys[j + lane] > best.threshold) {
          best.offer(keys[j + lane], static_cast<int32_t>(j) + lane);
        }
      }
    }
  }
  best.finish();
}

template <typename T>
bool sample_row(const GumbelTopkArgs<T>& args, T* scratch, int64_t row) {
  using L = row_lanes_t<T>;
  using Value = typename L::Value;
  constexpr int64_t kChunk = L::kVectors * L::kWidth;
  const int64_t k = args.k;
  const int64_t padded = (args.columns + kChunk - 1) / kChunk * kChunk;
  T* keys = scratch;
  T* ranks = keys + padded;
  Best<T> best{ranks, reinterpret_cast<int32_t*>(ranks + k), k, 0, T{}};
  best.clear();
  Value maxima[L::kVectors];
  for (Value& maximum : maxima) {
    maximum = masked<Value>();
  }
  if (!sample_keys<T, L>(args, row, keys, maxima)) {
    return false;
  }
  select_keys<T, L>(keys, padded, threshold_of<T, L>(maxima, k), best);
  if (!(best.keys[k - 1] > masked<T>()) || best.index[k - 1] < 0) {
    return false;
  }

  const T reference = best.keys[args.conditional ? k - 1 : 0];
  double sum = 0.0;
  for (int64_t block = 0; block < padded; block += kSumBlock) {
    const int64_t end = block + kSumBlock < padded ? block + kSumBlock : padded;
    Value sums{};
    for (int64_t j = block; j < end; j += kChunk) {
      Value key[L::kVectors], term[L::kVectors];
      __builtin_memcpy(key, keys + j, sizeof(key));
      for (int v = 0; v < L::kVectors; ++v) {
        term[v] = (key[v] - reference) * args.inv_tau;
      }
      L::exp_all(term);
      for (int v = 0; v < L::kVectors; ++v) {
        if (args.conditional) {
          const auto columns = columns_from(static_cast<int32_t>(j) + v * L::kWidth, key[v]);
          const auto kept = math::is_kept<L>(key[v], columns, Value{} + best.keys[k - 1],
                                             typename L::Index{} + best.index[k - 1]);
          term[v] = kept ? Value{} : term[v];
        }
        sums += term[v];
      }
    }
    sum += static_cast<double>(sum_lanes(sums));
  }
  math::relaxed_weights<math::Scalar<T>>(best.keys, static_cast<T>(sum), k, args.inv_tau,
                                         args.conditional, args.weights + row * k);
  for (int64_t r = 0; r < k; ++r) {
    args.indices[row * k + r] = best.index[r];
  }
  if (args.keys) {
    __builtin_memcpy(args.keys + row * args.columns, keys, args.columns * sizeof(T));
  }
  return true;
}

bool sample_lanes_of(const GumbelTopkArgs<float>& args, int64_t first_row, int64_t last_row) {
  bool usable = true;
  for (int64_t row = first_row; row < last_row; row += kFloats) {
    const int64_t rows = last_row - row < kFloats ? last_row - row : kFloats;
    switch (args.k) {
      case 1:
        usable &= sample_lanes<1>(args, row, rows);
        break;
      case 2:
        usable &= sample_lanes<2>(args, row, rows);
        break;
      case 4:
        usable &= sample_lanes<4>(args, row, rows);
        break;
      default:
        usable &= sample_lanes<0>(args, row, rows);
    }
  }
  return usable;
}
}  // namespace

template <typename T>
bool gumbel_topk(const GumbelTopkArgs<T>& args, T* scratch, int64_t first_row, int64_t last_row) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (args.columns <= kMaxLaneColumns) {
      return sample_lanes_of(args, first_row, last_row);
    }
  }
  bool usable = true;
  for (int64_t row = first_row; row < last_row; ++row) {
    usable &= sample_row(args, scratch, row);
  }
  return usable;
}

template bool gumbel_topk(const GumbelTopkArgs<double>&, double*, int64_t, int64_t);
template bool gumbel_topk(const GumbelTopkArgs<float>&, float*, int64_t, int64_t);

void philox_uniform(const math::PhiloxSeed& seed,
                    int stream,
                    int64_t columns,
                    float* out,
                    int64_t first_row,
                    int64_t last_row) {
  constexpr int64_t kChunk = Lanes::kVectors * Lanes::kWidth;
  for (int64_t row = first_row; row < last_row; ++row) {
    float* line = out + (row - first_row) * columns;
    for (int64_t j = 0; j < columns; j += kChunk) {
      WordLanes words[Lanes::kVectors];
      words_of_columns(seed, math::philox_block(j / 4, stream), static_cast<uint32_t>(row), words);
      FloatLanes u[Lanes::kVectors];
      for (int v = 0; v < Lanes::kVectors; ++v) {
        u[v] = math::open_uniform<Lanes>(words[v]);
      }
      const int64_t count = columns - j < kChunk ? columns - j : kChunk;
      __builtin_memcpy(line + j, u, static_cast<size_t>(count) * sizeof(float));
    }
  }
}

}  // namespace pfn::cpu::PFN_ISA
