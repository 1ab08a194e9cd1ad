#include "gemm_amx.h"

#include <algorithm>
#include <array>

#include "gemm_amx_kernel.h"
#include "gemm_int8.h"
#include "huge_pages.h"
#include "simd.h"
#include "tensors.h"

namespace embedmux {

#ifdef EMBEDMUX_X86

at::Tensor pack_weight_bf16_amx(const at::Tensor& weight) {
  const int64_t columns = weight.size(0), inner = weight.size(1);
  const int64_t panels = divide_up(columns, kPanelColumns), steps = divide_up(inner, kTileDepth);
  const at::Tensor packed = empty_on_huge_pages({panels, steps, 2, kTileRows, kTileDepth}, weight.options());
  const auto* source = reinterpret_cast<const uint16_t*>(weight.const_data_ptr<at::BFloat16>());
  auto* target = reinterpret_cast<uint16_t*>(packed.mutable_data_ptr<at::BFloat16>());
  parallel_for(0, panels * 2, 2, [&](int64_t first, int64_t last) {
    for (int64_t half = first; half < last; ++half) {
      for (int64_t step = 0; step < steps; ++step) {
        transpose_to_pairs(source + half * kTileRows * inner + step * kTileDepth, inner, columns - half * kTileRows,
                           inner - step * kTileDepth,
                           target + (half / 2 * steps + step) * kStepElements + half % 2 * kTileElements);
      }
    }
  });
  return packed;
}

void check_weight_bf16_amx(const at::Tensor& packed, const LoraCall& call) {
  const int64_t panels = divide_up(call.columns, kPanelColumns), steps = divide_up(call.inner, kTileDepth);
  const std::array<int64_t, 5> sizes = {panels, steps, 2, kTileRows, kTileDepth};
  TORCH_CHECK(
      packed.scalar_type() == at::kBFloat16 && packed.sizes() == at::IntArrayRef(sizes) && packed.is_contiguous(),
      "packed must be pack_weight of a weight of shape [", call.columns, ", ", call.inner, "], got ",
      packed.scalar_type(), " of ", packed.sizes());
  TORCH_CHECK(isa() == Isa::amx, "packed is in the layout of AMX, this process uses ", isa_name(isa()),
              "; pack the weight again");
}

bool can_multiply_amx(const LoraCall& call) { return !call.is_gated || call.columns % (2 * kPanelColumns) == 0; }

Product make_product(const LoraCall& call, const at::Tensor& packed, const Affine* affines) {
  const bool is_int8 = packed.scalar_type() == at::kChar;
  const int64_t steps = is_int8 ? int8_steps(call.inner) : divide_up(call.inner, kTileDepth);
  return {call,
          static_cast<const uint16_t*>(packed.const_data_ptr()),
          affines,
          is_int8,
          steps,
          is_int8 ? int8_panel_bytes(call.inner) / 2 : steps * kStepElements,
          call.is_gated ? call.columns / 2 / kPanelColumns : 0};
}

void lora_matmul_amx(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed, const at::Tensor& output) {
  const auto bits = [](const at::Tensor& tensor) {
    return reinterpret_cast<const uint16_t*>(tensor.const_data_ptr<at::BFloat16>());
  };
  std::vector<Affine> affines;
  if (call.affine.scale != nullptr) {
    affines.assign(call.rows, call.affine);
    for (const LoraSegment& segment : call.segments) {
      std::fill(affines.begin() + segment.first_row, affines.begin() + segment.last_row, segment.affine);
    }
  }
  const Product product = make_product(call, packed, affines.empty() ? nullptr : affines.data());
  const TaskGrid grid = cut_amx_tasks(product, call.rows, at::get_num_threads());
  auto* results = reinterpret_cast<uint16_t*>(output.mutable_data_ptr<at::BFloat16>());
  parallel_for(0, grid.num_tasks(), 1, [&](int64_t first, int64_t last) {
    const HeldTiles tiles;
    for (int64_t index = first; index < last; ++index) {
      const AmxTask task = amx_task(grid, index, call.rows);
      run_amx_task(
          product, task,
          {bits(x) + task.first_row * call.inner, false, results + task.first_row * call.output_columns(), false});
    }
  });
}

#else

at::Tensor pack_weight_bf16_amx(const at::Tensor& weight) { return weight; }

void check_weight_bf16_amx(const at::Tensor&, const LoraCall&) {
  TORCH_CHECK(false, "packed is in the layout of AMX, which this processor does not have; pack the weight again");
}

bool can_multiply_amx(const LoraCall&) { return false; }

void lora_matmul_amx(const LoraCall&, const at::Tensor&, const at::Tensor&, const at::Tensor&) {}

#endif

}  // namespace embedmux
