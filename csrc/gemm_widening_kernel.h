// The inner part of gemm_widening.cpp: a tile of the product, on every instruction set.
#pragma once

#include <cstdint>

#include "simd.h"

namespace embedmux {

constexpr int64_t kWideningColumns = 64;  // of a panel
constexpr int64_t kWideningDepth = 64;  // steps along K of a block: its 16 KiB of weights stay in the first-level cache
constexpr int64_t kWideningRows = 6;    // of a tile, at most

// One tile: some rows by a strip of a panel's columns, over one block of K. sums = before + x Wᵀ.
struct WideningTile {
  const float* x;       // [rows, kWideningDepth], of which `depth` hold values
  const void* weights;  // [depth, kWideningColumns] from the strip's first column: 16 bits wide, or `widened` below
  float* widened;       // [depth, kWideningColumns] likewise: where 16-bit weights are left for the tiles that follow
  int64_t depth;
  const float* before;
  int64_t before_stride;  // of the rows, as below
  float* sums;
  int64_t stride;
};

struct WideningKernel {
  int64_t rows;           // of a tile, at most
  int64_t strip_columns;  // of a tile
  // `rows` rows of x [.., inner] as float32 in blocks of K: [K / kWideningDepth, rows, kWideningDepth].
  void (*gather)(const void* x, int64_t inner, int64_t rows, float* target);
  // By the number of a tile's rows: from 16-bit weights, and from those that it widened.
  void (*narrow[kWideningRows + 1])(const WideningTile&);
  void (*wide[kWideningRows + 1])(const WideningTile&);
};

WideningKernel bfloat16_widening_portable();
WideningKernel float16_widening_portable();
#ifdef EMBEDMUX_X86
WideningKernel bfloat16_widening_avx2();
WideningKernel float16_widening_avx2();
WideningKernel bfloat16_widening_avx512();
WideningKernel float16_widening_avx512();
#endif

}  // namespace embedmux
