// The layout of int8 weights, and the product for processors without AMX (there gemm_amx_kernel.cpp has its own).
#include "gemm_int8.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "gemm_int8_kernel.h"
#include "huge_pages.h"
#include "simd.h"
#include "tensors.h"

namespace embedmux {
namespace {

constexpr int64_t kTaskRows = 64;        // their codes and a panel's stay in the second-level cache
constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23: adding it rounds to a whole number, ties to even

// Codes of one row, zeros behind it up to a whole step.
RowScale quantize_row(const float* x, int64_t inner, uint8_t* codes) {
  float low = 0.0F, high = 0.0F;
  uint32_t largest = 0;
  for (int64_t k = 0; k < inner; ++k) {
    low = x[k] < low ? x[k] : low;
    high = x[k] > high ? x[k] : high;
    uint32_t bits;
    std::memcpy(&bits, x + k, sizeof(bits));
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  std::memset(codes, 0, int8_steps(inner) * kInt8Depth);
  if (largest >= 0x7f800000) return {std::numeric_limits<float>::quiet_NaN(), 0.0F};  // infinity or NaN: so is the row
  const float span = high - low;
  if (span < kInt8LeastSpan) return {0.0F, 0.0F};
  const float inverse = kInt8Steps / span, scale = span / kInt8Steps;
  const float zero = std::nearbyint(-low * inverse + 0.01F);
  for (int64_t k = 0; k < inner; ++k) {
    const float code = (x[k] * inverse + zero + kRounder) - kRounder;
    codes[k] = static_cast<uint8_t>(static_cast<int32_t>(code < 0.0F ? 0.0F : code > 255.0F ? 255.0F : code));
  }
  return {scale, -scale * zero};
}

void quantize_panel(const float* weight, int64_t columns, int64_t inner, int8_t* panel) {
  std::memset(panel, 0, int8_panel_bytes(inner));
  auto* scales = reinterpret_cast<float*>(panel + int8_steps(inner) * kInt8StepBytes);
  for (int64_t column = 0; column < columns; ++column) {
    const float* row = weight + column * inner;
    float largest = 0.0F;
    for (int64_t k = 0; k < inner; ++k) largest = std::max(largest, std::abs(row[k]));
    const float scale = largest / 127.0F, inverse = largest > 0.0F ? 127.0F / largest : 0.0F;
    int64_t sum = 0;
    for (int64_t k = 0; k < inner; ++k) {
      const auto code = static_cast<int8_t>(std::nearbyint(row[k] * inverse));
      int8_t* tile = panel + k / kInt8Depth * kInt8StepBytes + column / 16 * (kInt8StepBytes / 2);
      tile[k % kInt8Depth / 4 * 64 + column % 16 * 4 + k % 4] = code;
      sum += code;
    }
    scales[column] = scale;
    scales[kInt8Columns + column] = static_cast<float>(sum) * scale;
  }
}

}  // namespace

at::Tensor pack_weight_int8(const at::Tensor& weight) {
  check_rank(weight, "weight", 2);
  TORCH_CHECK(weight.is_floating_point(), "weight must be float32, bfloat16 or float16, got ", weight.scalar_type());
  const int64_t columns = weight.size(0), inner = weight.size(1), panels = divide_up(columns, kInt8Columns);
  TORCH_CHECK(inner > 0 && inner <= (1 << 16),
              "weight must have 1 to 65536 columns, so that sums of codes fit 32 bits, "
              "got ",
              inner);
  const at::Tensor wide = weight.to(at::kFloat).contiguous();
  const float* source = wide.const_data_ptr<float>();
  const at::Tensor packed = empty_on_huge_pages({panels, int8_panel_bytes(inner)}, weight.options().dtype(at::kChar));
  auto* target = packed.mutable_data_ptr<int8_t>();
  parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      quantize_panel(source + panel * kInt8Columns * inner, std::min(kInt8Columns, columns - panel * kInt8Columns),
                     inner, target + panel * int8_panel_bytes(inner));
    }
  });
  return packed;
}

void check_weight_int8(const at::Tensor& packed, const LoraCall& call) {
  const std::array<int64_t, 2> sizes = {divide_up(call.columns, kInt8Columns), int8_panel_bytes(call.inner)};
  TORCH_CHECK(packed.scalar_type() == at::kChar && packed.sizes() == at::IntArrayRef(sizes) && packed.is_contiguous(),
              "packed must be pack_weight_int8 of a weight of shape [", call.columns, ", ", call.inner, "], got ",
              packed.scalar_type(), " of ", packed.sizes());
}

void multiply_int8(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed, const std::vector<float>& bias,
                   const at::Tensor& sums) {
  const at::Tensor wide = x.to(at::kFloat).contiguous();
  const float* source = wide.const_data_ptr<float>();
  const auto* panels = packed.const_data_ptr<int8_t>();
  float* target = sums.mutable_data_ptr<float>();
  const Int8Kernel kernel = choose_int8_kernel();
  const int64_t steps = int8_steps(call.inner), depth = steps * kInt8Depth;
  const TaskGrid grid = cut_tasks(call.rows, divide_up(call.columns, kInt8Columns), kTaskRows, kInt8Rows, 1, 1);
  parallel_for(0, grid.num_tasks(), 1, [&](int64_t first, int64_t last) {
    static thread_local Scratch<uint8_t> memory;
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / grid.panel_tasks * grid.rows, rows = std::min(grid.rows, call.rows - row);
      const int64_t panel = task % grid.panel_tasks * grid.panels;
      uint8_t* codes = memory.reserve(round_up(rows, kInt8Rows) * depth);
      std::vector<RowScale> scales(round_up(rows, kInt8Rows));
      for (int64_t i = 0; i < rows; ++i) {
        scales[i] = quantize_row(source + (row + i) * call.inner, call.inner, codes + i * depth);
      }
      std::memset(codes + rows * depth, 0, (round_up(rows, kInt8Rows) - rows) * depth);
      for (int64_t place = panel; place < std::min(grid.all_panels, panel + grid.panels); ++place) {
        const int64_t column = place * kInt8Columns, width = std::min(kInt8Columns, call.columns - column);
        for (int64_t i = 0; i < rows; i += kInt8Rows) {
          float block[kInt8Rows * kInt8Columns];
          kernel(codes + i * depth, depth, panels + place * int8_panel_bytes(call.inner), steps, &scales[i],
                 bias.data() + column, block);
          for (int64_t r = 0; r < std::min(kInt8Rows, rows - i); ++r) {
            std::memcpy(target + (row + i + r) * call.columns + column, block + r * kInt8Columns,
                        width * sizeof(float));
          }
        }
      }
    }
  });
}

}  // namespace embedmux
