// The fused bfloat16 kernel for processors with AMX tiles.
#pragma once

#include <ATen/ATen.h>

#include "gemm_amx_kernel.h"
#include "lora_segments.h"

namespace embedmux {

// weight [N, K] bfloat16 as [N / 32, K / 32, 2, 16, 32], sizes rounded up, the rest zero: panels of 32 columns of the
// product; in a panel steps of 32 along K; in a step two tiles of 16 columns; in a tile 16 pairs along K, of 16
// columns.
at::Tensor pack_weight_bf16_amx(const at::Tensor& weight);

// Refuses a tensor that is not this layout for the call's shape, and a process without AMX.
void check_weight_bf16_amx(const at::Tensor& packed, const LoraCall& call);

// Whether the call's shape is one lora_matmul_amx knows: the halves of a gated product must be whole panels.
bool can_multiply_amx(const LoraCall& call);

// output [rows, output_columns] = activation(scale (x Wᵀ + B(A x)) + bias). All bfloat16, sums in float32; packed is
// the layout above or that of int8 (gemm_int8.h), beside which no row may have a scale. Scale and bias are those of the
// row's segment or of the call, readable up to a whole panel. Without a scale in the call there is none anywhere, and
// every row has the call's bias.
void lora_matmul_amx(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed, const at::Tensor& output);

#ifdef EMBEDMUX_X86
// For run_amx_task: the product of a call whose segments and base bias are set.
Product make_product(const LoraCall& call, const at::Tensor& packed, const Affine* affines);
#endif

}  // namespace embedmux
