// Attention with AVX-512: float32 by fused multiply-add (bfloat16 is widened when packed), and bfloat16 by vdpbf16ps.
// attention_avx512.h lists the functions that the AMX variant takes over unchanged.
#include "attention_avx512.h"

#ifdef EMBEDMUX_X86

#include <algorithm>

#include "math_avx512.h"

namespace embedmux::attention {
namespace {

constexpr int kRowBlock = 4;  // 4 rows x 4 panels of accumulators leave half the registers for operands
constexpr int kPanelBlock = 4;

template <typename T>
const T* row(const Source& source, int index) {
  return static_cast<const T*>(source.data) + index * source.stride;
}

EMBEDMUX_AVX512 __m512i as_cells(__m512 values) { return _mm512_castps_si512(values); }

// 16 cells of a row, zeros beyond `cells` and for a null row.
EMBEDMUX_AVX512 __m512i load_cells(const void* start, int first, int cells) {
  if (start == nullptr) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi32(first_lanes(std::max(0, cells - first)), static_cast<const Cell*>(start) + first);
}

// A row of 16-bit elements as one float32 cell each.
EMBEDMUX_AVX512 __m512i load_widened(const void* start, int first, int cells) {
  if (start == nullptr) return _mm512_setzero_si512();
  return as_cells(load_lanes(static_cast<const uint16_t*>(start) + first, first_lanes(std::max(0, cells - first))));
}

using Load = __m512i (*)(const void*, int, int);

template <typename T, int ElementsPerCell, Load load>
EMBEDMUX_AVX512 void pack_rows(const Source& source, Cell* out, int out_stride) {
  const int cells = source.depth / ElementsPerCell;
  for (int r = 0; r < source.rows; ++r) {
    for (int c = 0; c < out_stride; c += kLanes) {
      _mm512_storeu_si512(out + r * out_stride + c, load(row<T>(source, r), c, cells));
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
        block[i] = load(key + i < source.rows ? row<T>(source, key + i) : nullptr, c, cells);
      }
      transpose_16x16(block, panel + c * kLanes);
    }
  }
}

template <typename T, Load load>
EMBEDMUX_AVX512 void pack_values(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  for (int key = 0; key < padded_keys; ++key) {
    const T* start = key < source.rows ? row<T>(source, key) : nullptr;
    for (int d = 0; d < source.depth; d += kLanes) {
      _mm512_storeu_si512(panels + d / kLanes * panel_stride + key * kLanes, load(start, d, source.depth));
    }
  }
}

// Cell (pair, d) holds the elements d of the keys 2 pair and 2 pair + 1.
EMBEDMUX_AVX512 void pack_value_pairs(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  for (int key = 0; key < padded_keys; key += 2) {
    const uint16_t* even = key < source.rows ? row<uint16_t>(source, key) : nullptr;
    const uint16_t* odd = key + 1 < source.rows ? row<uint16_t>(source, key + 1) : nullptr;
    for (int d = 0; d < source.depth; d += kLanes) {
      const __m512i low = _mm512_srli_epi32(load_widened(even, d, source.depth), 16);
      const __m512i pairs = _mm512_or_si512(low, load_widened(odd, d, source.depth));
      _mm512_storeu_si512(panels + d / kLanes * panel_stride + key / 2 * kLanes, pairs);
    }
  }
}

// Rows beyond product.rows are computed from whatever the workspace holds and never read.
template <int Panels>
EMBEDMUX_AVX512 void multiply_float32_panels(const Product& product, int first) {
  for (int r = 0; r < product.rows; r += kRowBlock) {
    __m512 sums[kRowBlock][Panels];
    const Cell* left = product.left + r * product.left_stride;
    const Cell* right = product.panels + first * product.panel_stride;
    float* out = product.out + r * product.out_stride + first * kLanes;
    for (int i = 0; i < kRowBlock; ++i) {
      for (int p = 0; p < Panels; ++p) {
        sums[i][p] =
            product.accumulate ? _mm512_loadu_ps(out + i * product.out_stride + p * kLanes) : _mm512_setzero_ps();
      }
    }
    for (int c = 0; c < product.cells; ++c) {
      for (int i = 0; i < kRowBlock; ++i) {
        const __m512 value =
            _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(left[i * product.left_stride + c])));
        for (int p = 0; p < Panels; ++p) {
          sums[i][p] =
              _mm512_fmadd_ps(value, _mm512_loadu_ps(right + p * product.panel_stride + c * kLanes), sums[i][p]);
        }
      }
    }
    for (int i = 0; i < kRowBlock; ++i) {
      for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(out + i * product.out_stride + p * kLanes, sums[i][p]);
    }
  }
}

