// The last steps of a block of the AMX kernel: sums of 32 rows by 32 columns become results.
#pragma once

#include "gemm_amx_int8.h"
#include "lora_vector.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

constexpr int64_t kBlockElements = kBlockRows * kPanelColumns;  // of sums

// A block whose sums are stored and wait for scale, bias, activation and rounding into the output.
struct Pending {
  const float* sums = nullptr;       // [rows, 32], of a gated product those of the gate and then those of up
  const float* low_rank = nullptr;   // beside an int8 weight, whose sums are int32: those of B(A x), or null
  const RowScale* scales = nullptr;  // [rows] beside an int8 weight
  const Affine* affines = nullptr;   // [rows]; null if every row has the bias below and no scale
  int64_t rows = 0;
  int64_t column = 0;  // the first of the panel
  int64_t up_column = 0;
  uint16_t* output = nullptr;
  int64_t stride = 0;                     // of the output's rows
  __mmask32 mask = 0;                     // of the panel's columns that exist
  __m512 bias[4];                         // of the panel's two halves and, in a gated product, of those of up
  __m512 column_scales[4], code_sums[4];  // likewise, beside an int8 weight
};

// gelu_of_8_bits and gelu_of_codes, with instructions for holding a value that gcc does not find.
EMBEDMUX_AMX inline __m512 gelu_of_8_bits_amx(__m512 x) {
  const __m512 square = _mm512_min_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(kFineGeluLimit * kFineGeluLimit));
  __m512 slope = _mm512_fmadd_ps(square, _mm512_set1_ps(kFineGelu[0]), _mm512_set1_ps(kFineGelu[1]));
  for (int power = 2; power < 9; ++power) slope = _mm512_fmadd_ps(slope, square, _mm512_set1_ps(kFineGelu[power]));
  const __m512 phi = _mm512_fmadd_ps(x, slope, _mm512_set1_ps(0.5F));
  return _mm512_mul_ps(x, _mm512_min_ps(_mm512_set1_ps(1.0F), _mm512_max_ps(_mm512_setzero_ps(), phi)));
}

EMBEDMUX_AMX inline __m512 gelu_of_codes_amx(__m512 x) {
  constexpr int kLeastMagnitudeWithSignOfFirst = 0b0010;
  const __m512 held = _mm512_range_ps(x, _mm512_set1_ps(kCoarseGeluLimit), kLeastMagnitudeWithSignOfFirst);
  const __m512 square = _mm512_mul_ps(held, held);
  __m512 slope = _mm512_fmadd_ps(square, _mm512_set1_ps(kCoarseGelu[0]), _mm512_set1_ps(kCoarseGelu[1]));
  for (int power = 2; power < 5; ++power) slope = _mm512_fmadd_ps(slope, square, _mm512_set1_ps(kCoarseGelu[power]));
  return _mm512_mul_ps(x, _mm512_fmadd_ps(held, slope, _mm512_set1_ps(0.5F)));
}

// How a row is finished; the kernel is built for each.
template <Activation A, bool IsGated, bool HasAffines, bool IsInt8>
struct Finish {
  static constexpr bool is_int8 = IsInt8;
  static constexpr Exactness exactness = IsInt8 ? Exactness::codes : Exactness::bits_8;

  EMBEDMUX_AMX static inline __m512 shift(const Pending& pending, int64_t row, int64_t half, int64_t column) {
    const int64_t place = half / 2 * kBlockElements + row * kPanelColumns + half % 2 * 16;
    if (IsInt8) {
      const RowScale& scale = pending.scales[row];
      const __m512 codes = _mm512_cvtepi32_ps(_mm512_load_si512(pending.sums + place));
      const __m512 offset = _mm512_fmadd_ps(_mm512_set1_ps(scale.shift), pending.code_sums[half], pending.bias[half]);
      const __m512 value =
          _mm512_fmadd_ps(_mm512_mul_ps(codes, _mm512_set1_ps(scale.scale)), pending.column_scales[half], offset);
      return pending.low_rank == nullptr ? value : _mm512_add_ps(value, _mm512_load_ps(pending.low_rank + place));
    }
    const __m512 sums = _mm512_load_ps(pending.sums + place);
    if (!HasAffines) return _mm512_add_ps(sums, pending.bias[half]);
    const Affine& affine = pending.affines[row];
    const int64_t own = column + half % 2 * 16;
    return _mm512_fmadd_ps(sums, _mm512_loadu_ps(affine.scale + own), _mm512_loadu_ps(affine.bias + own));
  }

  EMBEDMUX_AMX static inline __m512 activated(__m512 x) {
    if constexpr (A != Activation::gelu) return activate<16, A, exactness>(x);
    return IsInt8 ? gelu_of_codes_amx(x) : gelu_of_8_bits_amx(x);
  }

  // Inlined, so that what all rows share stays in registers.
  [[gnu::always_inline]] EMBEDMUX_AMX static inline void row(const Pending& pending, int64_t row) {
    __m512 left = activated(shift(pending, row, 0, pending.column));
    __m512 right = activated(shift(pending, row, 1, pending.column));
    if (IsGated) {
      left = _mm512_mul_ps(left, shift(pending, row, 2, pending.up_column));
      right = _mm512_mul_ps(right, shift(pending, row, 3, pending.up_column));
    }
    _mm512_mask_storeu_epi16(pending.output + row * pending.stride, pending.mask,
                             (__m512i)_mm512_cvtne2ps_pbh(right, left));
  }
};

}  // namespace embedmux

#endif
