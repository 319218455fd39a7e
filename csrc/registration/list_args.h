// Lists of tensors as an operator gets them, brought to segments of memory: each list either tensor
// by tensor, or as one buffer in which the tensors of a layout lie.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "math/tensor_list.h"
#include "registration/tensor_args.h"

namespace pfn {

// Size and strides of a tensor, and its place in a buffer.
struct ListEntry {
  const int64_t* sizes;
  const int64_t* strides;
  int64_t dim;
  int64_t numel;
  int64_t offset;
};

// Whether its elements fill a stretch of memory, each place once.
inline bool is_dense(const ListEntry& entry) {
  int64_t expected = 1;
  int64_t dim = entry.dim;
  while (dim > 0 && (entry.sizes[dim - 1] == 1 || entry.strides[dim - 1] == expected)) {
    expected *= entry.sizes[--dim];
  }
  if (dim == 0 || entry.numel == 0) return true;
  // Not in the order of the dimensions: look for the next stride among all.
  for (expected = 1; expected < entry.numel;) {
    int64_t size = 0;
    for (int64_t d = 0; d < entry.dim; ++d) {
      if (entry.sizes[d] > 1 && entry.strides[d] == expected) size = entry.sizes[d];
    }
    if (size == 0) return false;
    expected *= size;
  }
  return true;
}

// A layout as Python writes it: for each tensor its offset, its rank, sizes, strides.
inline std::vector<ListEntry> read_layout(const char* op, const Tensor& layout) {
  const int64_t* at = const_data<int64_t>(op, "layout", layout);
  check(layout.is_contiguous() && layout.get_device_index() < 0, op,
        ": layout must be contiguous and on the CPU");
  const int64_t* end = at + layout.numel();
  std::vector<ListEntry> entries;
  while (at != end) {
    check(end - at >= 2 && at[1] >= 0 && at[1] <= (end - at - 2) / 2, op, ": layout ends early");
    ListEntry entry{at + 2, at + 2 + at[1], at[1], 1, at[0]};
    for (int64_t d = 0; d < entry.dim; ++d) entry.numel *= entry.sizes[d];
    check(entry.offset >= 0 && entry.numel >= 0 && is_dense(entry), op,
          ": layout must be of dense tensors");
    entries.push_back(entry);
    at = entry.strides + entry.dim;
  }
  return entries;
}

// A list as the dispatcher hands it over. A Tensor for each would take as long again to make.
using Handles = std::vector<AtenTensorHandle>;
struct List {
  const char* name;
  const Handles* tensors;
};

// Lets go of the tensors of lists in the end.
class Held {
 public:
  explicit Held(std::initializer_list<List> lists) : lists_(lists) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    for (const List& list : lists_) {
      for (AtenTensorHandle tensor : *list.tensors) aoti_torch_delete_tensor_object(tensor);
    }
  }

  size_t size() const { return lists_.size(); }
  const List& operator[](size_t list) const { return lists_[list]; }

 private:
  const std::vector<List> lists_;
};

inline Tensor share(AtenTensorHandle tensor) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor, &handle));
  return Tensor(handle);
}

inline ListEntry entry_of(AtenTensorHandle tensor) {
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  ListEntry entry{sizes, strides, dim, 1, 0};
  for (int64_t d = 0; d < dim; ++d) entry.numel *= sizes[d];
  return entry;
}

class TensorLists {
 public:
  // The first `written` of the lists are written to. Bit k of `flats` says that list k is one
  // buffer. With `merges`, neighbours in memory become one segment wherever they are neighbours in
  // all lists; without, only in buffers: where allocations happen to lie must not show in a sum.
  TensorLists(const char* op,
              std::initializer_list<List> lists,  // let go of with this
              int written,
              const std::optional<Tensor>& layout,
              int64_t flats,
              bool merges)
      : op_(op),
        lists_(lists),
        written_(written),
        flats_(flats),
        merges_(merges || flats == (int64_t{1} << lists.size()) - 1),
        first_(share(first_tensor())) {
    code_ = dtype_code(first_);
    device_ = first_.get_device_index();
    dispatch_floating(op, lists_[0].name, first_,
                      [&](auto tag) { bytes_ = sizeof(typename decltype(tag)::type); });
    if (layout.has_value()) layout_ = read_layout(op, *layout);
    check(flats == 0 || layout.has_value(), op, ": a buffer needs a layout");
    check_lengths();
    segments_.reserve(static_cast<size_t>(count_));
    for (int64_t i = 0; i < count_; ++i) append(i);
    refuse_overlaps();
  }

  const Tensor& first() const { return first_; }
  int64_t value_bytes() const { return bytes_; }
  const std::vector<math::Segment>& segments() const { return segments_; }