template <int Panels>
EMBEDMUX_AVX512_BF16 void multiply_bfloat16_panels(const Product& product, int first) {
  for (int r = 0; r < product.rows; r += kRowBlock) {
    __m512 sums[kRowBlock][Panels];
    const Cell* left = product.left + r * product.left_stride;
    const Cell* right = product.panels + first * product.panel_stride;
    float* out = product.out + r * product.out_stride + first * kLanes;
    for (int i = 0; i < kRowBlock; ++i) {
      for (int p = 0; p < Panels; ++p) {
        sums[i][p] =
            product.accumulate ? _mm512_loadu_ps(out + i * product.out_stride + p * kLanes) : _mm512_setzero_ps();
      }
    }
    for (int c = 0; c < product.cells; ++c) {
      for (int i = 0; i < kRowBlock; ++i) {
        const __m512i value = _mm512_set1_epi32(static_cast<int>(left[i * product.left_stride + c]));
        for (int p = 0; p < Panels; ++p) {
          const __m512i cells = _mm512_loadu_si512(right + p * product.panel_stride + c * kLanes);
          sums[i][p] = _mm512_dpbf16_ps(sums[i][p], (__m512bh)value, (__m512bh)cells);
        }
      }
    }
    for (int i = 0; i < kRowBlock; ++i) {
      for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(out + i * product.out_stride + p * kLanes, sums[i][p]);
    }
  }
}

// The number of panels changes which registers are used, not what is added to a sum or in which order.
#define EMBEDMUX_BY_PANELS(FUNCTION)                                      \
  for (int first = 0; first < product.num_panels; first += kPanelBlock) { \
    switch (std::min(kPanelBlock, product.num_panels - first)) {          \
      case 1:                                                             \
        FUNCTION<1>(product, first);                                      \
        break;                                                            \
      case 2:                                                             \
        FUNCTION<2>(product, first);                                      \
        break;                                                            \
      case 3:                                                             \
        FUNCTION<3>(product, first);                                      \
        break;                                                            \
      default:                                                            \
        FUNCTION<kPanelBlock>(product, first);                            \
    }                                                                     \
  }

void multiply_float32(const Product& product) { EMBEDMUX_BY_PANELS(multiply_float32_panels) }
void multiply_bfloat16(const Product& product){EMBEDMUX_BY_PANELS(multiply_bfloat16_panels)}

// Overwrites the scores of the keys that row r must not see.
EMBEDMUX_AVX512 void hide_keys(const Softmax& step, int r, float* scores) {
  if (step.low[r] <= step.first && step.high[r] >= step.last) return;
  const __m512i low = _mm512_set1_epi32(step.low[r]);
  const __m512i high = _mm512_set1_epi32(step.high[r]);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int key = step.first; key < step.last; key += kLanes) {
    if (key >= step.low[r] && key + kLanes <= step.high[r]) continue;
    const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(key));
    const __mmask16 hidden = _mm512_cmplt_epi32_mask(index, low) | _mm512_cmpge_epi32_mask(index, high);
    _mm512_mask_storeu_ps(scores + key, hidden, _mm512_set1_ps(-__builtin_inff()));
  }
}

EMBEDMUX_AVX512 float largest_score(const Softmax& step, const float* scores) {
  __m512 even = _mm512_set1_ps(-__builtin_inff());
  __m512 odd = even;
  for (int key = step.first; key < step.last; key += kKeyStep) {
    even = _mm512_max_ps(even, _mm512_loadu_ps(scores + key));
    odd = _mm512_max_ps(odd, _mm512_loadu_ps(scores + key + kLanes));
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(even, odd));
}

// Moves row r to the new shift after its weights have been summed.
EMBEDMUX_AVX512 void shift_row(const Softmax& step, int r, float shift, __m512 sums) {
  const __m512 decay = exp2_lanes<5>(_mm512_set1_ps(step.shift[r] - shift));
  step.sum[r] = step.sum[r] * _mm512_cvtss_f32(decay) + _mm512_reduce_add_ps(sums);
  step.shift[r] = shift;
  if (!step.started) return;
  float* output = step.output + r * step.output_stride;
  for (int d = 0; d < step.output_stride; d += kLanes) {
    _mm512_storeu_ps(output + d, _mm512_mul_ps(_mm512_loadu_ps(output + d), decay));
  }
}

