#include "node/arena.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace pfn::node {
namespace {

struct Registry {
  std::mutex mutex;
  std::vector<Arena*> arenas;
};

// Never destroyed: threads may end after static objects.
Registry& registry() {
  static Registry* const all = new Registry;
  return *all;
}

}  // namespace

Arena::Arena() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().arenas.push_back(this);
}

Arena::~Arena() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  auto& arenas = registry().arenas;
  arenas.erase(std::remove(arenas.begin(), arenas.end(), this), arenas.end());
  release();
}

void* Arena::bytes(std::size_t count) {
  if (count > size_) {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    release();
    const std::size_t whole = (count + 63) / 64 * 64;
    data_ = std::aligned_alloc(64, whole);
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = whole;
  }
  return data_;
}

void Arena::release() {
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
}

Arena& batch_arena() {
  thread_local Arena arena;
  return arena;
}

Arena& sample_arena() {
  thread_local Arena arena;
  return arena;
}

int64_t arena_bytes() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  std::size_t total = 0;
  for (const Arena* arena : registry().arenas) total += arena->size_;
  return static_cast<int64_t>(total);
}

void fill_arenas(unsigned char byte) {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  for (const Arena* arena : registry().arenas) {
    if (arena->data_ != nullptr) std::memset(arena->data_, byte, arena->size_);
  }
}

void release_arenas() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  for (Arena* arena : registry().arenas) arena->release();
}

}  // namespace pfn::node
