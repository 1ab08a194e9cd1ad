// The fused bfloat16 kernel for processors with AVX512_BF16 and no tiles: products of pairs along K, summed in float32.
#pragma once

#include <ATen/ATen.h>

#include "lora_segments.h"

namespace embedmux {

// weight [N, K] bfloat16 as [N / 64, K / 2, 64, 2], sizes rounded up, the rest zero: panels of 64 columns of the
// product, in a panel one row for each pair along K.
at::Tensor pack_weight_bf16_dot(const at::Tensor& weight);

// Refuses a tensor that is not this layout for the call's shape, and a process that uses other instructions.
void check_weight_bf16_dot(const at::Tensor& packed, const LoraCall& call);

// output [rows, output_columns] = activation(scale (x Wᵀ + B(A x)) + bias). All bfloat16, sums in float32; A x stays
// float32. Scale and bias are those of the row's segment or of the call. Without a scale in the call there is none
// anywhere, and every row has the call's bias.
void lora_matmul_bf16_dot(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed,
                          const at::Tensor& output);

}  // namespace embedmux
