// AVX-512 pieces that several kernels share. Every element takes the same path: tails are masked, not treated apart.
#pragma once

#include "simd.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1U << count) - 1);
}

EMBEDMUX_AVX512 inline __m512 load_lanes(const float* source, __mmask16 lanes) {
  return _mm512_maskz_loadu_ps(lanes, source);
}

// bfloat16 is the upper half of a float32.
EMBEDMUX_AVX512 inline __m512 load_lanes(const uint16_t* source, __mmask16 lanes) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, source)), 16));
}

EMBEDMUX_AVX512 inline void store_lanes(float* target, __mmask16 lanes, __m512 values) {
  _mm512_mask_storeu_ps(target, lanes, values);
}

// Rounds to nearest even as torch does; a NaN becomes the quiet NaN 0x7FC0.
EMBEDMUX_AVX512 inline void store_lanes(uint16_t* target, __mmask16 lanes, __m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7FC0));
  _mm256_mask_storeu_epi16(target, lanes, _mm512_cvtepi32_epi16(result));
}

// 2^x, or 0 below 2^-126 (and for -inf); NaN stays NaN. Relative error of the polynomials, minimax on [-1/2, 1/2] and
// exact at 0: degree 5 1.7e-7, degree 3 1.1e-4 (for weights that are rounded to bfloat16, 2e-3, right after).
template <int Degree>
EMBEDMUX_AVX512 inline __m512 exp2_lanes(__m512 x) {
  static_assert(Degree == 3 || Degree == 5, "no coefficients for this degree");
  const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(x, whole);
  __m512 value;
  if constexpr (Degree == 5) {
    value = _mm512_set1_ps(0.0013264591F);
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.0096716192F));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.0555073507F));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.2402224094F));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.6931470037F));
  } else {
    value = _mm512_set1_ps(0.0550079607F);
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.2422149181F));
    value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.6932834387F));
  }
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(1.0F));
  const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0F), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(keep, value, whole);
}

// Transposes 16 rows of 16 four-byte cells; row r of the result is out + 16 r.
EMBEDMUX_AVX512 inline void transpose_16x16(const __m512i (&rows)[16], uint32_t* out) {
  __m512i pairs[16];
  for (int i = 0; i < 8; ++i) {
    pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  __m512i quads[16];  // quads[4 g + c], 128-bit lane b: column 4 b + c of the rows 4 g .. 4 g + 3
  for (int g = 0; g < 4; ++g) {
    quads[4 * g] = _mm512_unpacklo_epi64(pairs[4 * g], pairs[4 * g + 2]);
    quads[4 * g + 1] = _mm512_unpackhi_epi64(pairs[4 * g], pairs[4 * g + 2]);
    quads[4 * g + 2] = _mm512_unpacklo_epi64(pairs[4 * g + 1], pairs[4 * g + 3]);
    quads[4 * g + 3] = _mm512_unpackhi_epi64(pairs[4 * g + 1], pairs[4 * g + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0x44);
    const __m512i low23 = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(quads[c], quads[4 + c], 0xEE);
    const __m512i high23 = _mm512_shuffle_i32x4(quads[8 + c], quads[12 + c], 0xEE);
    _mm512_storeu_si512(out + 16 * c, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(out + 16 * (4 + c), _mm512_shuffle_i32x4(low01, low23, 0xDD));
    _mm512_storeu_si512(out + 16 * (8 + c), _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(out + 16 * (12 + c), _mm512_shuffle_i32x4(high01, high23, 0xDD));
  }
}

}  // namespace embedmux

#endif
