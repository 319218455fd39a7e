#include "cuda/block.h"

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

enum class Order { forward, backward, random };

Order read_order() {
  const char* text = std::getenv("PFN_TWIN_ORDER");
  const std::string name = text != nullptr ? text : "forward";
  if (name == "forward") return Order::forward;
  if (name == "backward") return Order::backward;
  if (name == "random") return Order::random;
  throw std::runtime_error("PFN_TWIN_ORDER must be forward, backward or random, got " + name);
}

// Where a fiber goes on, or the scheduler: what the compiler's own setjmp keeps. It takes a tenth
// of the time of swapcontext(), which asks the operating system for its signals.
struct Place {
  void* kept[5];
};

__attribute__((noinline, noreturn)) void go_to(Place& place) { __builtin_longjmp(place.kept, 1); }

// Comes back when somebody goes to `from`.
__attribute__((noinline)) void change(Place& from, Place& to) {
  if (__builtin_setjmp(from.kept) == 0) go_to(to);
}

struct Fiber {
  ucontext_t start;
  Place place;
  std::unique_ptr<unsigned char[]> stack;
  bool is_new = true;
};

// The same for a fiber that has not run.
__attribute__((noinline)) void begin(Fiber& fiber, void (*life)(), Place& from) {
  fiber.is_new = false;
  fiber.stack.reset(new unsigned char[kStackBytes]);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, life, 0);
  if (__builtin_setjmp(from.kept) == 0) setcontext(&fiber.start);
}

}  // namespace

struct Fibers::Places {
  std::vector<std::unique_ptr<Fiber>> fibers;
  Place scheduler;
  int current = 0;
  const std::function<void(int)>* body = nullptr;
  std::exception_ptr failure;

  Fiber& running() { return *fibers[static_cast<std::size_t>(current)]; }
};

Sequence::Sequence(int64_t count, int64_t turn) : count_(count), at_(0), step_(1) {
  static const Order order = read_order();
  if (order == Order::backward) at_ = step_ = count - 1;
  if (order == Order::random && count > 0) {
    step_ = 7919 + 2 * (turn % 1000);
    while (std::gcd(step_, count) != 1) ++step_;
    step_ %= count;
    at_ = turn % count;
  }
}

Fibers::Fibers() : places_(new Places) {}
Fibers::~Fibers() { delete places_; }

Fibers& Fibers::here() {
  static thread_local Fibers fibers;
  return fibers;
}

// A fiber's whole life: one thread of each block.
void Fibers::live() {
  Fibers& all = here();
  Places& places = *all.places_;
  for (;;) {
    const int thread = places.current;
    try {
      (*places.body)(thread);
    } catch (...) {
      places.failure = std::current_exception();
    }
    all.threads_[thread].is_done = true;
    change(places.running().place, places.scheduler);
  }
}

// Runs a thread to its next barrier or its end.
void Fibers::resume(int thread) {
  places_->current = thread;
  Fiber& fiber = places_->running();
  if (fiber.is_new) {
    begin(fiber, live, places_->scheduler);
  } else {
    change(places_->scheduler, fiber.place);
  }
  if (places_->failure != nullptr) std::rethrow_exception(places_->failure);
}

// Lets go the threads from first to last where all wait for each other.
bool Fibers::release(int first, int last, Waits what) {
  for (int thread = first; thread < last; ++thread) {
    if (threads_[thread].is_done || threads_[thread].waits != what) return false;
    const int line = threads_[thread].line, other = threads_[first].line;
    if (line != other) {
      throw std::runtime_error("threads wait at different barriers, in lines " +
                               std::to_string(other) + " and " + std::to_string(line));
    }
  }
  for (int thread = first; thread < last; ++thread) threads_[thread].waits = Waits::nothing;
  return true;
}

// Runs a warp until its threads are done or wait for other warps.
void Fibers::run_warp(int first) {
  do {
    Sequence lanes(cuda::kWarpSize, ++turn_);
    for (int n = 0; n < cuda::kWarpSize; ++n) {
      const int thread = first + static_cast<int>(lanes.next());
      if (!threads_[thread].is_done && threads_[thread].waits == Waits::nothing) resume(thread);
    }
  } while (release(first, first + cuda::kWarpSize, Waits::warp));
}

void Fibers::run_warps(int threads) {
  do {
    Sequence warps(threads / cuda::kWarpSize, ++turn_);
    for (int n = 0; n < threads / cuda::kWarpSize; ++n) {
      run_warp(static_cast<int>(warps.next()) * cuda::kWarpSize);
    }
  } while (release(0, threads, Waits::block));
  for (int thread = 0; thread < threads; ++thread) {
    if (!threads_[thread].is_done) {
      throw std::runtime_error("a barrier that not every thread comes to, in line " +
                               std::to_string(threads_[thread].line));
    }
  }
}

void Fibers::run(int threads, const std::function<void(int thread)>& body) {
  while (places_->fibers.size() < static_cast<std::size_t>(threads)) {
    places_->fibers.push_back(std::make_unique<Fiber>());
  }
  places_->body = &body;
  for (int thread = 0; thread < threads; ++thread) {
    threads_[thread] = Thread{};
    threads_[thread].is_done = false;
  }
  try {
    run_warps(threads);
  } catch (...) {
    places_->failure = nullptr;
    places_->fibers.clear();  // the others will never come to their end
    throw;
  }
}

void Fibers::wait(Waits what, int line) {
  Thread& thread = threads_[places_->current];
  thread.waits = what;
  thread.line = line;
  change(places_->running().place, places_->scheduler);
}

void check_tf32(const float* factors, int count) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, factors + i, sizeof(bits));
    if ((bits & 0x1fffu) != 0) {
      throw std::runtime_error("a factor for a tensor core that is not rounded to TF32");
    }
  }
}

void check_aligned(const void* vector) {
  if (reinterpret_cast<std::uintptr_t>(vector) % alignof(Vector) != 0) {
    throw std::runtime_error("a vector access that is not aligned to 16 bytes");
  }
}

}  // namespace pfn::twin
