// The inner part of gemm_bf16_dot.cpp: one task on one thread.
#pragma once

#include <cstdint>

#include "lora_segments.h"
#include "simd.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

constexpr int64_t kDotColumns = 64;  // of a panel: four registers
constexpr int64_t kDotRows = 6;      // of a tile, at most: 24 of 32 registers hold sums

struct DotProduct {
  const LoraCall& call;
  const uint16_t* x;
  const uint16_t* packed;
  uint16_t* output;
  int64_t pairs;  // along K, the last filled up with a zero
};

// Rows by panels of the output's columns that one thread computes.
struct DotTask {
  int64_t first_row, last_row;
  int64_t first_panel, last_panel;
};

// A panel [K / 2, kDotColumns] of pairs from up to kDotColumns rows of a weight [N, K].
void pack_dot_panel(const uint16_t* weight, int64_t rows, int64_t inner, uint32_t* panel);

void run_dot_task(const DotProduct& product, const DotTask& task);

}  // namespace embedmux

#endif
