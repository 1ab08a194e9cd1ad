// Similarity of float32 queries with AVX-512, and the finish of sums of any kind. Rows of other types are decoded to
// float32 block by block.
#include "math_avx512.h"

#define EMBEDMUX_LANES EMBEDMUX_AVX512
#include "similarity_lanes.h"

#ifdef EMBEDMUX_X86

namespace embedmux::similarity {
namespace {

struct Floats {
  EMBEDMUX_AVX512 static __m512i add(__m512i a, __m512i b) {
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b)));
  }
  EMBEDMUX_AVX512 static __m512i row(__m512i row) { return row; }
  EMBEDMUX_AVX512 static __m512i step(__m512i sum, __m512i query, __m512i row) {
    return _mm512_castps_si512(
        _mm512_fmadd_ps(_mm512_castsi512_ps(query), _mm512_castsi512_ps(row), _mm512_castsi512_ps(sum)));
  }
};

EMBEDMUX_AVX512 void decode_bfloat16(const uint8_t* row, int64_t width, uint8_t* out) {
  const auto* values = reinterpret_cast<const uint16_t*>(row);
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 lanes = first_lanes(width - j);
    store_lanes(reinterpret_cast<float*>(out) + j, lanes, load_lanes(values + j, lanes));
  }
}

EMBEDMUX_AVX512 void decode_float16(const uint8_t* row, int64_t width, uint8_t* out) {
  const auto* values = reinterpret_cast<const uint16_t*>(row);
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 lanes = first_lanes(width - j);
    const __m512 wide = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, values + j));
    store_lanes(reinterpret_cast<float*>(out) + j, lanes, wide);
  }
}

EMBEDMUX_AVX512 void decode_int8(const uint8_t* row, int64_t width, uint8_t* out) {
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 lanes = first_lanes(width - j);
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, row + j));
    store_lanes(reinterpret_cast<float*>(out) + j, lanes, _mm512_cvtepi32_ps(wide));
  }
}

// Bit 7 of the first byte is lane 0: both bytes in all lanes, each lane tests its own bit.
EMBEDMUX_AVX512 void decode_binary(const uint8_t* row, int64_t width, uint8_t* out) {
  const __m512i own = _mm512_setr_epi32(1 << 7, 1 << 6, 1 << 5, 1 << 4, 1 << 3, 1 << 2, 1 << 1, 1, 1 << 15, 1 << 14,
                                        1 << 13, 1 << 12, 1 << 11, 1 << 10, 1 << 9, 1 << 8);
  for (int64_t j = 0; j < width; j += kLanes) {
    const int second = j + 8 < width ? row[j / 8 + 1] : 0;
    const __mmask16 set = _mm512_test_epi32_mask(_mm512_set1_epi32(row[j / 8] | second << 8), own);
    const __m512 values = _mm512_mask_blend_ps(set, _mm512_set1_ps(-1.0F), _mm512_set1_ps(1.0F));
    store_lanes(reinterpret_cast<float*>(out) + j, first_lanes(width - j), values);
  }
}

// Scores of a query so far apart that they will not be read soon: whole lines of them go past the caches.
constexpr int64_t kStreamedStride = 16384;

template <bool Integers>
EMBEDMUX_AVX512 inline __m512 finished(const int32_t* values, __m512 scale, __m512 offset) {
  const __m512i raw = _mm512_loadu_si512(values);
  return _mm512_fmadd_ps(Integers ? _mm512_cvtepi32_ps(raw) : _mm512_castsi512_ps(raw), scale, offset);
}