  // The same for two of the lists.
  std::vector<math::Segment> pick(const std::array<size_t, 2>& lists) const {
    std::vector<math::Segment> picked = segments_;
    for (math::Segment& segment : picked) {
      const math::Segment whole = segment;
      for (size_t k = 0; k < lists.size(); ++k) segment.at[k] = whole.at[lists[k]];
    }
    return picked;
  }

  // Puts what was written to a copy where it belongs.
  void write_back() {
    for (auto& [place, copy] : copies_) torch::stable::copy_(place, copy);
  }

 private:
  bool is_flat(size_t list) const { return (flats_ >> list & 1) != 0; }
  int num_lists() const { return static_cast<int>(lists_.size()); }

  AtenTensorHandle first_tensor() const {
    check(!lists_[0].tensors->empty(), op_, ": ", lists_[0].name,
          " must hold at least one tensor, got 0");
    return (*lists_[0].tensors)[0];
  }
  AtenTensorHandle tensor(size_t list, int64_t i) const {
    return (*lists_[list].tensors)[static_cast<size_t>(i)];
  }

  void check_lengths() {
    count_ = layout_.empty() && flats_ == 0 ? static_cast<int64_t>(lists_[0].tensors->size())
                                            : static_cast<int64_t>(layout_.size());
    for (size_t list = 0; list < lists_.size(); ++list) {
      const char* name = lists_[list].name;
      const Handles& tensors = *lists_[list].tensors;
      if (!is_flat(list)) {
        check(static_cast<int64_t>(tensors.size()) == count_, op_, ": ", name,
              " must hold as many tensors as the other lists");
        continue;
      }
      check(tensors.size() == 1, op_, ": ", name, " must be one buffer");
      check_kind(list, tensors[0]);
      const Tensor buffer = share(tensors[0]);
      check(buffer.is_contiguous(), op_, ": ", name, " must be contiguous");
      const int64_t numel = buffer.numel();
      for (const ListEntry& entry : layout_) {
        check(entry.numel <= numel - entry.offset, op_, ": ", name, " is smaller than its layout");
      }
      buffers_[list] = data(list, tensors[0]);
    }
  }

