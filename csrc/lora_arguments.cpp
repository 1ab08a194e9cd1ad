#include "lora_arguments.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <array>

#include "tensors.h"

namespace embedmux {
namespace {

constexpr int64_t kWholeColumns = 64;  // of the widest panel

struct NamedActivation {
  std::string_view name;
  Activation activation;
  bool is_gated;
};

constexpr std::array<NamedActivation, 8> kActivations = {{{"none", Activation::none, false},
                                                          {"gelu", Activation::gelu, false},
                                                          {"gelu_tanh", Activation::gelu_tanh, false},
                                                          {"silu", Activation::silu, false},
                                                          {"relu", Activation::relu, false},
                                                          {"swiglu", Activation::silu, true},
                                                          {"geglu", Activation::gelu, true},
                                                          {"geglu_tanh", Activation::gelu_tanh, true}}};

NamedActivation find_activation(std::string_view name) {
  std::string known;
  for (const NamedActivation& entry : kActivations) {
    if (entry.name == name) return entry;
    known.append(known.empty() ? "" : ", ").append(entry.name);
  }
  TORCH_CHECK(false, "activation must be one of ", known, ", got \"", name, "\"");
}

// A table [S, J, 3] of int64 beside the slots.
void check_table(const at::Tensor& table, const char* name, at::IntArrayRef sizes) {
  check_rank(table, name, 3);
  check_dtype(table, name, at::kLong);
  check_contiguous(table, name);
  for (int64_t dimension = 0; dimension < 3; ++dimension) {
    if (sizes[dimension] >= 0) check_size(table, name, dimension, sizes[dimension]);
  }
}

LoraSlice read_factors(const int64_t* entry, int64_t slot, int64_t slice, int64_t inner, int64_t width, int64_t size) {
  const LoraSlice factors{entry[0], entry[1], entry[2], -1};
  const auto [a, b, rank, _] = factors;
  const bool fits =
      rank >= 0 && rank <= size && a >= 0 && b >= 0 && a <= size - rank * inner && b <= size - rank * width;
  TORCH_CHECK(rank == 0 || fits, "adapters[", slot, "][", slice, "] must name factors inside the arena of ", size,
              " elements, got A at ", a, ", B at ", b, ", rank ", rank, " for ", inner, " x ", width);
  return factors;
}

void check_override(int64_t offset, const char* what, int64_t slot, int64_t slice, int64_t length, const char* room,
                    int64_t size) {
  TORCH_CHECK(offset == -1 || (offset >= 0 && offset <= size - length), "overrides[", slot, "][", slice, "] must name ",
              what, " of ", length, " elements inside ", room, " of ", size, ", or -1, got ", offset);
}

}  // namespace

LoraRows read_rows(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "x must be float32, bfloat16 or float16, got ", type);
  check_rank(x, "x", 2);
  check_contiguous(x, "x");
  return {type, x.size(0), x.size(1)};
}

void check_lora_tensors(const LoraRows& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                        const at::Tensor& arena, const at::Tensor& adapters, const at::Tensor& segment_offsets,
                        const at::Tensor& segment_slots, at::IntArrayRef slices,
                        const std::optional<at::Tensor>& overrides, const std::optional<at::Tensor>& columns) {
  const auto [type, rows, inner] = x;
  check_rank(weight, "weight", 2);
  check_dtype(weight, "weight", type);
  check_size(weight, "weight", 1, inner);
  TORCH_CHECK(inner > 0 && weight.size(0) > 0, "x and weight must not be empty, got [", rows, ", ", inner, "] and ",
              weight.sizes());
  if (bias.has_value()) {
    check_rank(*bias, "bias", 1);
    check_dtype(*bias, "bias", type);
    check_contiguous(*bias, "bias");
    check_size(*bias, "bias", 0, weight.size(0));
  }
  check_rank(arena, "arena", 1);
  check_dtype(arena, "arena", type);
  check_contiguous(arena, "arena");
  check_table(adapters, "adapters", {-1, static_cast<int64_t>(slices.size()), 3});
  if (overrides.has_value()) {
    check_table(*overrides, "overrides", adapters.sizes());
    TORCH_CHECK(columns.has_value(), "columns must be given where overrides are");
    check_rank(*columns, "columns", 1);
    check_dtype(*columns, "columns", at::kFloat);
    check_contiguous(*columns, "columns");
  }
  check_offsets(segment_offsets, "segment_offsets", rows);
  check_rank(segment_slots, "segment_slots", 1);
  check_dtype(segment_slots, "segment_slots", at::kInt);
  check_contiguous(segment_slots, "segment_slots");
  check_size(segment_slots, "segment_slots", 0, segment_offsets.numel() - 1);
}