template <bool Integers>
EMBEDMUX_AVX512 void emit_scores(const Sums& sums, int used, float* out, int64_t stride) {
  const bool whole_lines = (reinterpret_cast<uintptr_t>(out) | stride * sizeof(float)) % kCell == 0;
  for (int row = 0; row < sums.count; row += kLanes) {
    const __mmask16 lanes = first_lanes(sums.count - row);
    if (sums.columns == 1) {
      const __m512 scale = _mm512_set1_ps(sums.scale[0]), offset = _mm512_set1_ps(sums.offset[0]);
      store_lanes(out + row, lanes, finished<Integers>(sums.values + row, scale, offset));
      continue;
    }
    for (int column = 0; column < used; column += kLanes) {
      const __m512 scale = _mm512_loadu_ps(sums.scale + column), offset = _mm512_loadu_ps(sums.offset + column);
      __m512i scores[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        const int32_t* values = sums.values + (row + r) * sums.columns + column;
        scores[r] = _mm512_castps_si512(finished<Integers>(values, scale, offset));
      }
      alignas(64) uint32_t turned[kLanes * kLanes];
      transpose_16x16(scores, turned);
      for (int c = 0; c < kLanes && column + c < used; ++c) {
        const __m512 line = _mm512_load_ps(turned + kLanes * c);
        float* place = out + (column + c) * stride + row;
        if (whole_lines && row + kLanes <= sums.count && stride >= kStreamedStride) {
          _mm512_stream_ps(place, line);
        } else {
          store_lanes(place, lanes, line);
        }
      }
    }
  }
}

void emit(const Sums& sums, int used, float* out, int64_t stride) {
  sums.are_integers ? emit_scores<true>(sums, used, out, stride) : emit_scores<false>(sums, used, out, stride);
}

// The lanes of `found` as hits at `row` and `column`, one step further for each lane; returns the end of the hits.
EMBEDMUX_AVX512 Hit* add_hits(unsigned found, const __m512& scores, Hit first, Hit step, Hit* hits) {
  alignas(64) float values[kLanes];
  _mm512_store_ps(values, scores);
  for (; found != 0; found &= found - 1) {
    const int lane = __builtin_ctz(found);
    *hits++ = {first.row + lane * step.row, first.column + lane * step.column, values[lane]};
  }
  return hits;
}

template <bool Integers>
EMBEDMUX_AVX512 int filter_scores(const Sums& sums, const float* limits, Hit* hits) {
  Hit* end = hits;
  if (sums.columns == 1) {
    const __m512 scale = _mm512_set1_ps(sums.scale[0]), offset = _mm512_set1_ps(sums.offset[0]);
    const __m512 limit = _mm512_set1_ps(limits[0]);
    for (int row = 0; row < sums.count; row += kLanes) {
      const __m512 scores = finished<Integers>(sums.values + row, scale, offset);
      const __mmask16 found = _mm512_mask_cmp_ps_mask(first_lanes(sums.count - row), scores, limit, _CMP_NLE_UQ);
      if (found != 0) end = add_hits(found, scores, {row, 0, 0}, {1, 0, 0}, end);
    }
    return static_cast<int>(end - hits);
  }
  for (int column = 0; column < sums.columns; column += kLanes) {
    const __m512 scale = _mm512_loadu_ps(sums.scale + column), offset = _mm512_loadu_ps(sums.offset + column);
    const __m512 limit = _mm512_loadu_ps(limits + column);
    for (int row = 0; row < sums.count; ++row) {
      const __m512 scores = finished<Integers>(sums.values + row * sums.columns + column, scale, offset);
      const __mmask16 found = _mm512_cmp_ps_mask(scores, limit, _CMP_NLE_UQ);
      if (found != 0) end = add_hits(found, scores, {row, column, 0}, {0, 1, 0}, end);
    }
  }
  return static_cast<int>(end - hits);
}

int filter(const Sums& sums, const float* limits, Hit* hits) {
  return sums.are_integers ? filter_scores<true>(sums, limits, hits) : filter_scores<false>(sums, limits, hits);
}

constexpr Kernel of_floats(void (*decode)(const uint8_t*, int64_t, uint8_t*)) {
  return {false, false, 4, decode, prepare_copies, score_lanes<Floats>, nullptr, nullptr};
}

}  // namespace

const Kernel float32_avx512 = of_floats(nullptr);
const Kernel bfloat16_avx512 = of_floats(decode_bfloat16);
const Kernel float16_avx512 = of_floats(decode_float16);
const Kernel float_binary_avx512 = of_floats(decode_binary);
const Kernel float_int8_avx512 = of_floats(decode_int8);
const Finish finish_avx512 = {emit, filter};

}  // namespace embedmux::similarity

#endif
