// A task is a run of rows by a run of panels. It brings its rows as float32 into blocks of K, and then walks its panels
// block by block: the first tile of rows reads the weights 16 bits wide and leaves them as float32 for the tiles that
// follow, which keep them in the first-level cache. A row's sums wait between blocks in memory, unrounded, so that
// neither blocks nor tiles nor tasks show in its bits.
#include "gemm_widening.h"

#include <array>

#include "gemm_tasks.h"
#include "gemm_widening_kernel.h"
#include "huge_pages.h"
#include "tensors.h"

namespace embedmux {
namespace {

constexpr int64_t kTaskBytes = 2 * 1024 * 1024;  // of a task's rows as float32, at most: they come back panel by panel
constexpr int64_t kTaskRows = 42 * kWideningRows;  // enough that widening costs a hundredth
constexpr int64_t kPackDepth = 64;                 // steps along K that packing turns at a time
constexpr int64_t kLineBytes = 64;

WideningKernel kernel_for(at::ScalarType type) {
  const bool is_float16 = type == at::kHalf;
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return is_float16 ? float16_widening_avx512() : bfloat16_widening_avx512();
  if (isa() >= Isa::avx2) return is_float16 ? float16_widening_avx2() : bfloat16_widening_avx2();
#endif
  return is_float16 ? float16_widening_portable() : bfloat16_widening_portable();
}

struct Product {
  const char* x;
  const uint16_t* packed;
  const float* bias;
  float* sums;
  int64_t rows, inner, columns;
};

// Memory of a task: its rows, the sums of a panel between blocks, the widened weights of a block.
struct TaskMemory {
  float* x;
  float* sums;
  float* widened;
};

// Calls `rows` rows of `floats` from memory, at addresses that need not exist.
void prefetch(const float* source, int64_t stride, int64_t rows, int64_t floats) {
  for (int64_t row = 0; row < rows; ++row, source += stride) {
    for (int64_t place = 0; place < floats; place += kLineBytes / sizeof(float)) __builtin_prefetch(source + place);
  }
}

// All rows of a task by one block of K of one panel. Meanwhile each tile calls the rows of the next from the
// second-level cache, and its share of the next block's weights from memory.
void run_block(const WideningKernel& kernel, const Product& product, const TaskMemory& memory, int64_t first_row,
               int64_t rows, int64_t panel, int64_t step) {
  const int64_t depth = std::min(kWideningDepth, product.inner - step), column = panel * kWideningColumns;
  const int64_t columns = std::min(kWideningColumns, product.columns - column);
  const bool is_last = step + depth == product.inner, is_whole = columns == kWideningColumns;
  const uint16_t* weights = product.packed + (panel * product.inner + step) * kWideningColumns;
  const uint16_t* ahead = weights + depth * kWideningColumns;
  const int64_t tiles = divide_up(rows, kernel.rows), line = kLineBytes / sizeof(uint16_t);
  const int64_t share = round_up(divide_up(depth * kWideningColumns, tiles), line);
  int64_t row = 0;
  for (int64_t tile = 0; tile < tiles; ++tile, ahead += share) {
    const int64_t count = rows / tiles + (tile < rows % tiles);
    const float* x = memory.x + step * rows + row * kWideningDepth;
    float* between = memory.sums + row * kWideningColumns;
    float* output = product.sums + (first_row + row) * product.columns + column;
    float* target = is_last && is_whole ? output : between;
    const int64_t stride = is_last && is_whole ? product.columns : kWideningColumns;
    for (int64_t place = 0; place < share; place += line) __builtin_prefetch(ahead + place, 0, 2);
    prefetch(x + count * kWideningDepth, kWideningDepth, count, kWideningDepth);
    prefetch(target + count * stride, stride, count, kWideningColumns);
    for (int64_t strip = 0; strip < columns; strip += kernel.strip_columns) {
      const void* source = tile == 0 ? static_cast<const void*>(weights + strip) : memory.widened + strip;
      const float* before = step == 0 ? product.bias + column + strip : between + strip;
      (tile == 0 ? kernel.narrow : kernel.wide)[count](
          {x, source, memory.widened + strip, depth, before, step == 0 ? 0 : kWideningColumns, target + strip, stride});
    }
    for (int64_t place = 0; is_last && !is_whole && place < count; ++place) {
      std::copy_n(between + place * kWideningColumns, columns, output + place * product.columns);
    }
    row += count;
  }
}

void run_task(const WideningKernel& kernel, const Product& product, int64_t first_row, int64_t last_row,
              int64_t first_panel, int64_t last_panel) {
  static thread_local Scratch<float> scratch;
  const int64_t rows = last_row - first_row, x_elements = rows * round_up(product.inner, kWideningDepth);
  float* memory = scratch.reserve(x_elements + rows * kWideningColumns + kWideningDepth * kWideningColumns);
  const TaskMemory parts{memory + kWideningDepth * kWideningColumns + rows * kWideningColumns,
                         memory + kWideningDepth * kWideningColumns, memory};
  kernel.gather(product.x + first_row * product.inner * sizeof(uint16_t), product.inner, rows, parts.x);
  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    for (int64_t step = 0; step < product.inner; step += kWideningDepth) {
      run_block(kernel, product, parts, first_row, rows, panel, step);
    }
  }
}

}  // namespace

