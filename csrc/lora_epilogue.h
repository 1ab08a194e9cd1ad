// What follows a float32 base product: the low-rank part, the activation, the one rounding.
#pragma once

#include <ATen/ATen.h>

#include "lora_segments.h"

namespace embedmux {

// output = activation(scale (base + B(A x)) + bias), row by row; scale and bias are the segment's, and rows that have
// none keep base's. base [rows, columns] and x [rows, inner] are float32, x undefined where the call has no segments.
// base is scratch: it holds the sums before the activation. output and the arena have one dtype, float32, bfloat16 or
// float16, and output may be base itself.
void lora_epilogue(const LoraCall& call, const at::Tensor& x, const at::Tensor& base, const at::Tensor& output);

}  // namespace embedmux
