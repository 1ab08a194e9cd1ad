// AVX-512 pieces of attention that the float32 and the bfloat16 variants share: packing, shifts and sums of the
// softmax.
#pragma once

#include <algorithm>

#include "attention.h"
#include "math_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {

// The bfloat16 functions that the AMX variant uses as they are.
void pack_bfloat16_rows(const Source& source, Cell* out, int out_stride);
void pack_bfloat16_keys(const Source& source, Cell* panels, int panel_stride, int padded_keys);
void pack_bfloat16_values(const Source& source, Cell* panels, int panel_stride, int padded_keys);
void softmax_bfloat16(const Softmax& step);
void finish_bfloat16(const float* output, int output_stride, const float* sum, const Source& target);

// 16 cells of a row, zeros beyond `cells` and for a null row.
EMBEDMUX_AVX512 inline __m512i load_cells(const void* start, int first, int cells) {
  if (start == nullptr) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi32(first_lanes(std::max(0, cells - first)), static_cast<const Cell*>(start) + first);
}

// The same for 16-bit elements, each widened to a float32 cell.
EMBEDMUX_AVX512 inline __m512i load_widened(const void* start, int first, int cells) {
  if (start == nullptr) return _mm512_setzero_si512();
  const __mmask16 lanes = first_lanes(std::max(0, cells - first));
  return _mm512_castps_si512(load_lanes(static_cast<const uint16_t*>(start) + first, lanes));
}

// The same for float16.
EMBEDMUX_AVX512 inline __m512i load_widened_half(const void* start, int first, int cells) {
  if (start == nullptr) return _mm512_setzero_si512();
  const __mmask16 lanes = first_lanes(std::max(0, cells - first));
  const __m256i halves = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(start) + first);
  return _mm512_castps_si512(_mm512_cvtph_ps(halves));
}

using Load = __m512i (*)(const void*, int, int);

template <typename T, int ElementsPerCell, Load load>
EMBEDMUX_AVX512 void pack_rows(const Source& source, Cell* out, int out_stride) {
  const int cells = source.depth / ElementsPerCell;
  for (int r = 0; r < source.rows; ++r) {
    for (int c = 0; c < out_stride; c += kLanes) {
      _mm512_storeu_si512(out + r * out_stride + c, load(source.row<T>(r), c, cells));
    }
  }
}

template <typename T, int ElementsPerCell, Load load>
EMBEDMUX_AVX512 void pack_keys(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  const int cells = source.depth / ElementsPerCell;
  for (int key = 0; key < padded_keys; key += kLanes) {
    Cell* panel = panels + key / kLanes * panel_stride;
    for (int c = 0; c < panel_stride / kLanes; c += kLanes) {
      __m512i block[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        block[i] = load(key + i < source.rows ? source.row<T>(key + i) : nullptr, c, cells);
      }
      transpose_16x16(block, panel + c * kLanes);
    }
  }
}

// Totals of 16 vectors: lane r of the result reduces vectors[r], for every r along the same tree.
template <__m512 (*combine)(__m512, __m512)>
EMBEDMUX_AVX512 inline __m512 reduce_each(const __m512 (&vectors)[kLanes]) {
  __m512 fours[4];
  for (int g = 0; g < 4; ++g) {
    const __m512* v = vectors + 4 * g;
    const __m512 first = combine(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const __m512 second = combine(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(first), _mm512_castps_pd(second));
    const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(first), _mm512_castps_pd(second));
    fours[g] = combine(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  }
  const __m512 left = combine(_mm512_shuffle_f32x4(fours[0], fours[1], 0x88),  //
                              _mm512_shuffle_f32x4(fours[0], fours[1], 0xDD));
  const __m512 right =
      combine(_mm512_shuffle_f32x4(fours[2], fours[3], 0x88), _mm512_shuffle_f32x4(fours[2], fours[3], 0xDD));
  return combine(_mm512_shuffle_f32x4(left, right, 0x88), _mm512_shuffle_f32x4(left, right, 0xDD));
}

EMBEDMUX_AVX512 inline __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
EMBEDMUX_AVX512 inline __m512 larger(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }

// The keys of a block that a row can have a weight for, widened to whole vectors; weights outside are zero.
struct Visible {
  int first, last;
  Visible(const Softmax& step, int r)
      : first(std::clamp(step.low[r] & -kLanes, step.first, step.last)),
        last(std::clamp((step.high[r] + kLanes - 1) & -kLanes, first, step.last)) {}
};

// Overwrites the scores of the hidden keys in the vectors at either end of the visible range.
EMBEDMUX_AVX512 inline void hide_keys(const Softmax& step, int r, const Visible& visible, float* scores) {
  const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
  if (step.low[r] > visible.first) {
    _mm512_mask_storeu_ps(scores + visible.first, first_lanes(step.low[r] - visible.first), hidden);
  }
  if (step.high[r] < visible.last) {
    const int begin = visible.last - kLanes;
    _mm512_mask_storeu_ps(scores + begin, static_cast<__mmask16>(~first_lanes(step.high[r] - begin)), hidden);
  }
}

// Rows base .. base + 15: hides their keys and moves their shifts; returns 2^(old shift - new shift).
EMBEDMUX_AVX512 inline __m512 move_shifts(const Softmax& step, int base) {
  __m512 largest[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const int r = base + i;
    largest[i] = _mm512_set1_ps(-__builtin_inff());
    if (r >= step.rows) continue;
    float* scores = step.scores + r * kKeys;
    const Visible visible(step, r);
    if (visible.first == visible.last) continue;
    hide_keys(step, r, visible, scores);
    for (int key = visible.first; key < visible.last; key += kLanes) {
      largest[i] = _mm512_max_ps(largest[i], _mm512_loadu_ps(scores + key));
    }
  }
  const __m512 old = _mm512_loadu_ps(step.shift + base);
  const __m512 shift = _mm512_max_ps(_mm512_mul_ps(reduce_each<larger>(largest), _mm512_set1_ps(step.scale)), old);
  _mm512_storeu_ps(step.shift + base, shift);
  return exp2_lanes<5>(_mm512_sub_ps(old, shift));
}

// Adds the new weights to the rows' sums and brings what earlier blocks left to the new shifts.
EMBEDMUX_AVX512 inline void move_sums(const Softmax& step, int base, __m512 decay, const __m512 (&sums)[kLanes]) {
  float* sum = step.sum + base;
  _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_loadu_ps(sum), decay, reduce_each<add>(sums)));
  if (!step.started) return;
  alignas(64) float decays[kLanes];
  _mm512_store_ps(decays, decay);
  for (int r = base; r < std::min(base + kLanes, step.rows); ++r) {
    float* output = step.output + r * step.output_stride;
    const __m512 factor = _mm512_set1_ps(decays[r - base]);
    for (int d = 0; d < step.output_stride; d += kLanes) {
      _mm512_storeu_ps(output + d, _mm512_mul_ps(_mm512_loadu_ps(output + d), factor));
    }
  }
}

}  // namespace embedmux::attention

#endif
