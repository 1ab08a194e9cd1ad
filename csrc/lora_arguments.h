// Checking the arguments of lora_matmul and reading the tables of its adapters.
#pragma once

#include <ATen/ATen.h>

#include "lora_segments.h"

namespace embedmux {

// The rows that a linear multiplies.
struct LoraRows {
  at::ScalarType type;
  int64_t rows, inner;
};

// Checks x itself.
LoraRows read_rows(const at::Tensor& x);

// The shapes, dtypes and layouts of all other tensors but the packed weight.
void check_lora_tensors(const LoraRows& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        const at::Tensor& arena, const at::Tensor& adapters, const at::Tensor& segment_offsets,
                        const at::Tensor& segment_slots, at::IntArrayRef slices,
                        const std::optional<at::Tensor>& overrides, const std::optional<at::Tensor>& columns);

// The call as far as it does not depend on segments; refuses unknown activations and slices that do not fit.
LoraCall read_call(const LoraRows& x, const at::Tensor& weight, const at::Tensor& arena, at::IntArrayRef slices,
                   std::string_view activation);

// Float vectors of a slot's columns, rounded up to whole panels; empty where it has neither scale nor bias.
struct SlotColumns {
  std::vector<float> scale, bias;

  Affine affine() const { return scale.empty() ? Affine{} : Affine{scale.data(), bias.data()}; }
};

// What the slots named by the segments bring; the entries of other slots are not read.
struct LoraSlots {
  std::vector<LoraSlice> slices;     // [slots, slices]
  std::vector<SlotColumns> columns;  // [slots]
  std::vector<bool> has_weight;      // [slots]
  bool has_columns = false;          // of any slot
};

LoraSlots read_slots(const LoraCall& call, const std::optional<at::Tensor>& bias, const at::Tensor& arena,
                     const at::Tensor& adapters, const at::Tensor& segment_slots,
                     const std::optional<at::Tensor>& overrides, const std::optional<at::Tensor>& columns);

// The base model's bias as float, 0 without one, rounded up to whole panels.
std::vector<float> base_bias(const LoraCall& call, const std::optional<at::Tensor>& bias);

}  // namespace embedmux
