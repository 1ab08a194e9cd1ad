// The low-rank parts of one task of the bfloat16 kernel for pairs: A x before its panels, B(A x) tile by tile.
#pragma once

#include <vector>

#include "gemm_bf16_dot_kernel.h"
#include "gemm_tasks.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

// What one slice of one segment adds to the task's rows [first_row, last_row), counted from the task's first.
struct DotPart {
  int64_t first_row, last_row;
  int64_t first_column, last_column;
  int64_t rank;
  const uint16_t* a;  // [rank, inner]
  const uint16_t* b;  // [rank, width of the slice]
  float* down;        // [rows, rank]: A x

  bool meets(int64_t column) const { return first_column < column + kDotColumns && column < last_column; }
};

// Rows of a tile that share a segment, and the parts that it adds. All rows count from the task's first.
struct DotPiece {
  int64_t row, rows;
  const LoraSegment* segment;  // null: base rows
  int64_t first_part, last_part;
};

// Rows that are multiplied together.
struct DotTile {
  int64_t row, rows;
  std::vector<DotPiece> pieces;
};

// Parts of the task whose slices meet its columns, with A x in scratch; in the order of their segments.
std::vector<DotPart> shrink_dot_parts(const DotProduct& product, const DotTask& task, Scratch<float>& scratch);

// The task's rows in tiles as even as they come, and these where segments begin and end.
std::vector<DotTile> cut_dot_tiles(const LoraCall& call, const DotTask& task, const std::vector<DotPart>& parts);

// sums [rows, kDotColumns] += B(A x) of the columns from `column`, for the rows from `row` of the task.
void expand_dot_part(const DotPart& part, int64_t row, int64_t rows, int64_t column, float* sums);

}  // namespace embedmux

#endif
