// The module `_host`: the math/ headers and the launch geometry on NumPy arrays, for the tests.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/gumbel_topk_lanes.h"
#include "cuda/gumbel_geometry.h"
#include "cuda/norm_geometry.h"
#include "math/gumbel.h"
#include "math/philox.h"
#include "math/sample_row.h"
#include "math/softmax.h"
#include "math/topk.h"

namespace py = pybind11;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

using math_float = pfn::math::Scalar<float>;

Array<uint32_t> philox(Array<uint32_t> counter, Array<uint32_t> key, int rounds) {
  if (counter.size() != 4 || key.size() != 2) {
    throw std::invalid_argument("philox: counter must hold 4 words and key 2");
  }
  uint32_t words[4];
  for (int i = 0; i < 4; ++i) {
    words[i] = counter.data()[i];
  }
  const uint32_t k0 = key.data()[0], k1 = key.data()[1];
  if (rounds == 7) {
    pfn::math::philox4x32<7>(words, k0, k1);
  } else {
    pfn::math::philox4x32(words, k0, k1);
  }
  return Array<uint32_t>(4, words);
}

template <typename Function>
Array<float> map(const Array<float>& x, const Function& function) {
  Array<float> y(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    y.mutable_data()[i] = function(x.data()[i]);
  }
  return y;
}

template <typename Function>
Array<float> map_words(const Array<uint32_t>& x, const Function& function) {
  Array<float> y(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    y.mutable_data()[i] = function(x.data()[i]);
  }
  return y;
}

// A vector function through one lane; the other lanes hold a different number, which must not show.
template <typename Function>
Array<float> map_lanes(const Array<float>& x, const Function& function) {
  return map(x, [&](float value) {
    pfn::cpu::plain::FloatLanes lanes = pfn::cpu::plain::FloatLanes{} + 1.5f;
    lanes[2] = value;
    return static_cast<float>(function(lanes)[2]);
  });
}

Array<uint32_t> lane_words(int64_t seed, int64_t offset, uint32_t row, uint32_t block, bool along) {
  using pfn::cpu::plain::WordLanes;
  const pfn::math::PhiloxSeed words = pfn::math::philox_seed(seed, offset);
  std::vector<uint32_t> out;
  const auto append = [&](const WordLanes& lanes) {
    for (int i = 0; i < pfn::cpu::plain::kFloats; ++i) {
      out.push_back(lanes[i]);
    }
  };
  if (along) {
    WordLanes lanes[pfn::cpu::plain::Lanes::kVectors];
    pfn::cpu::plain::words_of_columns(words, block, row, lanes);
    for (const WordLanes& columns : lanes) {
      append(columns);
    }
  } else {
    WordLanes lanes[4];
    pfn::cpu::plain::words_of_rows(words, block, row, lanes);
    for (const WordLanes& column : lanes) {
      append(column);
    }
  }
  return Array<uint32_t>(static_cast<py::ssize_t>(out.size()), out.data());
}

py::tuple insertion(const Array<double>& keys, int k) {
  std::vector<double> best(static_cast<size_t>(k), -std::numeric_limits<double>::infinity());
  std::vector<int32_t> index(static_cast<size_t>(k), -1);
  Array<double> left(keys.size());
  for (py::ssize_t j = 0; j < keys.size(); ++j) {
    left.mutable_data()[j] = pfn::math::insert_sorted<pfn::math::Scalar<double>>(
        keys.data()[j], static_cast<int32_t>(j), k, best.data(), index.data());
  }
  return py::make_tuple(Array<double>(k, best.data()), Array<int32_t>(k, index.data()), left);
}

py::tuple heap(const Array<double>& keys, int64_t k) {
  std::vector<double> best(static_cast<size_t>(k));
  std::vector<int32_t> index(static_cast<size_t>(k));
  pfn::math::TopHeap<double> heap{best.data(), index.data(), 0};
  for (py::ssize_t j = 0; j < keys.size(); ++j) {
    pfn::math::heap_offer(heap, keys.data()[j], static_cast<int32_t>(j), k);
  }
  pfn::math::heap_sort(heap);
  return py::make_tuple(Array<double>(heap.size, best.data()),
                        Array<int32_t>(heap.size, index.data()));
}

template <typename T, int kTop>
bool sample(const Array<T>& logits,
            const pfn::math::PhiloxSeed& seed,
            uint32_t row,
            double tau,
            bool conditional,
            T* weights,
            int64_t* indices,
            T* keys) {
  return pfn::math::sample_row<T, kTop>(logits.data(), nullptr, logits.size(), seed, row,
                                        pfn::math::inverse_tau(tau, T{}), conditional, weights,
                                        indices, keys);
}

