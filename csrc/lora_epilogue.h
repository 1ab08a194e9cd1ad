// What follows a float32 base product: the low-rank part, the activation, the one rounding.
#pragma once

#include <ATen/ATen.h>

#include "lora_segments.h"

namespace embedmux {

// output = activation(base + B(A x)), row by row. base [rows, columns] and x [rows, inner] are float32; output and the
// arena are both float32 or both bfloat16, and output may be base itself.
void lora_epilogue(const LoraCall& call, const at::Tensor& x, const at::Tensor& base, const at::Tensor& output);

}  // namespace embedmux
