// Rows of bfloat16 as tiles of codes for TDPBUSD, which adds to an int32 tile the product of a row tile (16 rows of 64
// uint8 along K) and a tile of fours (gemm_int8.h).
#pragma once

#include "gemm_amx_tiles.h"
#include "gemm_int8.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

EMBEDMUX_AMX inline float as_float(uint16_t bits) {
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int32_t>(uint32_t{bits} << 16))));
}

// The largest of 32 words, unsigned.
EMBEDMUX_AMX inline uint16_t most_of(__m512i words) {
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1));
  const __m128i quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  // The one horizontal minimum there is: of the complements.
  return static_cast<uint16_t>(~_mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1))), 0));
}

// Codes of 32 bfloat16 as 32 words: value * inverse + zero, rounded by adding 1.5 * 2^23, which leaves the whole number
// in the low bits. Never below 0 or above 255: see kInt8Steps.
EMBEDMUX_AMX inline __m512i codes_of(__m512i values, __m512 inverse, __m512 zero) {
  const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(values, 16));
  const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(values, _mm512_set1_epi32(-0x10000)));
  const __m512i low = _mm512_castps_si512(_mm512_fmadd_ps(even, inverse, zero));
  const __m512i high = _mm512_slli_epi32(_mm512_castps_si512(_mm512_fmadd_ps(odd, inverse, zero)), 16);
  return _mm512_mask_blend_epi16(0xaaaaaaaa, low, high);
}

// The scale, and what codes_of adds, of a row with these extremes.
struct RowCodes {
  RowScale scale;
  float inverse, rounder;
};

EMBEDMUX_AMX inline RowCodes row_codes(__m512i positive, __m512i negative) {
  const float low = as_float(most_of(negative)), high = as_float(most_of(positive));
  const float span = high - low;
  const bool is_flat = span < kInt8LeastSpan;
  const float inverse = is_flat ? 0.0F : kInt8Steps / span, scale = is_flat ? 0.0F : span / kInt8Steps;
  constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23
  const float rounder = (-low * inverse + 0.01F) + kRounder;
  return {{scale, -scale * (rounder - kRounder)}, inverse, rounder};
}

// Up to 8 rows: in each parts of 32 values, `part` elements apart, the rows `stride` elements apart; codes go to tiles
// that lie a step apart. All rows part by part: in row tiles the parts of one row lie so that they push each other out
// of the cache.
template <int Rows>
EMBEDMUX_AMX inline void quantize_some(const uint16_t* x, int64_t inner, int64_t part, int64_t stride, uint8_t* codes,
                                       RowScale* scales) {
  // Among bits as signed words the largest are positive values, among unsigned ones the smallest negative values. A NaN
  // is beyond infinity on its sign's side, so that the span is not finite either.
  __m512i positive[Rows], negative[Rows];
  for (int r = 0; r < Rows; ++r) positive[r] = _mm512_setzero_si512(), negative[r] = _mm512_set1_epi16(-0x8000);
  const uint16_t* place = x;
  for (int64_t k = 0; k < inner; k += kTileDepth, place += part) {
    const __mmask32 mask = low_bits(inner - k);
    for (int r = 0; r < Rows; ++r) {
      const __m512i values = _mm512_maskz_loadu_epi16(mask, place + r * stride);
      positive[r] = _mm512_max_epi16(positive[r], values);
      negative[r] = _mm512_max_epu16(negative[r], values);
    }
  }
  __m512 inverses[Rows], rounders[Rows];
  for (int r = 0; r < Rows; ++r) {
    const RowCodes row = row_codes(positive[r], negative[r]);
    scales[r] = row.scale;
    inverses[r] = _mm512_set1_ps(row.inverse), rounders[r] = _mm512_set1_ps(row.rounder);
  }
  // Packing works in each quarter of a register; this puts the quarters' halves in order.
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  for (int64_t k = 0; k < inner; k += kInt8Depth, x += 2 * part, codes += kInt8StepBytes) {
    const __mmask32 mask = low_bits(inner - k), behind = low_bits(inner - k - kTileDepth);
    for (int r = 0; r < Rows; ++r) {
      const __m512i left = _mm512_maskz_loadu_epi16(mask, x + r * stride);
      const __m512i right = behind == 0 ? left : _mm512_maskz_loadu_epi16(behind, x + part + r * stride);
      const __m512i packed =
          _mm512_packus_epi16(codes_of(left, inverses[r], rounders[r]), codes_of(right, inverses[r], rounders[r]));
      _mm512_store_si512(codes + r * kInt8Depth, _mm512_permutexvar_epi64(order, packed));
    }
  }
}

// `rows` rows as tiles of codes, blocks of 32 rows as gather_rows makes them; what is missing in the last block stays
// as it is, since no row reads another's. x lies in rows, or in row tiles.
EMBEDMUX_AMX inline void quantize_rows(const uint16_t* x, bool in_tiles, int64_t inner, int64_t rows, uint8_t* codes,
                                       RowScale* scales) {
  constexpr int64_t kTogether = 8;
  const int64_t wide_steps = divide_up(inner, kTileDepth), steps = int8_steps(inner);
  const int64_t part = in_tiles ? kStepElements : kTileDepth, stride = in_tiles ? kTileDepth : inner;
  for (int64_t row = 0, count; row < rows; row += count) {
    count = row + kTogether <= rows ? kTogether : 1;
    const int64_t block = row / kBlockRows, within = row % kBlockRows;
    const uint16_t* source = in_tiles ? x + block * wide_steps * kStepElements + within * kTileDepth : x + row * inner;
    uint8_t* target = codes + block * steps * kInt8StepBytes + within * kInt8Depth;
    const auto quantize = count == kTogether ? quantize_some<kTogether> : quantize_some<1>;
    quantize(source, inner, part, stride, target, scales + row);
  }
}

}  // namespace embedmux

#endif
