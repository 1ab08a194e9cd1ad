// The product by int8 weights: each output channel has a scale, each row of x a scale and a zero point, chosen from
// that row alone, so that a row's bits do not depend on its batch. Products of codes are summed in int32, exactly.
#pragma once

#include <ATen/ATen.h>

#include "gemm_tasks.h"
#include "lora_segments.h"

namespace embedmux {

constexpr int64_t kInt8Depth = 64;    // codes along K of one step
constexpr int64_t kInt8Columns = 32;  // of a panel: two tiles
constexpr int64_t kInt8StepBytes = kInt8Depth * kInt8Columns;
constexpr int64_t kInt8TailBytes = 2 * kInt8Columns * 4;
// Codes of x are 0 .. 255 but steps 254: that leaves room for the rounding of the zero point.
constexpr float kInt8Steps = 254.0F;
constexpr float kInt8LeastSpan = 1e-30F;  // of a row's values; below, they count as zeros

// x = scale (code - zero), with shift = -scale zero.
struct RowScale {
  float scale, shift;
};

inline int64_t int8_steps(int64_t inner) { return divide_up(inner, kInt8Depth); }
inline int64_t int8_panel_bytes(int64_t inner) { return int8_steps(inner) * kInt8StepBytes + kInt8TailBytes; }

// weight [N, K] of any floating dtype as [N / 32, bytes] int8, the panels rounded up: in a panel steps of 64 along K,
// in a step two tiles of 16 columns, in a tile 16 fours along K, of 16 columns; then for each of the 32 columns its
// scale, largest |w| / 127, and the sum of its codes times that scale, both float32. The same on every instruction set.
at::Tensor pack_weight_int8(const at::Tensor& weight);

// Refuses a tensor that is not this layout for the call's shape.
void check_weight_int8(const at::Tensor& packed, const LoraCall& call);

// sums [rows, columns] float32 = x Wᵀ + bias; x [rows, inner] contiguous of any floating dtype, bias whole panels.
void multiply_int8(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed, const std::vector<float>& bias,
                   const at::Tensor& sums);

}  // namespace embedmux