EMBEDMUX_AVX512 void softmax_float32(const Softmax& step) {
  const __m512 scale = _mm512_set1_ps(step.scale);
  for (int r = 0; r < step.rows; ++r) {
    float* scores = step.scores + r * kKeys;
    auto* weights = reinterpret_cast<float*>(step.weights + r * step.weights_stride);
    hide_keys(step, r, scores);
    const float shift = std::max(step.shift[r], largest_score(step, scores) * step.scale);
    const __m512 shifts = _mm512_set1_ps(shift);
    __m512 sums = _mm512_setzero_ps();
    for (int key = step.first; key < step.last; key += kLanes) {
      const __m512 weight = exp2_lanes<5>(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), scale, shifts));
      sums = _mm512_add_ps(sums, weight);
      _mm512_storeu_ps(weights + key, weight);
    }
    shift_row(step, r, shift, sums);
  }
}

template <typename T>
EMBEDMUX_AVX512 void finish(const float* output, int output_stride, const float* sum, const Source& target) {
  for (int r = 0; r < target.rows; ++r) {
    const __m512 inverse = _mm512_set1_ps(1.0F / sum[r]);
    T* out = const_cast<T*>(row<T>(target, r));
    for (int d = 0; d < target.depth; d += kLanes) {
      const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(output + r * output_stride + d), inverse);
      store_lanes(out + d, first_lanes(target.depth - d), values);
    }
  }
}

void nothing() {}

}  // namespace

EMBEDMUX_AVX512_BF16 void softmax_bfloat16(const Softmax& step) {
  const __m512 scale = _mm512_set1_ps(step.scale);
  for (int r = 0; r < step.rows; ++r) {
    float* scores = step.scores + r * kKeys;
    Cell* weights = step.weights + r * step.weights_stride;
    hide_keys(step, r, scores);
    const float shift = std::max(step.shift[r], largest_score(step, scores) * step.scale);
    const __m512 shifts = _mm512_set1_ps(shift);
    __m512 even_sums = _mm512_setzero_ps();
    __m512 odd_sums = _mm512_setzero_ps();
    for (int key = step.first; key < step.last; key += kKeyStep) {
      const __m512 even = exp2_lanes<3>(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), scale, shifts));
      const __m512 odd = exp2_lanes<3>(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key + kLanes), scale, shifts));
      even_sums = _mm512_add_ps(even_sums, even);
      odd_sums = _mm512_add_ps(odd_sums, odd);
      _mm512_storeu_si512(weights + key / 2, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
    }
    shift_row(step, r, shift, _mm512_add_ps(even_sums, odd_sums));
  }
}

void pack_bfloat16_rows(const Source& source, Cell* out, int out_stride) {
  pack_rows<uint16_t, 2, load_cells>(source, out, out_stride);
}

void pack_bfloat16_keys(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  pack_keys<uint16_t, 2, load_cells>(source, panels, panel_stride, padded_keys);
}

void pack_bfloat16_values(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  pack_value_pairs(source, panels, panel_stride, padded_keys);
}

void finish_bfloat16(const float* output, int output_stride, const float* sum, const Source& target) {
  finish<uint16_t>(output, output_stride, sum, target);
}

const Kernels float32_avx512 = {1,
                                pack_rows<float, 1, load_cells>,
                                pack_keys<float, 1, load_cells>,
                                pack_values<float, load_cells>,
                                multiply_float32,
                                softmax_float32,
                                finish<float>,
                                nothing,
                                nothing};

const Kernels bfloat16_avx512 = {1,
                                 pack_rows<uint16_t, 1, load_widened>,
                                 pack_keys<uint16_t, 1, load_widened>,
                                 pack_values<uint16_t, load_widened>,
                                 multiply_float32,
                                 softmax_float32,
                                 finish<uint16_t>,
                                 nothing,
                                 nothing};

const Kernels bfloat16_avx512_bf16 = {2,
                                      pack_bfloat16_rows,
                                      pack_bfloat16_keys,
                                      pack_bfloat16_values,
                                      multiply_bfloat16,
                                      softmax_bfloat16,
                                      finish_bfloat16,
                                      nothing,
                                      nothing};

}  // namespace embedmux::attention

#endif
