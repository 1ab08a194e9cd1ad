// The low-rank parts of one task of the AMX kernel: A x before its panels, B in tiles before each group of panels.
#pragma once

#include <vector>

#include "gemm_amx_tiles.h"
#include "lora_segments.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

// What a product is, whatever rows it is computed for; they count from the call's first.
struct Product {
  const LoraCall& call;
  const uint16_t* packed;
  const Affine* affines;   // [rows], or null if no row has a scale
  bool is_int8;            // the weight's layout is that of gemm_int8.h
  int64_t steps;           // of tiles along K
  int64_t panel_elements;  // from one panel of the layout to the next
  int64_t half_panels;     // of a gated product, else 0

  // The panel at a place of the order in which they are walked: a gated product takes gate and up in turn.
  // Steps of x, and of A, which are bfloat16 beside an int8 weight too.
  int64_t wide_steps() const { return divide_up(call.inner, kTileDepth); }
  int64_t panel(int64_t place) const { return half_panels == 0 ? place : place / 2 + place % 2 * half_panels; }
};

// The low-rank part of one segment and slice inside a task. Rows and tiles count from the task's first.
struct LowRank {
  int64_t first_row, last_row;
  int64_t first_column, last_column;
  int64_t rank, rank_tiles;
  const uint16_t* a;
  const uint16_t* b;
  uint16_t* down;  // A x: row tiles [num_tiles, steps]
  uint16_t* up;    // B: pair tiles [panels of the group, steps, 2]

  int64_t first_tile() const { return first_row / kTileRows; }
  int64_t last_tile() const { return divide_up(last_row, kTileRows); }
  int64_t num_tiles() const { return last_tile() - first_tile(); }
  // A step of the product takes 32 ranks. Up to 16 leave room for both halves of each value, which keep 16 bits of A x
  // at no cost; more are rounded to bfloat16.
  bool is_split() const { return rank <= kTileRows; }
  int64_t steps() const { return divide_up(rank, kTileDepth); }
  int64_t up_elements() const { return steps() * kStepElements; }  // a panel
  bool meets(int64_t column) const { return first_column < column + kPanelColumns && column < last_column; }
};

struct LowRankScratch {
  Scratch<uint16_t> a, down, up;
};

// The parts that meet rows [first, last) of the call; their A is called from memory.
std::vector<LowRank> find_parts(const Product& product, int64_t first, int64_t last, LowRankScratch& scratch);

// Computes A x of the parts from the rows' tiles.
void shrink_parts(const Product& product, const std::vector<LowRank>& parts, const uint16_t* rows,
                  LowRankScratch& scratch);

// Gives the parts room for the B of one group of at most `panels` panels, and returns the panels of a group (even if
// the product is gated).
int64_t place_groups(const Product& product, int64_t rows, int64_t panels, std::vector<LowRank>& parts,
                     LowRankScratch& scratch);

// Fills the pair tiles of B for a group, the panels at the places [first, last), and calls the next group's B, up to
// the place `end`, from memory.
void expand_group(const Product& product, const std::vector<LowRank>& parts, int64_t first, int64_t last, int64_t end);

}  // namespace embedmux

#endif
