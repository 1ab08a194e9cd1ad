// Parts of maxsim on the CPU. Tokens travel as cells of four bytes along D: one float, two bfloat16 or four int8. A
// query's tokens stand in panels of 16, cell by cell, which is at once what a broadcast cell of a document's token
// multiplies and what AMX takes as its second tile: documents are read where they are, row by row.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace embedmux::maxsim {

constexpr int64_t kLanes = 16;  // query tokens of a panel

enum class Form { floats, pairs, quads };

constexpr int64_t divide_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }
constexpr int64_t round_up(int64_t value, int64_t unit) { return divide_up(value, unit) * unit; }

// A run of a document's tokens times all panels.
struct Product {
  const uint32_t* tokens;  // [count, stride] cells
  int64_t stride;
  int64_t count;           // at least the kernels' token_step
  const uint32_t* panels;  // [num_panels][cells + 1][16] cells; the last row is -128 times the sum of each token's int8
  int64_t num_panels;
  int64_t cells;  // a multiple of the kernels' cell_step
  float* best;    // [num_panels][16]: raised to the greatest dot products; a NaN raises nothing
};

// One instruction set's way.
struct Kernels {
  Form form;
  int64_t cell_step;   // cells come in multiples of this, the missing ones zero
  int64_t token_step;  // tokens come at least so many at a time, a shorter document's last one several times
  void (*raise)(const Product&);
  void (*enter)();  // around the work of a task, on its thread
  void (*leave)();
};

extern const Kernels floats_baseline;
#ifdef EMBEDMUX_X86
extern const Kernels floats_avx2, floats_avx512, pairs_avx512, quads_avx512, pairs_amx, quads_amx;
#endif

}  // namespace embedmux::maxsim
