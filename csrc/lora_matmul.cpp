// embedmux::lora_matmul and embedmux::pack_weight on the CPU: the choice of the base product, the call.
//
// A bfloat16 weight goes through the fused tile kernel on a processor with AMX (gemm_amx.cpp), through that for pairs
// on one with AVX512_BF16 alone (gemm_bf16_dot.cpp). Every other case is a product in float32 and one pass over its
// result (lora_epilogue.cpp), which rounds once. 16-bit weights are widened on the way (gemm_widening.cpp); float32 is
// oneDNN's packed linear, whose row bits do not depend on the number of rows. oneDNN's own bfloat16 product on AMX
// changes a row's bits with the number of rows.
//
// Rows of a slot with a merged weight are a product of their own: the same code, another weight.
#include <ATen/core/dispatch/Dispatcher.h>

#include <limits>

#include "gemm_amx.h"
#include "gemm_bf16_dot.h"
#include "gemm_int8.h"
#include "gemm_widening.h"
#include "lora_arguments.h"
#include "lora_epilogue.h"
#include "lora_segments.h"
#include "ops.h"
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

// For the products in float32: oneDNN's layout, or that of 16-bit weights.
at::Tensor pack_unfused(const at::Tensor& weight) {
  check_contiguous(weight, "weight");
  if (weight.scalar_type() != at::kFloat) return pack_weight_widening(weight);
  if (!at::hasMKLDNN()) return weight.clone();
  static const auto pack = find_operator<PackLinear>("mkldnn::_reorder_linear_weight");
  return pack.call(weight, std::nullopt);
}

at::Tensor pack_weight(const at::Tensor& weight) {
  check_rank(weight, "weight", 2);
  check_contiguous(weight, "weight");
  const at::ScalarType type = weight.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "weight must be float32, bfloat16 or float16, got ", type);
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  if (type == at::kBFloat16 && isa() == Isa::amx) return pack_weight_bf16_amx(weight);
  if (type == at::kBFloat16 && isa() == Isa::avx512_bf16) return pack_weight_bf16_dot(weight);
  return pack_unfused(weight);
}

// x Wᵀ + bias, all float32.
at::Tensor base_product(const at::Tensor& x, const at::Tensor& packed, const std::optional<at::Tensor>& bias) {
  if (!packed.is_mkldnn()) return at::linear(x, packed, bias);
  static const auto linear = find_operator<PackedLinear>("mkldnn::_linear_pointwise");
  // One row takes another path inside oneDNN, with other sums; two rows take the path of two thousand.
  const at::Tensor rows = x.size(0) == 1 ? x.expand({2, x.size(1)}).contiguous() : x;
  const at::Tensor y = linear.call(rows, packed, bias, "none", c10::List<std::optional<at::Scalar>>(), std::nullopt);
  return y.narrow(0, 0, x.size(0));
}

