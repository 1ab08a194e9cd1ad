#include "gemm_bf16_dot.h"

#include <algorithm>
#include <array>

#include "gemm_bf16_dot_kernel.h"
#include "gemm_tasks.h"
#include "huge_pages.h"
#include "tensors.h"

namespace embedmux {

#ifdef EMBEDMUX_X86

namespace {

constexpr int64_t kTaskBytes = 512 * 1024;    // of a task's rows, at most: they come back panel by panel
constexpr int64_t kTaskRows = 42 * kDotRows;  // enough that calling a panel from memory costs nothing

const uint16_t* bits_of(const at::Tensor& tensor) {
  return reinterpret_cast<const uint16_t*>(tensor.const_data_ptr<at::BFloat16>());
}

}  // namespace

at::Tensor pack_weight_bf16_dot(const at::Tensor& weight) {
  const int64_t columns = weight.size(0), inner = weight.size(1);
  const int64_t panels = divide_up(columns, kDotColumns), pairs = divide_up(inner, 2);
  const at::Tensor packed = empty_on_huge_pages({panels, pairs, kDotColumns, 2}, weight.options());
  auto* target = static_cast<uint32_t*>(packed.mutable_data_ptr());
  parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t column = panel * kDotColumns;
      pack_dot_panel(bits_of(weight) + column * inner, std::min(kDotColumns, columns - column), inner,
                     target + panel * pairs * kDotColumns);
    }
  });
  return packed;
}

void check_weight_bf16_dot(const at::Tensor& packed, const LoraCall& call) {
  const std::array<int64_t, 4> sizes = {divide_up(call.columns, kDotColumns), divide_up(call.inner, 2), kDotColumns, 2};
  TORCH_CHECK(
      packed.scalar_type() == at::kBFloat16 && packed.sizes() == at::IntArrayRef(sizes) && packed.is_contiguous(),
      "packed must be pack_weight of a weight of shape [", call.columns, ", ", call.inner, "] and dtype ",
      at::kBFloat16, ", got ", packed.scalar_type(), " of ", packed.sizes());
  TORCH_CHECK(isa() == Isa::avx512_bf16, "packed is in the layout of AVX512_BF16, this process uses ", isa_name(isa()),
              "; pack the weight again");
}

void lora_matmul_bf16_dot(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed,
                          const at::Tensor& output) {
  const DotProduct product{call, bits_of(x), bits_of(packed),
                           reinterpret_cast<uint16_t*>(output.mutable_data_ptr<at::BFloat16>()),
                           divide_up(call.inner, 2)};
  const int64_t cached_rows = kTaskBytes / (call.inner * static_cast<int64_t>(sizeof(uint16_t)));
  const int64_t most_rows = std::clamp(cached_rows / kDotRows * kDotRows, kDotRows, kTaskRows);
  const TaskGrid grid = cut_tasks(call.rows, divide_up(call.output_columns(), kDotColumns), most_rows, kDotRows, 1, 1);
  parallel_for(0, grid.num_tasks(), 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / grid.panel_tasks * grid.rows, panel = task % grid.panel_tasks * grid.panels;
      run_dot_task(product,
                   {row, std::min(call.rows, row + grid.rows), panel, std::min(grid.all_panels, panel + grid.panels)});
    }
  });
}

#else

at::Tensor pack_weight_bf16_dot(const at::Tensor& weight) { return weight; }

void check_weight_bf16_dot(const at::Tensor&, const LoraCall&) {
  TORCH_CHECK(false, "packed is in a layout that this processor does not have; pack the weight again");
}

void lora_matmul_bf16_dot(const LoraCall&, const at::Tensor&, const at::Tensor&, const at::Tensor&) {}

#endif

}  // namespace embedmux
