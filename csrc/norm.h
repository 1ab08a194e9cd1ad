// What add_layer_norm and pre_norm share; norm.cpp holds it.
#pragma once

#include <optional>

#include "tensors.h"

namespace embedmux {

enum class NormKind { layer, rms };

// The arguments of a norm after its checks. `residual`, `bias` and `sum` may be undefined. So may `x_rows` and
// `residual_rows`, int64 as long as `out`: the rows of x and residual that are meant, else all in their order.
struct NormTensors {
  at::Tensor x, residual, weight, bias, out, sum, x_rows, residual_rows;
};

// Checks the arguments as the contract of the norms has it and gives `out` its memory, and `sum` too if it is wanted.
NormTensors check_norm(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, double eps, bool wants_sum);

// Fills tensors.out, and tensors.sum where it is defined.
void run_norm(const NormTensors& tensors, double eps, NormKind kind);

}  // namespace embedmux