// The weight of a slot that brings merged slices, the others as the base model has them.
at::Tensor merged_weight(const LoraCall& call, const LoraSlice* slices, const at::Tensor& weight,
                         const at::Tensor& arena) {
  std::vector<at::Tensor> parts;
  for (int64_t slice = 0; slice < call.num_slices(); ++slice) {
    const int64_t start = call.slices[slice], width = call.slices[slice + 1] - start, own = slices[slice].weight;
    if (own < 0) check_contiguous(weight, "weight");
    parts.push_back(own < 0 ? weight.narrow(0, start, width)
                            : arena.narrow(0, own, width * call.inner).view({width, call.inner}));
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

// Consecutive rows that one product computes: of one slot that stands apart, or (slot -1) of any others.
struct Run {
  int64_t first_row;
  int64_t last_row;
  int64_t slot;
  std::vector<LoraSegment> segments;  // rows count from first_row
};

// A fused kernel scales and shifts each row as its segment wants, so there only a weight sets a slot apart. oneDNN
// adds the bias itself, which must not be in the sums that a slot scales or gives another bias.
std::vector<Run> cut_runs(const LoraCall& call, const LoraSlots& slots, const at::Tensor& segment_offsets,
                          const at::Tensor& segment_slots, bool is_fused) {
  const int32_t* offsets = segment_offsets.const_data_ptr<int32_t>();
  std::vector<Run> runs;
  for (int64_t segment = 0; segment < segment_slots.numel(); ++segment) {
    const int64_t first = offsets[segment], last = offsets[segment + 1];
    if (first == last) continue;
    const int64_t slot = segment_slots.const_data_ptr<int32_t>()[segment];
    const bool is_apart =
        slot >= 0 && (slots.has_weight[slot] || (!is_fused && slots.columns[slot].affine().scale != nullptr));
    if (runs.empty() || runs.back().slot != (is_apart ? slot : -1))
      runs.push_back({first, first, is_apart ? slot : -1, {}});
    Run& run = runs.back();
    run.last_row = last;
    if (slot < 0) continue;
    const LoraSlice* slices = slots.slices.data() + slot * call.num_slices();
    const int64_t begin = first - run.first_row, end = last - run.first_row;
    if (!run.segments.empty() && run.segments.back().slices == slices && run.segments.back().last_row == begin) {
      run.segments.back().last_row = end;
    } else {
      Affine affine = slots.columns[slot].affine();
      if (is_fused && affine.scale == nullptr) affine = call.affine;
      run.segments.push_back({begin, end, slices, affine});
    }
  }
  return runs;
}

// The float32 product and its epilogue; y is undefined where the result may be the product's own tensor.
at::Tensor multiply_unfused(const LoraCall& call, const at::Tensor& x, const at::Tensor& layout,
                            const std::optional<at::Tensor>& bias, at::Tensor y) {
  const bool has_own_columns = !call.segments.empty() && call.segments[0].affine.scale != nullptr;
  const std::optional<at::Tensor> shared_bias = has_own_columns ? std::nullopt : bias;
  at::Tensor base, wide_x;
  if (layout.scalar_type() == at::kChar) {
    if (!call.segments.empty()) wide_x = x.to(at::kFloat);
    base = at::empty({call.rows, call.columns}, x.options().dtype(at::kFloat));
    multiply_int8(call, x, layout, base_bias(call, shared_bias), base);
  } else if (x.scalar_type() == at::kFloat) {
    wide_x = x;
    base = base_product(x, layout, shared_bias);
    if (!y.defined() && !call.is_gated) y = base;
  } else {
    if (!call.segments.empty()) wide_x = x.to(at::kFloat);
    base = at::empty({call.rows, call.columns}, x.options().dtype(at::kFloat));
    multiply_widening(call, x, layout, base_bias(call, shared_bias), base);
  }
  if (!y.defined()) y = at::empty({call.rows, call.output_columns()}, x.options());
  lora_epilogue(call, wide_x, base, y);
  return y;
}

}  // namespace

at::Tensor lora_matmul(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       const at::Tensor& arena, const at::Tensor& adapters, const at::Tensor& segment_offsets,
                       const at::Tensor& segment_slots, at::IntArrayRef slices, std::string_view activation,
                       const std::optional<at::Tensor>& packed, const std::optional<at::Tensor>& overrides,
                       const std::optional<at::Tensor>& columns) {
  const LoraRows given = read_rows(x);
  check_lora_tensors(given, weight, bias, arena, adapters, segment_offsets, segment_slots, slices, overrides, columns);
  LoraCall call = read_call(given, weight, arena, slices, activation);
  const LoraSlots slots = read_slots(call, bias, arena, adapters, segment_slots, overrides, columns);

  at::AutoDispatchBelowADInplaceOrView no_autograd;
  at::Tensor layout = packed.has_value() ? *packed : pack_weight(weight);
  const bool is_int8 = layout.scalar_type() == at::kChar, is_bfloat16 = x.scalar_type() == at::kBFloat16;
  const bool is_amx = is_bfloat16 && (isa() == Isa::amx || layout.dim() == 5);  // the layout is checked below
  const bool is_dot = is_bfloat16 && !is_amx && !is_int8 && (isa() == Isa::avx512_bf16 || layout.dim() == 4);
  bool is_fused = is_amx || is_dot;
  if (is_int8) {
    check_weight_int8(layout, call);
    is_fused = is_fused && can_multiply_amx(call) && !slots.has_columns;
  } else if (is_amx) {
    check_weight_bf16_amx(layout, call);
    // Halves of odd width, which no known model has, take the other product and pack the weight for it each time.
    is_fused = can_multiply_amx(call);
    if (!is_fused) layout = pack_unfused(weight);
  } else if (is_dot) {
    check_weight_bf16_dot(layout, call);
  } else if (x.scalar_type() == at::kFloat) {
    TORCH_CHECK(layout.dim() == 2 && layout.size(0) == call.columns && layout.size(1) == call.inner &&
                    layout.scalar_type() == at::kFloat,
                "packed must be pack_weight of a weight of shape ", weight.sizes(), " and dtype ", x.scalar_type(),
                ", got ", layout.scalar_type(), " of ", layout.sizes());
  } else {
    check_weight_widening(layout, x, call);
  }
  std::vector<float> wide_bias, ones;
  if (is_fused) {
    wide_bias = base_bias(call, bias);
    if (slots.has_columns) ones.assign(wide_bias.size(), 1.0F);
    call.affine = {ones.empty() ? nullptr : ones.data(), wide_bias.data()};
  }

  const std::vector<Run> runs = cut_runs(call, slots, segment_offsets, segment_slots, is_fused);
  at::Tensor y;
  if (is_fused || runs.size() != 1) y = at::empty({call.rows, call.output_columns()}, x.options());
  for (const Run& run : runs) {
    call.rows = run.last_row - run.first_row;
    call.segments = run.segments;
    const bool is_whole = runs.size() == 1;
    const at::Tensor part = is_whole ? x : x.narrow(0, run.first_row, call.rows);
    const at::Tensor target = is_whole ? y : y.narrow(0, run.first_row, call.rows);
    at::Tensor weight_layout = layout;
    if (run.slot >= 0 && slots.has_weight[run.slot]) {
      // Packed at each call: the arena may have changed since the last one.
      const at::Tensor merged = merged_weight(call, run.segments[0].slices, weight, arena);
      weight_layout = is_int8 ? pack_weight_int8(merged) : is_fused ? pack_weight(merged) : pack_unfused(merged);
    }
    if (is_dot) {
      lora_matmul_bf16_dot(call, part, weight_layout, target);
    } else if (is_fused) {
      lora_matmul_amx(call, part, weight_layout, target);
    } else if (const at::Tensor result = multiply_unfused(call, part, weight_layout, bias, target); !y.defined()) {
      return result;
    }
  }
  return y;
}

}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) {
  library.impl("lora_matmul", embedmux::lora_matmul);
  library.impl("pack_weight", embedmux::pack_weight);
  library.impl("pack_weight_int8", embedmux::pack_weight_int8);
}

// oneDNN's packed weight is an opaque tensor with a dispatch key of its own.
TORCH_LIBRARY_IMPL(embedmux, MkldnnCPU, library) { library.impl("lora_matmul", embedmux::lora_matmul); }
