// The product by bfloat16 or float16 weights in float32: weights stay 16 bits wide in memory and are widened, exactly,
// a few at a time on their way through the first-level cache.
#pragma once

#include <ATen/ATen.h>

#include "lora_segments.h"

namespace embedmux {

// weight [N, K] bfloat16 or float16 as [N / 64, K, 64], the panels rounded up and filled with zeros: panels of 64
// columns of the product, in a panel one row for each step along K. The same on every instruction set.
at::Tensor pack_weight_widening(const at::Tensor& weight);

// Refuses a tensor that is not this layout for the call's shape and for x's dtype.
void check_weight_widening(const at::Tensor& packed, const at::Tensor& x, const LoraCall& call);

// sums [rows, columns] float32 = x Wᵀ + bias; x [rows, inner] has the dtype of packed, bias whole panels. Each sum
// begins with its bias and runs through K in order, alone, product by product. Products of 16-bit numbers are exact in
// float32, so that fused additions or not, every instruction set gives the same bits.
void multiply_widening(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed,
                       const std::vector<float>& bias, const at::Tensor& sums);

}  // namespace embedmux
