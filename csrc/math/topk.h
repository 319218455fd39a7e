// The k largest keys of a row in descending order, ties to the lower column. Columns must be
// offered in ascending order; a key of -inf is never taken.
#pragma once

#include <cstdint>

#include "math/macros.h"

namespace pfn::math {

// Puts `key` of `column` into the sorted registers best[k], index[k]; no branch depends on keys, so
// the same lines serve one row or a vector of rows. Returns the key that is left over: what fell
// off the end, or `key` itself. O(k).
template <typename L>
PFN_HD typename L::Value insert_sorted(typename L::Value key,
                                       typename L::Index column,
                                       int k,
                                       typename L::Value* best,  // [k]
                                       typename L::Index* index  // [k]
) {
  typename L::Value carried_key = key;
  typename L::Index carried_column = column;
  for (int r = 0; r < k; ++r) {
    // Always against the new key: what it pushes down stays ahead of its equals.
    const auto above = key > best[r];
    const auto best_r = best[r];
    const auto index_r = index[r];
    best[r] = above ? carried_key : best_r;
    index[r] = above ? carried_column : index_r;
    carried_key = above ? best_r : carried_key;
    carried_column = above ? index_r : carried_column;
  }
  return carried_key;
}

// Whether (key, column) ranks before (other_key, other_column).
template <typename T>
PFN_HD bool ranks_before(T key, int32_t column, T other_key, int32_t other_column) {
  return key > other_key || (key == other_key && column < other_column);
}

// A heap with the lowest rank on top, for k too large to shift a sorted list.
template <typename T>
struct TopHeap {
  T* keys;           // [k]
  int32_t* columns;  // [k]
  int64_t size;
};

template <typename T>
PFN_HD bool heap_lower(const TopHeap<T>& heap, int64_t a, int64_t b) {
  return ranks_before(heap.keys[b], heap.columns[b], heap.keys[a], heap.columns[a]);
}

template <typename T>
PFN_HD void heap_swap(TopHeap<T>& heap, int64_t a, int64_t b) {
  const T key = heap.keys[a];
  const int32_t column = heap.columns[a];
  heap.keys[a] = heap.keys[b];
  heap.columns[a] = heap.columns[b];
  heap.keys[b] = key;
  heap.columns[b] = column;
}

template <typename T>
PFN_HD void heap_sink(TopHeap<T>& heap, int64_t node, int64_t end) {
  for (int64_t child = 2 * node + 1; child < end; child = 2 * node + 1) {
    if (child + 1 < end && heap_lower(heap, child + 1, child)) {
      ++child;
    }
    if (!heap_lower(heap, child, node)) {
      return;
    }
    heap_swap(heap, node, child);
    node = child;
  }
}

// O(log k).
template <typename T>
PFN_HD void heap_offer(TopHeap<T>& heap, T key, int32_t column, int64_t k) {
  if (heap.size < k) {
    int64_t node = heap.size++;
    heap.keys[node] = key;
    heap.columns[node] = column;
    while (node > 0 && heap_lower(heap, node, (node - 1) / 2)) {
      heap_swap(heap, node, (node - 1) / 2);
      node = (node - 1) / 2;
    }
  } else if (ranks_before(key, column, heap.keys[0], heap.columns[0])) {
    heap.keys[0] = key;
    heap.columns[0] = column;
    heap_sink(heap, 0, heap.size);
  }
}

// Leaves the list in descending order; O(k log k).
template <typename T>
PFN_HD void heap_sort(TopHeap<T>& heap) {
  for (int64_t end = heap.size - 1; end > 0; --end) {
    heap_swap(heap, 0, end);
    heap_sink(heap, 0, end);
  }
}

}  // namespace pfn::math