  void check_kind(size_t list, AtenTensorHandle tensor) const {
    int32_t code = 0, device = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &code));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &device));
    check(code == code_, op_, ": ", lists_[list].name, " must be of one dtype");
    check(device == device_, op_, ": ", lists_[list].name, " must be on one device");
  }

  // Tensor i of every list.
  void append(int64_t i) {
    std::optional<Tensor> model;  // a dense tensor, where the first is not
    const ListEntry first = layout_.empty() ? entry_of(tensor(0, i)) : ListEntry{};
    ListEntry entry = layout_.empty() ? first : layout_[static_cast<size_t>(i)];
    if (layout_.empty() && !is_dense(first)) {
      model = torch::stable::new_empty(share(tensor(0, i)), {first.sizes, first.sizes + first.dim});
      entry = entry_of(model->get());
    }
    math::Segment segment{{}, entry.numel};
    for (size_t list = 0; list < lists_.size(); ++list) {
      if (is_flat(list)) {
        segment.at[list] = static_cast<char*>(buffers_[list]) + entry.offset * bytes_;
      } else {
        const bool is_known = list == 0 && layout_.empty();
        const ListEntry mine = is_known ? first : entry_of(tensor(list, i));
        segment.at[list] = place_of(list, tensor(list, i), mine, entry);
      }
    }
    if (entry.numel == 0) return;
    if (merges_ && !segments_.empty() && follows(segments_.back(), segment)) {
      segments_.back().numel += segment.numel;
    } else {
      segments_.push_back(segment);
    }
  }

  bool follows(const math::Segment& before, const math::Segment& segment) const {
    for (int list = 0; list < num_lists(); ++list) {
      if (static_cast<char*>(before.at[list]) + before.numel * bytes_ != segment.at[list]) {
        return false;
      }
    }
    return true;
  }

  void* data(size_t list, AtenTensorHandle tensor) const {
    void* memory = nullptr;
    if (static_cast<int>(list) < written_) {
      STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor, &memory));
      return memory;
    }
    const void* read = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &read));
    return const_cast<void*>(read);
  }

  // Memory of the tensor, which lies as `mine` says, where that is as `entry` says; else that of a
  // copy.
  void* place_of(size_t list,
                 AtenTensorHandle tensor,
                 const ListEntry& mine,
                 const ListEntry& entry) {
    check_kind(list, tensor);
    check(mine.dim == entry.dim && std::equal(mine.sizes, mine.sizes + mine.dim, entry.sizes), op_,
          ": ", lists_[list].name, " must have the shapes of the other lists");
    if (lies_like(mine, entry)) return data(list, tensor);
    if (static_cast<int>(list) < written_) refuse_expanded(list, mine);
    const bool is_written = static_cast<int>(list) < written_;
    // Of a tensor with gaps only the first element is known to be its own.
    const int64_t known = is_dense(mine) ? mine.numel
                          : is_written   ? std::min<int64_t>(mine.numel, 1)
                                         : 0;
    add_span(data(list, tensor), known, segments_.size(), is_written);
    Tensor copy = copy_like(share(tensor), entry);
    void* memory = copy.mutable_data_ptr();
    if (is_written) {
      copies_.emplace_back(share(tensor), std::move(copy));
    } else {
      kept_.push_back(std::move(copy));
    }
    return memory;
  }

  static bool lies_like(const ListEntry& mine, const ListEntry& entry) {
    for (int64_t d = 0; d < mine.dim; ++d) {
      if (mine.sizes[d] > 1 && mine.strides[d] != entry.strides[d]) return false;
    }
    return true;
  }

  void refuse_expanded(size_t list, const ListEntry& entry) const {
    for (int64_t d = 0; d < entry.dim; ++d) {
      check(entry.sizes[d] < 2 || entry.strides[d] != 0, op_, ": ", lists_[list].name,
            " must not hold one element at two places");
    }
  }

  Tensor copy_like(const Tensor& tensor, const ListEntry& entry) const {
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        entry.dim, entry.sizes, entry.strides, code_, device_type(tensor), device_, &handle));
    Tensor copy(handle);
    torch::stable::copy_(copy, tensor);
    return copy;
  }

  static int32_t device_type(const Tensor& tensor) {
    int32_t type = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type;
  }

  // Memory that a list has at a place.
  struct Span {
    const char* begin;
    const char* end;
    size_t segment;
    bool is_written;
  };

  void add_span(const void* memory, int64_t numel, size_t segment, bool is_written) {
    const char* begin = static_cast<const char*>(memory);
    if (numel > 0) spans_.push_back({begin, begin + numel * bytes_, segment, is_written});
  }

  // What is written must not share memory with anything but the same place of a list that is read.
  void refuse_overlaps() {
    spans_.reserve(spans_.size() + segments_.size() * lists_.size());
    for (size_t i = 0; i < segments_.size(); ++i) {
      for (int list = 0; list < num_lists(); ++list) {
        add_span(segments_[i].at[list], segments_[i].numel, i, list < written_);
      }
    }
    const auto is_before = [](const Span& a, const Span& b) { return a.begin < b.begin; };
    if (!std::is_sorted(spans_.begin(), spans_.end(), is_before)) {
      std::sort(spans_.begin(), spans_.end(), is_before);
    }
    // Spans that reach into each other, by way of others perhaps: one of them may be written if all
    // are the same place.
    const Span* place = nullptr;
    const char* end = nullptr;
    bool is_one_place = true;
    int writers = 0;
    for (const Span& span : spans_) {
      if (place == nullptr || span.begin >= end) {
        place = &span;
        end = span.end;
        is_one_place = true;
        writers = 0;
      }
      is_one_place = is_one_place && span.begin == place->begin && span.end == place->end &&
                     span.segment == place->segment;
      end = std::max(end, span.end);
      writers += span.is_written ? 1 : 0;
      check(writers == 0 || (is_one_place && writers == 1), op_,
            ": what is written must not share memory");
    }
  }

  const char* op_;
  Held lists_;
  int written_;
  int64_t flats_;
  bool merges_;
  Tensor first_;
  int32_t code_ = 0;
  int32_t device_ = 0;
  int64_t bytes_ = 0;
  int64_t count_ = 0;
  void* buffers_[math::kMaxLists] = {};
  std::vector<ListEntry> layout_;
  std::vector<math::Segment> segments_;
  std::vector<std::pair<Tensor, Tensor>> copies_;
  std::vector<Span> spans_;
  std::vector<Tensor> kept_;
};

// The factor of a pass, whose scalar may be a tensor with one number where the lists are.
inline math::ScalarFactor scalar_factor(const char* op,
                                        const Tensor& first,
                                        double number,
                                        const std::optional<Tensor>& scalar,
                                        bool inverted = false) {
  math::ScalarFactor factor{number, nullptr, nullptr, inverted};
  if (!scalar.has_value()) return factor;
  check(scalar->numel() == 1, op, ": a scalar must hold one number");
  check(scalar->get_device_index() == first.get_device_index(), op,
        ": a scalar must be on the device of the lists");
  if (dtype_code(*scalar) == code_of(TypeTag<double>{})) {
    factor.wide = const_data<double>(op, "scalar", *scalar);
  } else {
    factor.narrow = const_data<float>(op, "scalar", *scalar);
  }
  return factor;
}

}  // namespace pfn
