#include "threads.h"

#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "simd.h"

#if defined(__unix__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace embedmux {
namespace {

constexpr auto kAwake = std::chrono::microseconds(200);  // longer than what lies between two ops of a forward pass
constexpr int kTurnsPerLook = 64;                        // at the clock
constexpr int kTurnsBeforeYield = 1 << 10;               // a member that waits so long may hold up another's processor

void pause() {
#ifdef EMBEDMUX_X86
  _mm_pause();
#endif
}

int processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Some schedulers wake a worker on the processor of who woke it, which waits there for the worker: it goes to another,
// if the process may use one.
void leave_processor(int left) {
#if defined(__linux__)
  cpu_set_t all, others;
  if (left < 0 || sched_getcpu() != left || sched_getaffinity(0, sizeof(all), &all) != 0) return;
  others = all;
  CPU_CLR(left, &others);
  if (CPU_COUNT(&others) == 0) return;
  sched_setaffinity(0, sizeof(others), &others);
  sched_setaffinity(0, sizeof(all), &all);
#endif
}

thread_local bool is_member = false;

class Pool {
 public:
  void run(int64_t threads, const std::function<void(const Team&)>& work) {
    while (static_cast<int64_t>(workers_) < threads - 1) {
      const int64_t index = ++workers_;
      std::thread([this, index, turn = turn_.load()] { serve(index, turn); }).detach();
    }
    Barrier barrier;
    work_ = &work, size_ = threads, barrier_ = &barrier, failure_ = nullptr, caller_ = processor();
    busy_.store(workers_, std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
    turn_.notify_all();
    take_part(0);
    for (int turns = 0; busy_.load(std::memory_order_acquire) != 0; ++turns) {
      turns > kTurnsBeforeYield ? std::this_thread::yield() : pause();
    }
    if (failure_) std::rethrow_exception(failure_);
  }

  std::mutex mutex;  // held by whoever runs a team

 private:
  void take_part(int64_t index) {
    if (index >= size_) return;
    is_member = true;
    try {
      (*work_)({index, size_, barrier_});
    } catch (...) {
      const std::lock_guard<std::mutex> guard(failure_mutex_);
      if (!failure_) failure_ = std::current_exception();
      barrier_->give_up();
    }
    is_member = false;
  }

  void serve(int64_t index, uint32_t turn) {
    for (;; ++turn) {
      const auto end = std::chrono::steady_clock::now() + kAwake;
      while (turn_.load(std::memory_order_acquire) == turn) {
        for (int i = 0; i < kTurnsPerLook && turn_.load(std::memory_order_acquire) == turn; ++i) pause();
        if (std::chrono::steady_clock::now() > end) turn_.wait(turn, std::memory_order_acquire);
      }
      if (index < size_) leave_processor(caller_);
      take_part(index);
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::atomic<uint32_t> turn_{0};  // counts the teams; a worker that has not seen the last one has work
  std::atomic<int64_t> busy_{0};   // workers that have not finished with the present one
  int64_t workers_ = 0;
  const std::function<void(const Team&)>* work_ = nullptr;
  int64_t size_ = 0;
  int caller_ = -1;  // the processor it runs on
  Barrier* barrier_ = nullptr;
  std::exception_ptr failure_;
  std::mutex failure_mutex_;
};

// Never destroyed: its workers sleep in it when the program ends. A forked process has none of them, and makes its own.
Pool*& pool() {
  static Pool* found = [] {
#if defined(__unix__)
    pthread_atfork(nullptr, nullptr, [] { pool() = new Pool; });
#endif
    return new Pool;
  }();
  return found;
}

}  // namespace

void Barrier::wait(int64_t members) {
  const int64_t turn = turn_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
    waiting_.store(0, std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
    return;
  }
  for (int turns = 0; turn_.load(std::memory_order_acquire) == turn && !is_broken_.load(); ++turns) {
    turns > kTurnsBeforeYield ? std::this_thread::yield() : pause();
  }
}

void run_team(int64_t threads, const std::function<void(const Team&)>& work) {
  std::unique_lock<std::mutex> lock;
  if (threads > 1 && !is_member) lock = std::unique_lock<std::mutex>(pool()->mutex, std::try_to_lock);
  if (lock.owns_lock()) {
    pool()->run(threads, work);
  } else {
    work({0, 1, nullptr});
  }
}

}  // namespace embedmux
