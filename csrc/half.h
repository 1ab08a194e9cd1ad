// IEEE float16 in plain C++, for loops the compiler widens; the wide paths have instructions for it.
#pragma once

#include <cstdint>
#include <cstring>

#include "math_avx512.h"
#include "math_portable.h"

namespace embedmux {

// A type of its own, since uint16_t stands for bfloat16 in the kernels.
struct Float16 {
  uint16_t bits;
};

// Exact, also for subnormal numbers: the exponent is corrected by a product with 2^112.
EMBEDMUX_INLINE float widen(Float16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7FFF) << 13;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  float scaled;
  std::memcpy(&scaled, &magnitude, sizeof scaled);
  scaled *= 5.192296858534828e33F;
  uint32_t bits;
  std::memcpy(&bits, &scaled, sizeof bits);
  bits = (value.bits & 0x7C00) == 0x7C00 ? (magnitude | 0x7F800000) | sign : bits | sign;
  std::memcpy(&scaled, &bits, sizeof scaled);
  return scaled;
}

// Rounds to nearest even; beyond 65519 the result is infinite, a NaN becomes the quiet NaN 0x7E00.
EMBEDMUX_INLINE void narrow(float value, Float16* out) {
  constexpr uint32_t kInfinity = 0x7F800000, kTooLarge = 143U << 23, kSmallestNormal = 113U << 23;
  constexpr uint32_t kShift = 126U << 23;  // as a float 0.5: adding it rounds at the last bit of a subnormal float16
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits & 0x80000000;
  bits ^= sign;
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof magnitude);
  magnitude += 0.5F;
  uint32_t small;
  std::memcpy(&small, &magnitude, sizeof small);
  small -= kShift;
  const uint32_t normal = (bits - (112U << 23) + 0xFFF + (bits >> 13 & 1)) >> 13;
  uint32_t result = bits < kSmallestNormal ? small : normal;
  result = bits >= kTooLarge ? 0x7C00 : result;
  result |= sign >> 16;
  out->bits = static_cast<uint16_t>(bits > kInfinity ? 0x7E00 : result);
}

#ifdef EMBEDMUX_X86
EMBEDMUX_AVX512 inline __m512 load_lanes(const Float16* source, __mmask16 lanes) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, source));
}

EMBEDMUX_AVX512 inline void store_lanes(Float16* target, __mmask16 lanes, __m512 values) {
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m256i rounded = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(target, lanes, _mm256_mask_mov_epi16(rounded, is_nan, _mm256_set1_epi16(0x7E00)));
}
#endif

}  // namespace embedmux
