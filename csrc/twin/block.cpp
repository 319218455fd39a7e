// A checked longjmp refuses to change stacks.
#undef _FORTIFY_SOURCE

#include "cuda/block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace pfn::twin {
namespace {

constexpr std::size_t kStackBytes = std::size_t{128} << 10;
constexpr std::size_t kSlotBytes = 8;

enum class Order { forward, backward, random };

Order read_order() {
  const char* text = std::getenv("PFN_TWIN_ORDER");
  const std::string name = text != nullptr ? text : "forward";
  if (name == "forward") return Order::forward;
  if (name == "backward") return Order::backward;
  if (name == "random") return Order::random;
  throw std::runtime_error("PFN_TWIN_ORDER must be forward, backward or random, got " + name);
}

// The n-th of count things; the random order, an affine map, is another one at every turn.
int64_t nth(int64_t n, int64_t count, int64_t turn) {
  static const Order order = read_order();
  if (order == Order::forward) return n;
  if (order == Order::backward) return count - 1 - n;
  int64_t factor = 7919 + 2 * (turn % 1000);
  while (std::gcd(factor, count) != 1) ++factor;
  return (n * factor + 104729 * turn) % count;
}

// What a thread brought along to its last two barriers of one kind: nobody is further ahead.
struct Slots {
  alignas(kSlotBytes) unsigned char bytes[2][kSlotBytes];
  int barriers = 0;
};

struct Fiber {
  ucontext_t start;
  jmp_buf place;
  std::unique_ptr<unsigned char[]> stack;
  Slots slots[2];
  Waits waits = Waits::nothing;
  int line = 0;
  bool is_new = true;
  bool is_done = true;
};

// The fibers of one thread of the CPU, kept between blocks.
struct Pool {
  std::vector<std::unique_ptr<Fiber>> fibers;
  jmp_buf scheduler;
  const std::function<void(int)>* body = nullptr;
  int current = 0;
  int64_t turn = 0;
  std::exception_ptr failure;

  Fiber& at(int thread) { return *fibers[static_cast<std::size_t>(thread)]; }
  Fiber& running() { return at(current); }
};

Pool& pool() {
  static thread_local Pool pool;
  return pool;
}

// Comes back when somebody jumps to `from`. Takes a tenth of the time of swapcontext(), which asks
// the operating system for its signals.
void change(jmp_buf& from, jmp_buf& to) {
  if (_setjmp(from) == 0) _longjmp(to, 1);
}

// A fiber's whole life: one thread of each block.
void run_fiber() {
  Pool& all = pool();
  for (;;) {
    Fiber& fiber = all.running();
    try {
      (*all.body)(all.current);
    } catch (...) {
      all.failure = std::current_exception();
    }
    fiber.is_done = true;
    change(fiber.place, all.scheduler);
  }
}

std::unique_ptr<Fiber> make_fiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack.reset(new unsigned char[kStackBytes]);
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = fiber->stack.get();
  fiber->start.uc_stack.ss_size = kStackBytes;
  fiber->start.uc_link = nullptr;
  makecontext(&fiber->start, run_fiber, 0);
  return fiber;
}

// Runs a thread to its next barrier or its end.
void resume(Pool& all, int thread) {
  all.current = thread;
  Fiber& fiber = all.running();
  if (_setjmp(all.scheduler) == 0) {
    if (!fiber.is_new) _longjmp(fiber.place, 1);
    fiber.is_new = false;
    setcontext(&fiber.start);
  }
  if (all.failure != nullptr) std::rethrow_exception(all.failure);
}

// Lets go the threads from first to last where all wait for each other.
bool release(Pool& all, int first, int last, Waits what) {
  for (int thread = first; thread < last; ++thread) {
    if (all.at(thread).is_done || all.at(thread).waits != what) return false;
    const int line = all.at(thread).line, other = all.at(first).line;
    if (line != other) {
      throw std::runtime_error("threads wait at different barriers, in lines " +
                               std::to_string(other) + " and " + std::to_string(line));
    }
  }
  for (int thread = first; thread < last; ++thread) all.at(thread).waits = Waits::nothing;
  return true;
}

// Runs a warp until its threads are done or wait for other warps.
void run_warp(Pool& all, int first) {
  do {
    const int64_t turn = all.turn++;
    for (int n = 0; n < cuda::kWarpSize; ++n) {
      const int thread = first + static_cast<int>(nth(n, cuda::kWarpSize, turn));
      const Fiber& fiber = all.at(thread);
      if (!fiber.is_done && fiber.waits == Waits::nothing) resume(all, thread);
    }
  } while (release(all, first, first + cuda::kWarpSize, Waits::warp));
}

void run_threads(Pool& all, int threads) {
  do {
    const int64_t turn = all.turn++;
    const int warps = threads / cuda::kWarpSize;
    for (int n = 0; n < warps; ++n) {
      run_warp(all, static_cast<int>(nth(n, warps, turn)) * cuda::kWarpSize);
    }
  } while (release(all, 0, threads, Waits::block));
  for (int thread = 0; thread < threads; ++thread) {
    if (!all.at(thread).is_done) {
      throw std::runtime_error("a barrier that not every thread comes to, in line " +
                               std::to_string(all.at(thread).line));
    }
  }
}

}  // namespace

void run_block(int threads, const std::function<void(int thread)>& body) {
  Pool& all = pool();
  while (all.fibers.size() < static_cast<std::size_t>(threads)) {
    all.fibers.push_back(make_fiber());
  }
  all.body = &body;
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = all.at(thread);
    fiber.slots[0].barriers = fiber.slots[1].barriers = 0;
    fiber.waits = Waits::nothing;
    fiber.is_done = false;
  }
  try {
    run_threads(all, threads);
  } catch (...) {
    all.failure = nullptr;
    all.fibers.clear();  // the others will never come to their end
    throw;
  }
}

void wait(Waits what, int line, const void* value, std::size_t bytes) {
  Pool& all = pool();
  Fiber& fiber = all.running();
  Slots& slots = fiber.slots[what == Waits::warp];
  if (bytes > 0) std::memcpy(slots.bytes[slots.barriers % 2], value, bytes);
  ++slots.barriers;
  fiber.waits = what;
  fiber.line = line;
  change(fiber.place, all.scheduler);
}

const void* brought_by(int thread, Waits what) {
  Pool& all = pool();
  const int kind = what == Waits::warp;
  return all.at(thread).slots[kind].bytes[(all.running().slots[kind].barriers - 1) % 2];
}

void check_aligned(const void* vector) {
  if (reinterpret_cast<std::uintptr_t>(vector) % alignof(Vector) != 0) {
    throw std::runtime_error("a vector access that is not aligned to 16 bytes");
  }
}

int64_t nth_block(int64_t n, int64_t count) { return nth(n, count, 0); }

}  // namespace pfn::twin
