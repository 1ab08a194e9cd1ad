// The product by 16-bit weights with AVX2: 12 of 16 registers hold sums.
#include "simd.h"

#define EMBEDMUX_LANES EMBEDMUX_AVX2
#ifdef EMBEDMUX_X86
#include "gemm_widening_tile.h"

namespace embedmux {
namespace {

// float16 by the instruction that AVX2's processors have for it.
struct F16c {
  uint16_t bits;
};

template <int W>
EMBEDMUX_AVX2 inline typename Lanes<W>::Float load(const F16c* source) {
  static_assert(W == 8);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}

}  // namespace

WideningKernel bfloat16_widening_avx2() { return kernel_of<8, 6, 2, BFloat16Bits>(); }
WideningKernel float16_widening_avx2() { return kernel_of<8, 6, 2, F16c>(); }

}  // namespace embedmux

#endif
