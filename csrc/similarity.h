// What similarity, similarity_topk and rescore share: kernels that score blocks of rows, one table for each element
// type and instruction set.
//
// A kernel writes raw sums, int32 or float32, of a block of rows with a group of queries: [rows, columns], one column a
// query. The score is scale · sum + offset, by one fused multiply-add on every instruction set.
#pragma once

#include <cstdint>

#include "simd.h"

namespace embedmux::similarity {

constexpr int kGroup = 64;  // queries scored together
constexpr int kBlock = 32;  // rows scored together
constexpr int kLanes = 16;  // the columns of a group are a multiple of this, unless groups are of one query
constexpr int kCell = 64;   // bytes; prepared queries and decoded rows fill whole cells, with zeros at the end

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Up to kGroup prepared queries.
struct Group {
  const uint8_t* queries;  // as the kernel's `prepare` wrote them
  const int32_t* bias;     // of each column; kernels of integers add it to the sum
  int columns;
  int64_t row_bytes;    // of a row as `score` reads it
  int64_t query_bytes;  // that, in whole cells
};

struct Block {
  const uint8_t* rows;
  int64_t stride;        // bytes
  int count;             // rows, at most kBlock
  const uint8_t* ahead;  // as many rows that come soon, or null
};

// Queries to be prepared for a group: `count` rows of `width` elements in `out`, columns · query_bytes of zeros.
struct Preparation {
  const uint8_t* queries;
  int64_t stride, width;
  int count, columns;
  int64_t query_bytes;
  uint8_t* out;
  int32_t* bias;  // zeros
};

struct Kernel {
  bool sums_are_integers;
  bool needs_whole_blocks;  // kBlock rows, of whole cells
  int element_bytes;        // as `score` reads it: of a dimension, of a byte of packed bits in "hamming"
  void (*decode)(const uint8_t* row, int64_t width, uint8_t* out);  // to what `score` reads; null: rows are that
  void (*prepare)(const Preparation& preparation);
  void (*score)(const Group& group, const Block& block, int32_t* sums);
  void (*enter)(bool one_column);  // around the calls of `score` of a thread; null: nothing to do
  void (*leave)();
};

extern const Kernel float32_avx512, bfloat16_avx512, float16_avx512, float_binary_avx512, float_int8_avx512;
extern const Kernel float32_avx2, bfloat16_avx2, float16_avx2, float_binary_avx2, float_int8_avx2;
extern const Kernel float32_baseline, bfloat16_baseline, float16_baseline, float_binary_baseline, float_int8_baseline;
extern const Kernel int8_amx, int8_vnni, int8_avx2, int8_baseline;
extern const Kernel hamming_amx, hamming_vpopcntdq, hamming_avx2, hamming_baseline;

void prepare_copies(const Preparation& preparation);

// Raw sums [count, columns] and the factors of their columns.
struct Sums {
  const int32_t* values;  // or float32
  bool are_integers;
  int count, columns;
  const float* scale;
  const float* offset;
};

struct Hit {
  int row, column;
  float score;
};

// What is done with sums. The rows of memory that `values` points to are a multiple of kLanes.
struct Finish {
  // score of column c and row r -> out[c · stride + r], for the first `used` columns.
  void (*emit)(const Sums& sums, int used, float* out, int64_t stride);
  // The scores that are not at most their column's limit (a NaN on either side is a hit), rows rising in each column;
  // returns how many. `hits` has room for all.
  int (*filter)(const Sums& sums, const float* limits, Hit* hits);
};

extern const Finish finish_avx512, finish_avx2, finish_baseline;

}  // namespace embedmux::similarity
