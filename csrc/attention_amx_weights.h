// Weights of the AMX variant: a row's scores -> bfloat16 powers of two, two panels a cell row.
//
// A tile of weights keeps its 32 keys in the order in which vpackssdw leaves them: four of the first panel, four of the
// second, and so on; pack_values lays the values out likewise.
#pragma once

#include "attention_amx_tiles.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {

// 2^x for a weight that is rounded to bfloat16 next: relative error 3.3e-4. 0 for -inf and below the range; NaN stays
// NaN.
EMBEDMUX_AMX inline __m512 exp2_weight(__m512 x) {
  const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 value = _mm512_fmadd_ps(_mm512_set1_ps(0.0866486979F), rest, _mm512_set1_ps(0.2146019173F));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.6987493848F));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(value, x);  // by 2^floor(x)
}

// The shift of 16 rows: whole, so that float32 holds its difference to any score exactly enough, and at least the
// largest score, so that no weight is above 1.
EMBEDMUX_AMX inline __m512 whole_shift(__m512 largest, float scale, __m512 old) {
  const __m512 scaled = _mm512_mul_ps(largest, _mm512_set1_ps(scale));
  return _mm512_max_ps(_mm512_roundscale_ps(scaled, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC), old);
}

// A score's distance to the shift: the product is rounded like the shift's, however large. The compiler would fuse
// _mm512_mul_ps with the subtraction.
EMBEDMUX_AMX inline __m512 distance(const float* scores, __m512 factor, __m512 offset) {
  return _mm512_sub_ps(_mm512_mul_round_ps(_mm512_load_ps(scores), factor, _MM_FROUND_CUR_DIRECTION), offset);
}

// Weights of one row over `panels` panels. Any score, NaN and infinities among them.
EMBEDMUX_AMX inline void weigh_row(const float* scores, int panels, float scale, float shift, Cell* weights) {
  const __m512 factor = _mm512_set1_ps(scale), offset = _mm512_set1_ps(shift);
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (int panel = 0; panel < panels; panel += 2, scores += 2 * kTile, weights += kTile) {
    const __m512 one = exp2_weight(distance(scores, factor, offset));
    const __m512 other = exp2_weight(distance(scores + kTile, factor, offset));
    _mm512_store_si512(weights, _mm512_permutexvar_epi64(order, (__m512i)_mm512_cvtne2ps_pbh(other, one)));
  }
}

// The same in 16-bit fixed point, in half the time, for scores without NaN and shifts that suits_quick_weights lets
// through. A bfloat16's bits are 128 (127 + floor(x) + m), where 1 + m is its mantissa: with x in steps of 1/512 they
// are x + 127 less what the line through the whole powers lies above 2^x - 1, which a table holds for 64 parts of [0,
// 1). Relative error, with the rounding to bfloat16: 6.3e-03 at most and 2.0e-03 on average (root of squares); 0 below
// 2^-126 and for -inf.
constexpr float kUnit = 512;
constexpr float kBias = 127 * kUnit + 2;  // 2: rounds to nearest when two bits are dropped
// round(512 (1 + f - 2^f)), f in the middle of the part
alignas(64) constexpr uint8_t kAbove[64] = {0,  3,  5,  8,  10, 12, 14, 16, 18, 20, 22, 24, 25, 27, 28, 30,
                                            31, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 42, 43, 43, 43, 44,
                                            44, 44, 44, 44, 44, 44, 43, 43, 42, 42, 41, 40, 39, 38, 37, 36,
                                            35, 33, 32, 30, 28, 27, 25, 23, 21, 18, 16, 14, 11, 8,  5,  2};

EMBEDMUX_AMX inline bool suits_quick_weights(__m512 shift) {
  // Up to here 512 shift - kBias is exact. A row that has not met a key has scores of -inf only.
  const __mmask16 near = _mm512_cmp_ps_mask(_mm512_abs_ps(shift), _mm512_set1_ps(16384), _CMP_LE_OQ);
  return (near | _mm512_cmp_ps_mask(shift, _mm512_set1_ps(kNoKey), _CMP_EQ_OQ)) == 0xFFFF;
}

EMBEDMUX_AMX inline void weigh_row_quickly(const float* scores, int panels, float scale, float shift, Cell* weights) {
  const __m512 factor = _mm512_set1_ps(scale * kUnit), offset = _mm512_set1_ps(shift * kUnit - kBias);
  const __m512i above = _mm512_load_si512(kAbove);
  constexpr __mmask64 kLowBytes = 0x5555555555555555;
  for (int panel = 0; panel < panels; panel += 2, scores += 2 * kTile, weights += kTile) {
    const __m512i one = _mm512_cvtps_epi32(_mm512_fmsub_ps(_mm512_load_ps(scores), factor, offset));
    const __m512i other = _mm512_cvtps_epi32(_mm512_fmsub_ps(_mm512_load_ps(scores + kTile), factor, offset));
    const __m512i line = _mm512_packus_epi32(one, other);
    const __m512i less = _mm512_maskz_permutexvar_epi8(kLowBytes, _mm512_srli_epi16(line, 3), above);
    _mm512_store_si512(weights, _mm512_srli_epi16(_mm512_sub_epi16(line, less), 2));
  }
}

}  // namespace embedmux::attention

#endif
