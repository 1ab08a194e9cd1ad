// The threads of the kernels. torch's own pool, OpenMP's, lets workers sleep after 100 turns of a loop once a program
// has more threads than processors, as a server has: every parallel step then waits for the kernel to wake them, which
// for a short text takes longer than its layers. These workers stay awake for a fraction of a millisecond.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

namespace embedmux {

// Where the members of a team wait for each other.
class Barrier {
 public:
  void wait(int64_t members);
  void give_up() { is_broken_.store(true); }  // a member has failed: nobody waits any more

 private:
  std::atomic<int64_t> waiting_{0}, turn_{0};
  std::atomic<bool> is_broken_{false};
};

// Threads that work on the same thing at the same time; `index` is this one's place among `size`.
struct Team {
  int64_t index, size;
  Barrier* barrier;

  void wait() const {
    if (size > 1) barrier->wait(size);
  }
  // This thread's share of `count` pieces.
  int64_t first(int64_t count) const { return count * index / size; }
  int64_t last(int64_t count) const { return count * (index + 1) / size; }
};

// Calls work on each of at most `threads` threads, the caller's among them, and returns when all are done; throws what
// one of them threw. The team is the caller alone inside another team, and while another thread's team is at work.
void run_team(int64_t threads, const std::function<void(const Team&)>& work);

// Calls work(first, last) for parts of [begin, end), each of at least `grain` if there are several, on at most as many
// threads as torch was set to.
template <typename Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Work& work) {
  const int64_t count = end - begin;
  if (count <= 0) return;
  const int64_t parts = (count + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1);
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), parts);
  if (threads <= 1) return work(begin, end);
  run_team(threads, [&](const Team& team) {
    const int64_t first = begin + team.first(count), last = begin + team.last(count);
    if (first < last) work(first, last);
  });
}

}  // namespace embedmux
