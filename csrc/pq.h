// Looking up 4-bit product-quantised codes (Jegou et al. 2011) the fast way (Andre et al. 2015): tables of 16 bytes
// live in a register, one shuffle looks up 64 codes. The bytes only sort out: they are lower bounds of how far a row's
// score stays below the best score there could be. Rows that pass are summed in float32, m = 0, 1, .. in turn, on every
// instruction set alike, so no result depends on the bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd.h"

namespace embedmux::pq {

constexpr int64_t kBlockRows = 64;  // rows of a packed block: [n / 64][M / 2][64] bytes
constexpr int64_t kCentroids = 16;
constexpr int kScanQueries = 8;  // queries that share the bytes of a block
constexpr int kExactRows = 16;   // rows whose exact scores grow side by side

constexpr int64_t divide_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// Rows of codes as quantize_pq writes them.
struct Codes {
  const uint8_t* rows;
  int64_t columns;  // M / 2 bytes a row
};

// Rows [first, first + count) of `codes` as blocks; what is missing in the last becomes zero.
void pack_rows(const Codes& codes, int64_t first, int64_t count, uint8_t* blocks);

// One query's bytes: for each column 16 for the low codes, 16 for the high ones.
using ByteTables = std::vector<uint8_t>;

// Which rows of `num_blocks` blocks have a sum of bytes (held at 255) of at most limits[query]: one bit a row into
// masks[query * num_blocks + block]. `tables` holds kScanQueries at most. Needs AVX2.
void scan(const uint8_t* blocks, int64_t num_blocks, int64_t columns, const std::vector<const uint8_t*>& tables,
          const uint8_t* limits, uint64_t* masks);

// Scores of `count` (1 to 16) rows: the sum over m of table[m][code], from 0 up; NaN becomes minus infinity.
void exact_scores(const Codes& codes, const int64_t* ids, int count, const float* table, float* scores);

}  // namespace embedmux::pq
