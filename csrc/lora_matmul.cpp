// embedmux::lora_matmul and embedmux::pack_weight on the CPU: checks, the choice of the base product, the call.
//
// A bfloat16 weight on a processor with AMX goes through the fused tile kernel (gemm_amx.cpp). Every other case is a
// float32 product by oneDNN's packed linear, whose row bits do not depend on the number of rows, and one pass over the
// result (lora_epilogue.cpp). There a bfloat16 weight is held as float32: without AMX that is the faster product, and
// the result is rounded once. oneDNN's own bfloat16 product on AMX changes a row's bits with the number of rows.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <limits>

#include "gemm_amx.h"
#include "lora_epilogue.h"
#include "lora_segments.h"
#include "simd.h"
#include "tensors.h"

namespace embedmux {
namespace {

using PackLinear = at::Tensor(const at::Tensor&, std::optional<int64_t>);
using PackedLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                std::string_view, c10::List<std::optional<at::Scalar>>,
                                std::optional<std::string_view>);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

at::Tensor pack_weight(const at::Tensor& weight) {
  check_rank(weight, "weight", 2);
  check_contiguous(weight, "weight");
  const at::ScalarType type = weight.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "weight must be float32 or bfloat16, got ", type);
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  if (type == at::kBFloat16 && isa() == Isa::amx) return pack_weight_bf16_amx(weight);
  const at::Tensor wide = weight.to(at::kFloat);
  if (!at::hasMKLDNN()) return type == at::kFloat ? wide.clone() : wide;
  static const auto pack = find_operator<PackLinear>("mkldnn::_reorder_linear_weight");
  return pack.call(wide, std::nullopt);
}

