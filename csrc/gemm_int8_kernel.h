// Four rows of codes by one panel, for each instruction set.
#pragma once

#include <cstdint>

#include "gemm_int8.h"

namespace embedmux {

constexpr int64_t kInt8Rows = 4;

// block [4, 32] = scale of the row (x's codes by the panel's, and what its zero point takes off) + bias [32]. The rows
// of codes lie `depth` bytes apart.
using Int8Kernel = void (*)(const uint8_t* codes, int64_t depth, const int8_t* panel, int64_t steps,
                            const RowScale* rows, const float* bias, float* block);

Int8Kernel choose_int8_kernel();

}  // namespace embedmux
