// The arguments of lora_matmul after checking, as its kernels read them.
#pragma once

#include <cstdint>
#include <vector>

namespace embedmux {

// Factors of one slot and one slice, in elements of the arena: A [rank, inner] and B [rank, width of the slice].
struct LoraFactors {
  int64_t a;
  int64_t b;
  int64_t rank;
};

// Consecutive rows that share an adapter; factors holds one entry a slice. Base rows stand in no segment.
struct LoraSegment {
  int64_t first_row;
  int64_t last_row;
  const LoraFactors* factors;
};

struct LoraCall {
  int64_t rows;
  int64_t inner;
  int64_t columns;
  std::vector<int64_t> slices;        // first column of each slice, then `columns`
  std::vector<LoraSegment> segments;  // by rising row
  const void* arena;                  // element type of the weight
  bool gelu;

  int64_t num_slices() const { return static_cast<int64_t>(slices.size()) - 1; }
};

}  // namespace embedmux