LoraCall read_call(const LoraRows& x, const at::Tensor& weight, const at::Tensor& arena, at::IntArrayRef slices,
                   std::string_view activation) {
  const int64_t columns = weight.size(0);
  std::vector<int64_t> starts = {0};
  for (const int64_t width : slices) {
    TORCH_CHECK(width > 0 && width <= columns, "slices must be positive widths that sum to ", columns, ", got ",
                slices);
    starts.push_back(starts.back() + width);
  }
  TORCH_CHECK(starts.back() == columns, "slices must sum to ", columns, ", the weight's rows, got ", slices);
  const NamedActivation found = find_activation(activation);
  TORCH_CHECK(!found.is_gated || (slices.size() == 2 && slices[0] == slices[1]),
              "slices must be two equal widths, gate and up, for ", activation, ", got ", slices);
  return {x.rows,           x.inner,        columns, std::move(starts), {}, arena.const_data_ptr(),
          found.activation, found.is_gated, {}};
}

std::vector<float> base_bias(const LoraCall& call, const std::optional<at::Tensor>& bias) {
  std::vector<float> wide((call.columns + kWholeColumns - 1) / kWholeColumns * kWholeColumns);
  if (!bias.has_value()) return wide;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, bias->scalar_type(), "base_bias", [&] {
    const scalar_t* values = bias->const_data_ptr<scalar_t>();
    std::copy_n(values, call.columns, wide.begin());
  });
  return wide;
}

LoraSlots read_slots(const LoraCall& call, const std::optional<at::Tensor>& bias, const at::Tensor& arena,
                     const at::Tensor& adapters, const at::Tensor& segment_slots,
                     const std::optional<at::Tensor>& overrides, const std::optional<at::Tensor>& columns) {
  const int64_t num_slots = adapters.size(0), num_slices = call.num_slices();
  LoraSlots slots{std::vector<LoraSlice>(num_slots * num_slices), std::vector<SlotColumns>(num_slots),
                  std::vector<bool>(num_slots)};
  std::vector<bool> is_read(num_slots);
  const int32_t* named = segment_slots.const_data_ptr<int32_t>();
  for (int64_t segment = 0; segment < segment_slots.numel(); ++segment) {
    const int64_t slot = named[segment];
    TORCH_CHECK(slot >= -1 && slot < num_slots, "segment_slots must be in -1..", num_slots - 1, ", got ", slot, " at ",
                segment);
    if (slot < 0 || is_read[slot]) continue;
    is_read[slot] = true;
    for (int64_t slice = 0; slice < num_slices; ++slice) {
      const int64_t place = slot * num_slices + slice, start = call.slices[slice],
                    width = call.slices[slice + 1] - start;
      LoraSlice& entry = slots.slices[place];
      entry =
          read_factors(adapters.const_data_ptr<int64_t>() + place * 3, slot, slice, call.inner, width, arena.numel());
      if (!overrides.has_value()) continue;
      const int64_t* given = overrides->const_data_ptr<int64_t>() + place * 3;
      const int64_t weight = given[0], scale = given[1], own_bias = given[2];
      check_override(weight, "a weight", slot, slice, width * call.inner, "the arena", arena.numel());
      check_override(scale, "a scale", slot, slice, width, "columns", columns->numel());
      check_override(own_bias, "a bias", slot, slice, width, "columns", columns->numel());
      entry.weight = weight;
      if (weight >= 0) slots.has_weight[slot] = true;
      if (scale < 0 && own_bias < 0) continue;
      SlotColumns& own = slots.columns[slot];
      if (own.scale.empty()) {
        own.bias = base_bias(call, bias);
        own.scale.assign(own.bias.size(), 1.0F);
        slots.has_columns = true;
      }
      const float* values = columns->const_data_ptr<float>();
      if (scale >= 0) std::copy_n(values + scale, width, own.scale.begin() + start);
      if (own_bias >= 0) std::copy_n(values + own_bias, width, own.bias.begin() + start);
    }
  }
  return slots;
}

}  // namespace embedmux