at::Tensor pack_weight_widening(const at::Tensor& weight) {
  const int64_t columns = weight.size(0), inner = weight.size(1), panels = divide_up(columns, kWideningColumns);
  const at::Tensor packed = empty_on_huge_pages({panels, inner, kWideningColumns}, weight.options());
  const auto* source = static_cast<const uint16_t*>(weight.const_data_ptr());
  auto* target = static_cast<uint16_t*>(packed.mutable_data_ptr());
  parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      uint16_t* place = target + panel * inner * kWideningColumns;
      for (int64_t step = 0; step < inner; step += kPackDepth) {
        const int64_t end = std::min(inner, step + kPackDepth);
        for (int64_t column = 0; column < kWideningColumns; ++column) {
          const int64_t row = panel * kWideningColumns + column;
          for (int64_t k = step; k < end; ++k) {
            place[k * kWideningColumns + column] = row < columns ? source[row * inner + k] : 0;
          }
        }
      }
    }
  });
  return packed;
}

void check_weight_widening(const at::Tensor& packed, const at::Tensor& x, const LoraCall& call) {
  const std::array<int64_t, 3> sizes = {divide_up(call.columns, kWideningColumns), call.inner, kWideningColumns};
  TORCH_CHECK(
      packed.scalar_type() == x.scalar_type() && packed.sizes() == at::IntArrayRef(sizes) && packed.is_contiguous(),
      "packed must be pack_weight of a weight of shape [", call.columns, ", ", call.inner, "] and dtype ",
      x.scalar_type(), ", got ", packed.scalar_type(), " of ", packed.sizes());
}

void multiply_widening(const LoraCall& call, const at::Tensor& x, const at::Tensor& packed,
                       const std::vector<float>& bias, const at::Tensor& sums) {
  const WideningKernel kernel = kernel_for(x.scalar_type());
  const Product product{static_cast<const char*>(x.const_data_ptr()),
                        static_cast<const uint16_t*>(packed.const_data_ptr()),
                        bias.data(),
                        sums.mutable_data_ptr<float>(),
                        call.rows,
                        call.inner,
                        call.columns};
  const int64_t cached_rows = kTaskBytes / (round_up(call.inner, kWideningDepth) * sizeof(float));
  const int64_t most_rows = std::clamp(cached_rows / kWideningRows * kWideningRows, kWideningRows, kTaskRows);
  const TaskGrid grid = cut_tasks(call.rows, divide_up(call.columns, kWideningColumns), most_rows, kWideningRows, 1, 1);
  parallel_for(0, grid.num_tasks(), 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / grid.panel_tasks * grid.rows, panel = task % grid.panel_tasks * grid.panels;
      run_task(kernel, product, row, std::min(call.rows, row + grid.rows), panel,
               std::min(grid.all_panels, panel + grid.panels));
    }
  });
}

}  // namespace embedmux
