// The product by 16-bit weights without wide registers, and beyond x86.
#define EMBEDMUX_LANES
#include "gemm_widening_tile.h"

namespace embedmux {

WideningKernel bfloat16_widening_portable() { return kernel_of<4, 4, 2, BFloat16Bits>(); }
WideningKernel float16_widening_portable() { return kernel_of<4, 4, 2, Float16Bits>(); }

}  // namespace embedmux
