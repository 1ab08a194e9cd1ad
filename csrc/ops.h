// The CPU kernels of ops that other ops are made of; each stands in the file of its name.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace embedmux {

at::Tensor lora_matmul(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const at::Tensor& arena, const at::Tensor& adapters, const at::Tensor& segment_offsets,
                       const at::Tensor& segment_slots, at::IntArrayRef slices, std::string_view activation,
                       const std::optional<at::Tensor>& packed, const std::optional<at::Tensor>& overrides,
                       const std::optional<at::Tensor>& columns);

at::Tensor attention_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                         bool causal, int64_t window, double scale, const std::optional<at::Tensor>& prefix_k,
                         const std::optional<at::Tensor>& prefix_v, const std::optional<at::Tensor>& prefix_offsets,
                         const std::optional<at::Tensor>& prefix_of, const std::optional<at::Tensor>& num_keys,
                         const std::optional<at::Tensor>& asked);

at::Tensor add_layer_norm_cpu(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, double eps);

}  // namespace embedmux
