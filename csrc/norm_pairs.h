// LayerNorm of bfloat16 rows on processors that convert to it: 32 values at a time, as 16 even and 16 odd ones, and
// four rows side by side, since the sums of one alone would be waited for. A row's bits do not depend on the others.
#pragma once

#include <algorithm>
#include <cmath>

#include "elements.h"
#include "simd.h"

#ifdef EMBEDMUX_X86

namespace embedmux {

constexpr int64_t kPairWidth = 32;
constexpr int kRowsAtOnce = 4;

// Rows of a whole number of 32 values; weight and bias float32 in pairs, see pair_up.
struct PairedRows {
  const uint16_t* x;
  const uint16_t* residual;  // may be null
  const float *weight, *bias;
  uint16_t* out;
  int64_t x_stride, residual_stride, width;
  float eps;
  const int64_t *x_rows = nullptr, *residual_rows = nullptr;  // see NormTensors

  const uint16_t* x_row(int64_t index) const { return x + (x_rows == nullptr ? index : x_rows[index]) * x_stride; }
  const uint16_t* residual_row(int64_t index) const {
    return residual + (residual_rows == nullptr ? index : residual_rows[index]) * residual_stride;
  }
};

// Of each 32 values the even ones, then the odd ones.
inline void pair_up(const float* values, int64_t width, float* paired) {
  for (int64_t j = 0; j < width; ++j) paired[j / kPairWidth * kPairWidth + j % 2 * 16 + j % kPairWidth / 2] = values[j];
}

EMBEDMUX_AVX512_BF16 inline __m512 even_values(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

EMBEDMUX_AVX512_BF16 inline __m512 odd_values(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000)));
}

// Rows [index, index + Rows); `buffer` holds width floats for each.
template <int Rows>
EMBEDMUX_AVX512_BF16 inline void normalize_pairs(const PairedRows& rows, int64_t index, float* buffer) {
  const int64_t width = rows.width;
  const uint16_t *x[Rows], *residual[Rows];
  for (int r = 0; r < Rows; ++r) {
    x[r] = rows.x_row(index + r);
    residual[r] = rows.residual == nullptr ? nullptr : rows.residual_row(index + r);
  }
  __m512 sums[Rows][2] = {}, squares[Rows][2] = {}, means[Rows], scales[Rows];
  for (int64_t j = 0; j < width; j += kPairWidth) {
    for (int r = 0; r < Rows; ++r) {
      const __m512i pairs = _mm512_loadu_si512(x[r] + j);
      __m512 even = even_values(pairs), odd = odd_values(pairs);
      if (rows.residual != nullptr) {
        const __m512i other = _mm512_loadu_si512(residual[r] + j);
        even = _mm512_add_ps(even, even_values(other));
        odd = _mm512_add_ps(odd, odd_values(other));
      }
      _mm512_storeu_ps(buffer + r * width + j, even);
      _mm512_storeu_ps(buffer + r * width + j + 16, odd);
      sums[r][0] = _mm512_add_ps(sums[r][0], even);
      sums[r][1] = _mm512_add_ps(sums[r][1], odd);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    means[r] = _mm512_set1_ps(_mm512_reduce_add_ps(_mm512_add_ps(sums[r][0], sums[r][1])) / static_cast<float>(width));
  }
  for (int64_t j = 0; j < width; j += kPairWidth) {
    for (int r = 0; r < Rows; ++r) {
      const __m512 even = _mm512_sub_ps(_mm512_loadu_ps(buffer + r * width + j), means[r]);
      const __m512 odd = _mm512_sub_ps(_mm512_loadu_ps(buffer + r * width + j + 16), means[r]);
      squares[r][0] = _mm512_fmadd_ps(even, even, squares[r][0]);
      squares[r][1] = _mm512_fmadd_ps(odd, odd, squares[r][1]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    const float variance =
        _mm512_reduce_add_ps(_mm512_add_ps(squares[r][0], squares[r][1])) / static_cast<float>(width);
    scales[r] = _mm512_set1_ps(1.0F / std::sqrt(variance + rows.eps));
  }
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t j = 0; j < width; j += kPairWidth) {
    const __m512 weight = _mm512_loadu_ps(rows.weight + j), odd_weight = _mm512_loadu_ps(rows.weight + j + 16);
    const __m512 bias = _mm512_loadu_ps(rows.bias + j), odd_bias = _mm512_loadu_ps(rows.bias + j + 16);
    for (int r = 0; r < Rows; ++r) {
      const __m512 even = _mm512_sub_ps(_mm512_loadu_ps(buffer + r * width + j), means[r]);
      const __m512 odd = _mm512_sub_ps(_mm512_loadu_ps(buffer + r * width + j + 16), means[r]);
      const __m512i halves =
          (__m512i)_mm512_cvtne2ps_pbh(_mm512_fmadd_ps(_mm512_mul_ps(odd, scales[r]), odd_weight, odd_bias),
                                       _mm512_fmadd_ps(_mm512_mul_ps(even, scales[r]), weight, bias));
      _mm512_storeu_si512(rows.out + (index + r) * width + j, _mm512_permutexvar_epi16(order, halves));
    }
  }
}

// Calls rows of a table from memory that are normed soon.
EMBEDMUX_AVX512_BF16 inline void call_rows(const PairedRows& rows, int64_t begin, int64_t end) {
  if (rows.x_rows == nullptr) return;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < rows.width; j += kPairWidth) _mm_prefetch(rows.x_row(i) + j, _MM_HINT_T0);
  }
}

// Rows [begin, end); `buffer` holds kRowsAtOnce rows of floats.
EMBEDMUX_AVX512_BF16 inline void norm_pairs(const PairedRows& rows, int64_t begin, int64_t end, float* buffer) {
  int64_t i = begin;
  for (; i + kRowsAtOnce <= end; i += kRowsAtOnce) {
    call_rows(rows, std::min(end, i + 2 * kRowsAtOnce), std::min(end, i + 3 * kRowsAtOnce));
    normalize_pairs<kRowsAtOnce>(rows, i, buffer);
  }
  for (; i < end; ++i) normalize_pairs<1>(rows, i, buffer);
}

}  // namespace embedmux

#endif
