// Scratch memory that is kept between calls: fresh memory would cost a page fault for every 4 KiB.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pfn::node {

// A buffer that only grows. Contents are whatever the last user left.
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // At least `count` numbers, aligned to 64 bytes; what was handed out before is invalid.
  template <typename T>
  T* numbers(int64_t count) {
    return static_cast<T*>(bytes(static_cast<std::size_t>(count) * sizeof(T)));
  }

 private:
  friend int64_t arena_bytes();
  friend void fill_arenas(unsigned char byte);
  friend void release_arenas();

  void* bytes(std::size_t count);
  void release();

  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// Of the calling thread: one for a whole batch, one for the sample that the thread works on.
Arena& batch_arena();
Arena& sample_arena();

// Over all threads; the last two only while no operator runs.
int64_t arena_bytes();
void fill_arenas(unsigned char byte);
void release_arenas();

}  // namespace pfn::node
