// The product by 16-bit weights with AVX-512: 24 of 32 registers hold sums.
#include "elements.h"

#define EMBEDMUX_LANES EMBEDMUX_AVX512
#ifdef EMBEDMUX_X86
#include "gemm_widening_tile.h"

namespace embedmux {

WideningKernel bfloat16_widening_avx512() { return kernel_of<16, 6, 4, WideBFloat16<false>>(); }
WideningKernel float16_widening_avx512() { return kernel_of<16, 6, 4, WideFloat16>(); }

}  // namespace embedmux

#endif
