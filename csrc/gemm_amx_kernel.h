// The inner part of gemm_amx.cpp: one task on one thread.
#pragma once

#include "gemm_amx_low_rank.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

// Configure the thread's tile registers for run_amx_task, and give them back. oneDNN compares their configuration with
// the one it wants before each use, so finding them released is safe for it.
void acquire_tiles();
void release_tiles();

struct HeldTiles {
  HeldTiles() { acquire_tiles(); }
  ~HeldTiles() { release_tiles(); }
};

// Rows by panels that one thread computes, the panels as places of the order in which they are walked.
struct AmxTask {
  int64_t first_row, last_row;
  int64_t first_place, last_place;
};

// Where x and the results lie, in elements from a task's first row: as rows, or as the row tiles that another product
// reads (gather_rows). Row tiles of results are whole: their columns are a multiple of 32.
struct AmxRows {
  const uint16_t* x;
  bool x_in_tiles;
  uint16_t* output;
  bool output_in_tiles;
  // The weights that the thread reads next, called from memory while the last of its own are multiplied.
  const uint16_t* upcoming = nullptr;
  int64_t upcoming_elements = 0;
};

// One task, on a thread that holds the tiles.
void run_amx_task(const Product& product, const AmxTask& task, const AmxRows& rows);

// How a product of `rows` rows is cut for so many threads.
TaskGrid cut_amx_tasks(const Product& product, int64_t rows, int64_t threads);

inline AmxTask amx_task(const TaskGrid& grid, int64_t index, int64_t rows) {
  const int64_t row = index / grid.panel_tasks * grid.rows, place = index % grid.panel_tasks * grid.panels;
  return {row, std::min(rows, row + grid.rows), place, std::min(grid.all_panels, place + grid.panels)};
}

// Elements of `rows` rows as row tiles of `steps` steps.
inline int64_t row_tiles_elements(int64_t rows, int64_t steps) {
  return divide_up(rows, kBlockRows) * steps * kStepElements;
}

}  // namespace embedmux

#endif