// x Wᵀ + bias in float32.
at::Tensor base_product(const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& bias) {
  if (!packed.is_mkldnn()) return at::linear(x, packed, bias);
  static const auto linear = find_operator<PackedLinear>("mkldnn::_linear_pointwise");
  // One row takes another path inside oneDNN, with other sums; two rows take the path of two thousand.
  const at::Tensor rows = x.size(0) == 1 ? x.expand({2, x.size(1)}).contiguous() : x;
  const at::Tensor y = linear.call(rows, packed, bias, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
  return y.narrow(0, 0, x.size(0));
}

// Factors of every slot that a segment names, checked against the arena; filled in once a slot.
std::vector<LoraFactors> read_factors(const at::Tensor& adapters, const std::vector<bool>& used,
                                      const std::vector<int64_t>& slices, int64_t inner, int64_t arena_size) {
  const int64_t num_slices = adapters.size(1);
  const int64_t* entry = adapters.const_data_ptr<int64_t>();
  std::vector<LoraFactors> factors(used.size() * num_slices);
  for (size_t i = 0; i < factors.size(); ++i, entry += 3) {
    if (!used[i / num_slices]) continue;
    const int64_t slice = i % num_slices, width = slices[slice + 1] - slices[slice];
    const auto [a, b, rank] = factors[i] = {entry[0], entry[1], entry[2]};
    const bool fits = rank >= 0 && rank <= arena_size && a >= 0 && b >= 0 && a + rank * inner <= arena_size &&
                      b + rank * width <= arena_size;
    TORCH_CHECK(rank == 0 || fits, "adapters[", i / num_slices, "][", slice, "] must name factors inside the arena of ",
                arena_size, " elements, got A at ", a, ", B at ", b, ", rank ", rank, " for ", inner, " x ", width);
  }
  return factors;
}

std::vector<int64_t> slice_starts(at::IntArrayRef slices, int64_t columns) {
  std::vector<int64_t> starts = {0};
  for (const int64_t width : slices) {
    TORCH_CHECK(width > 0 && width <= columns, "slices must be positive widths that sum to ", columns, ", got ",
                slices);
    starts.push_back(starts.back() + width);
  }
  TORCH_CHECK(starts.back() == columns, "slices must sum to ", columns, ", the weight's rows, got ", slices);
  return starts;
}

void check_tensors(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   const at::Tensor& arena, const at::Tensor& adapters, const at::Tensor& segment_offsets,
                   const at::Tensor& segment_slots, at::IntArrayRef slices) {
  const at::ScalarType type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16, "x must be float32 or bfloat16, got ", type);
  check_rank(x, "x", 2);
  check_contiguous(x, "x");
  check_rank(weight, "weight", 2);
  check_dtype(weight, "weight", type);
  check_contiguous(weight, "weight");
  check_size(weight, "weight", 1, x.size(1));
  TORCH_CHECK(x.size(1) > 0 && weight.size(0) > 0, "x and weight must not be empty, got ", x.sizes(), " and ",
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
  check_rank(adapters, "adapters", 3);
  check_dtype(adapters, "adapters", at::kLong);
  check_contiguous(adapters, "adapters");
  check_size(adapters, "adapters", 1, static_cast<int64_t>(slices.size()));
  check_size(adapters, "adapters", 2, 3);
  check_offsets(segment_offsets, "segment_offsets", x.size(0));
  check_rank(segment_slots, "segment_slots", 1);
  check_dtype(segment_slots, "segment_slots", at::kInt);
  check_contiguous(segment_slots, "segment_slots");
  check_size(segment_slots, "segment_slots", 0, segment_offsets.numel() - 1);
}

at::Tensor lora_matmul(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const at::Tensor& arena, const at::Tensor& adapters, const at::Tensor& segment_offsets,
                       const at::Tensor& segment_slots, at::IntArrayRef slices, std::string_view activation,
                       const std::optional<at::Tensor>& packed, const std::optional<at::Tensor>& overrides,
                       const std::optional<at::Tensor>& columns) {
  TORCH_CHECK(!overrides.has_value(), "overrides are not computed yet");
  check_tensors(x, weight, bias, arena, adapters, segment_offsets, segment_slots, slices);
  TORCH_CHECK(activation == "none" || activation == "gelu", "activation must be \"none\" or \"gelu\", got \"",
              activation, "\"");
  LoraCall call{
      x.size(0),           x.size(1), weight.size(0), slice_starts(slices, weight.size(0)), {}, arena.const_data_ptr(),
      activation == "gelu"};

  const int32_t* offsets = segment_offsets.const_data_ptr<int32_t>();
  const int32_t* slots = segment_slots.const_data_ptr<int32_t>();
  std::vector<bool> used(adapters.size(0));
  for (int64_t segment = 0; segment < segment_slots.numel(); ++segment) {
    TORCH_CHECK(slots[segment] >= -1 && slots[segment] < adapters.size(0), "segment_slots must be in -1..",
                adapters.size(0) - 1, ", got ", slots[segment], " at ", segment);
    if (slots[segment] >= 0) used[slots[segment]] = true;
  }
  const std::vector<LoraFactors> factors = read_factors(adapters, used, call.slices, call.inner, arena.numel());
  for (int64_t segment = 0; segment < segment_slots.numel(); ++segment) {
    if (slots[segment] < 0 || offsets[segment] == offsets[segment + 1]) continue;
    const LoraFactors* first = factors.data() + slots[segment] * call.num_slices();
    if (!call.segments.empty() && call.segments.back().factors == first &&
        call.segments.back().last_row == offsets[segment]) {
      call.segments.back().last_row = offsets[segment + 1];
    } else {
      call.segments.push_back({offsets[segment], offsets[segment + 1], first});
    }
  }

  at::AutoDispatchBelowADInplaceOrView no_autograd;
  const at::Tensor layout = packed.has_value() ? *packed : pack_weight(weight);
  if (layout.scalar_type() == at::kBFloat16 && x.scalar_type() == at::kBFloat16) {
    check_weight_bf16_amx(layout, call);
    const at::Tensor y = at::empty({call.rows, call.columns}, x.options());
    lora_matmul_bf16_amx(call, x, layout, bias, y);
    return y;
  }
  TORCH_CHECK(layout.dim() == 2 && layout.size(0) == call.columns && layout.size(1) == call.inner &&
                  layout.scalar_type() == at::kFloat,
              "packed must be pack_weight of a weight of shape ", weight.sizes(), ", got ", layout.scalar_type(),
              " of ", layout.sizes());
  if (call.rows == 0) return at::empty({0, call.columns}, x.options());
  const at::Tensor wide_x = x.to(at::kFloat);
  const std::optional<at::Tensor> wide_bias = bias.has_value() ? std::optional(bias->to(at::kFloat)) : std::nullopt;
  const at::Tensor base = base_product(wide_x, layout, wide_bias);
  const bool in_place = x.scalar_type() == at::kFloat;
  if (in_place && call.segments.empty() && !call.gelu) return base;
  const at::Tensor y = in_place ? base : at::empty({call.rows, call.columns}, x.options());
  lora_epilogue(call, wide_x, base, y);
  return y;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) {
  library.impl("lora_matmul", embedmux::lora_matmul);
  library.impl("pack_weight", embedmux::pack_weight);
}

// oneDNN's packed weight is an opaque tensor with a dispatch key of its own.
TORCH_LIBRARY_IMPL(embedmux, MkldnnCPU, library) { library.impl("lora_matmul", embedmux::lora_matmul); }
