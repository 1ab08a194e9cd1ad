// The inner part of gemm_amx.cpp: one task on one thread.
#pragma once

#include "gemm_amx_low_rank.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

// Configure the thread's tile registers for run_amx_task, and give them back. oneDNN compares their configuration with
// the one it wants before each use, so finding them released is safe for it.
void acquire_tiles();
void release_tiles();

// Rows [first_row, last_row) by the panels at places [first_place, last_place), on a thread that holds the tiles.
void run_amx_task(const Product& product, int64_t first_row, int64_t last_row, int64_t first_place, int64_t last_place);

}  // namespace embedmux

#endif
