// The arguments of lora_matmul after checking, as its kernels read them.
#pragma once

#include <cstdint>
#include <vector>

namespace embedmux {

enum class Activation { none, gelu, gelu_tanh, silu, relu };

// What one slot brings for one slice, in elements of the arena: A [rank, inner], B [rank, width of the slice] and,
// unless it is -1, a merged weight [width of the slice, inner].
struct LoraSlice {
  int64_t a;
  int64_t b;
  int64_t rank;
  int64_t weight;
};

// [columns], or both null: a row's sums become sums * scale + bias.
struct Affine {
  const float* scale = nullptr;
  const float* bias = nullptr;
};

// Consecutive rows that share an adapter; slices holds one entry a slice. Base rows stand in no segment.
struct LoraSegment {
  int64_t first_row;
  int64_t last_row;
  const LoraSlice* slices;
  Affine affine;
};

// Rows that share a weight.
struct LoraCall {
  int64_t rows;
  int64_t inner;
  int64_t columns;
  std::vector<int64_t> slices;        // first column of each slice, then `columns`
  std::vector<LoraSegment> segments;  // by rising row
  const void* arena;                  // element type of x
  Activation activation;
  bool is_gated;  // the activated first half of the columns times the second
  Affine affine;  // of base rows

  int64_t num_slices() const { return static_cast<int64_t>(slices.size()) - 1; }
  int64_t output_columns() const { return is_gated ? columns / 2 : columns; }
};

}  // namespace embedmux
