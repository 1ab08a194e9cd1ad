// How a product is cut into tasks for threads, and the memory that a thread keeps for its own. No bits depend on
// either.
#pragma once

#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <cstdint>

#include "threads.h"

namespace embedmux {

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
constexpr int64_t divide_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// Tasks of `rows` rows by `panels` panels of columns.
struct TaskGrid {
  int64_t rows, panels;
  int64_t row_tasks, panel_tasks, all_panels;

  int64_t num_tasks() const { return row_tasks * panel_tasks; }
};

// A task has at most `most_rows` rows, a multiple of block_rows, and a multiple of panel_step panels; for the sake of
// more tasks it is not cut below least_panels.
inline TaskGrid cut_tasks(int64_t rows, int64_t all_panels, int64_t most_rows, int64_t block_rows, int64_t least_panels,
                          int64_t panel_step, int64_t threads = at::get_num_threads()) {
  int64_t row_tasks = divide_up(rows, most_rows);
  if (row_tasks > threads) row_tasks = round_up(row_tasks, threads);
  int64_t panel_tasks = 1;
  if (row_tasks > 0 && row_tasks < threads) {
    panel_tasks = std::clamp(divide_up(all_panels, least_panels), int64_t{1}, divide_up(threads, row_tasks));
    row_tasks = std::max(row_tasks, threads / panel_tasks);
  }
  const int64_t task_rows = round_up(divide_up(rows, std::max<int64_t>(row_tasks, 1)), block_rows);
  const int64_t panels = round_up(divide_up(all_panels, panel_tasks), panel_step);
  return {task_rows, panels, divide_up(rows, std::max(task_rows, block_rows)), divide_up(all_panels, panels),
          all_panels};
}

// Memory of one thread, kept between calls: fresh pages would cost more than a small product.
template <typename Element>
class Scratch {
 public:
  ~Scratch() { c10::free_cpu(memory_); }
  Element* reserve(int64_t elements) {
    if (elements > size_) {
      c10::free_cpu(memory_);
      memory_ = c10::alloc_cpu(elements * sizeof(Element));
      size_ = elements;
    }
    return static_cast<Element*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace embedmux
