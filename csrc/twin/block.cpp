#include "twin/block.h"

#include <ucontext.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace pfn::twin {
namespace {

constexpr std::size_t kStackBytes = std::size_t{128} << 10;
constexpr std::size_t kSlotBytes = 16;

enum class Order { forward, backward, random };

Order read_order() {
  const char* text = std::getenv("PFN_TWIN_ORDER");
  const std::string name = text != nullptr ? text : "forward";
  if (name == "forward") return Order::forward;
  if (name == "backward") return Order::backward;
  if (name == "random") return Order::random;
  throw std::runtime_error("PFN_TWIN_ORDER must be forward, backward or random, got " + name);
}

Order order() {
  static const Order found = read_order();
  return found;
}

// Something between 0 and count - 1 that is different for every n: an affine map whose factor shares
// no divisor with the count.
int64_t scatter(int64_t n, int64_t count) {
  int64_t factor = 7919;
  while (count % factor == 0) factor += 2;  // a prime first, then whatever comes
  const auto gcd = [](int64_t a, int64_t b) {
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  };
  while (gcd(factor, count) != 1) factor += 2;
  return (n * factor + 104729) % count;
}

int64_t nth(int64_t n, int64_t count) {
  if (order() == Order::backward) return count - 1 - n;
  return order() == Order::random ? scatter(n, count) : n;
}

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack;
  Fibers::Waits waits = Fibers::Waits::nothing;
  bool is_done = true;
};

// The fibers of one thread of the CPU, kept between blocks.
struct Pool {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<unsigned char> slots;
  ucontext_t scheduler;
  const std::function<void(int)>* body = nullptr;
  int threads = 0, current = 0;
  std::string failure;
};

Pool& pool() {
  static thread_local Pool pool;
  return pool;
}

void run_fiber() {
  Pool& all = pool();
  const int thread = all.current;
  Fiber& fiber = *all.fibers[static_cast<std::size_t>(thread)];
  try {
    (*all.body)(thread);
  } catch (const std::exception& error) {
    all.failure = error.what();
  }
  fiber.is_done = true;
  swapcontext(&fiber.context, &all.scheduler);
}

void start(Fiber& fiber) {
  if (fiber.stack == nullptr) fiber.stack = std::make_unique<unsigned char[]>(kStackBytes);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
  fiber.waits = Fibers::Waits::nothing;
  fiber.is_done = false;
}

// Lets go the threads from first to last that wait for each other; whether there were any.
bool release(Pool& all, int first, int last, Fibers::Waits what) {
  for (int thread = first; thread < last; ++thread) {
    const Fiber& fiber = *all.fibers[static_cast<std::size_t>(thread)];
    if (fiber.is_done || fiber.waits != what) return false;
  }
  for (int thread = first; thread < last; ++thread) {
    all.fibers[static_cast<std::size_t>(thread)]->waits = Fibers::Waits::nothing;
  }
  return true;
}

}  // namespace

void Fibers::run(int threads, const std::function<void(int thread)>& body) {
  Pool& all = pool();
  while (all.fibers.size() < static_cast<std::size_t>(threads)) {
    all.fibers.push_back(std::make_unique<Fiber>());
  }
  all.slots.resize(static_cast<std::size_t>(threads) * kSlotBytes);
  all.body = &body;
  all.threads = threads;
  all.failure.clear();
  for (int thread = 0; thread < threads; ++thread) {
    start(*all.fibers[static_cast<std::size_t>(thread)]);
  }
  for (;;) {
    int done = 0;
    for (int n = 0; n < threads; ++n) {
      all.current = static_cast<int>(nth(n, threads));
      Fiber& fiber = *all.fibers[static_cast<std::size_t>(all.current)];
      if (!fiber.is_done && fiber.waits == Waits::nothing) {
        swapcontext(&all.scheduler, &fiber.context);
      }
      if (!all.failure.empty()) throw std::runtime_error(all.failure);
      done += fiber.is_done;
    }
    if (done == threads) return;
    bool goes_on = false;
    for (int first = 0; first < threads; first += cuda::kWarpSize) {
      const int last = std::min(first + cuda::kWarpSize, threads);
      goes_on = release(all, first, last, Waits::warp) || goes_on;
    }
    if (!goes_on && !release(all, 0, threads, Waits::block)) {
      throw std::runtime_error("a barrier that not every thread comes to");
    }
  }
}

void Fibers::wait(Waits what) {
  Pool& all = pool();
  Fiber& fiber = *all.fibers[static_cast<std::size_t>(all.current)];
  fiber.waits = what;
  swapcontext(&fiber.context, &all.scheduler);
}

unsigned char* Fibers::slot(int thread) {
  return pool().slots.data() + static_cast<std::size_t>(thread) * kSlotBytes;
}

int Fibers::threads() { return pool().threads; }

int64_t nth_block(int64_t n, int64_t count) { return nth(n, count); }

}  // namespace pfn::twin