// One row as a CUDA thread samples it.
template <typename T>
py::tuple sample_row(const Array<T>& logits,
                     int k,
                     int64_t seed,
                     int64_t offset,
                     uint32_t row,
                     double tau,
                     bool conditional) {
  const pfn::math::PhiloxSeed words = pfn::math::philox_seed(seed, offset);
  Array<T> weights(k), keys(logits.size());
  Array<int64_t> indices(k);
  T* w = weights.mutable_data();
  int64_t* i = indices.mutable_data();
  T* kept = keys.mutable_data();
  bool usable = false;
  switch (k) {
    case 1:
      usable = sample<T, 1>(logits, words, row, tau, conditional, w, i, kept);
      break;
    case 2:
      usable = sample<T, 2>(logits, words, row, tau, conditional, w, i, kept);
      break;
    case 3:
      usable = sample<T, 3>(logits, words, row, tau, conditional, w, i, kept);
      break;
    case 4:
      usable = sample<T, 4>(logits, words, row, tau, conditional, w, i, kept);
      break;
    default:
      throw std::invalid_argument("sample_row: k must be between 1 and 4");
  }
  return py::make_tuple(usable, weights, indices, keys);
}

// The kernels of norm_mixed_sum over one tensor: first element of each vector [blocks, threads,
// steps], or -1; the entry of the partial sums that its block, or its column, leaves; and for each
// channel the places of its entries and how many values each covers.
py::dict norm_shares(int64_t outer, int64_t channels, int64_t inner, int width, int64_t steps) {
  namespace cuda = pfn::cuda;
  const cuda::NormTiles tiles = cuda::norm_tiles(outer, channels, inner, width, steps);
  const int64_t blocks = cuda::norm_blocks(tiles), items = cuda::norm_items(tiles);
  Array<int64_t> offsets({blocks, int64_t{cuda::kThreads}, int64_t{tiles.steps}});
  Array<int64_t> entries(blocks), places({channels, items}), values(items);
  int64_t* offset = offsets.mutable_data();
  for (int64_t block = 0; block < blocks; ++block) {
    const cuda::NormPlace place = cuda::norm_place(tiles, block);
    entries.mutable_data()[block] =
        place.piece * cuda::norm_entries(tiles) + (tiles.runs ? place.tile : 0);
    for (int thread = 0; thread < cuda::kThreads; ++thread) {
      const cuda::NormThread mine = cuda::norm_thread(tiles, place, thread);
      for (int step = 0; step < tiles.steps; ++step) {
        *offset++ = cuda::norm_offset(tiles, place, mine, step);
      }
    }
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t item = 0; item < items; ++item) {
      places.mutable_at(channel, item) = cuda::norm_item(tiles, channel, item);
      values.mutable_at(item) = cuda::norm_item_values(tiles, item);
    }
  }
  py::dict shares;
  shares["runs"] = tiles.runs;
  shares["lanes"] = tiles.lanes;
  shares["rows"] = tiles.rows;
  shares["offsets"] = offsets;
  shares["entries"] = entries;
  shares["entries_of_piece"] = cuda::norm_entries(tiles);
  shares["places"] = places;
  shares["values"] = values;
  return shares;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  namespace cuda = pfn::cuda;
  m.def("philox", &philox, py::arg("counter"), py::arg("key"), py::arg("rounds") = 10);
  m.def("lane_words", &lane_words, py::arg("seed"), py::arg("offset"), py::arg("row"),
        py::arg("block"), py::arg("along"));
  m.def("open_uniform", [](const Array<uint32_t>& words) {
    return map_words(words, [](uint32_t w) { return pfn::math::open_uniform<math_float>(w); });
  });
  m.def("gumbel", [](const Array<uint32_t>& words) {
    return map_words(words, [](uint32_t w) { return pfn::math::gumbel<math_float>(w); });
  });
  m.def("log_lanes", [](const Array<float>& x) {
    return map_lanes(x, [](auto lanes) {
      pfn::cpu::plain::log_together<1>(&lanes);
      return lanes;
    });
  });
  m.def("exp_lanes", [](const Array<float>& x) {
    return map_lanes(x, [](auto lanes) { return pfn::cpu::plain::exp_lanes(lanes); });
  });
  m.def("insertion", &insertion);
  m.def("heap", &heap);
  m.def("sample_row32", &sample_row<float>);
  m.def("sample_row64", &sample_row<double>);
  m.def("inverse_tau", [](double tau) { return pfn::math::inverse_tau(tau, float{}); });
  m.def("samples_in_registers", &cuda::samples_in_registers);
  m.def("threads_per_row", &cuda::threads_per_row);
  m.def("counters_per_row", &cuda::counters_per_row);
  m.def("first_item", &cuda::first_item);
  m.def("blocks_for", &cuda::blocks_for);
  m.def("norm_shares", &norm_shares);
  m.def("norm_takes_width", &cuda::norm_takes_width);
  m.def("norm_adding_steps", &cuda::norm_adding_steps);
  m.attr("max_grid") = cuda::kMaxGridX;
}
