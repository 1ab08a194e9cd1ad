// Attention with AVX-512 in bfloat16: vdpbf16ps on cells of two neighbours, weights rounded to bfloat16.
#include "attention_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {
namespace {

constexpr int kRowBlock = 4;
constexpr int kPanelBlock = 4;

template <int Panels>
EMBEDMUX_AVX512_BF16 void multiply_panels(const Product& product, int first) {
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

void multiply(const Product& product) {
  int first = 0;
  for (; first + kPanelBlock <= product.num_panels; first += kPanelBlock) multiply_panels<kPanelBlock>(product, first);
  if (product.num_panels - first == 3) multiply_panels<3>(product, first);
  if (product.num_panels - first == 2) multiply_panels<2>(product, first);
  if (product.num_panels - first == 1) multiply_panels<1>(product, first);
}

}  // namespace

void pack_bfloat16_rows(const Source& source, Cell* out, int out_stride) {
  pack_rows<uint16_t, 2, load_cells>(source, out, out_stride);
}

void pack_bfloat16_keys(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  pack_keys<uint16_t, 2, load_cells>(source, panels, panel_stride, padded_keys);
}

// Cell (pair, d) holds the elements d of the keys 2 pair and 2 pair + 1.
EMBEDMUX_AVX512 void pack_bfloat16_values(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  for (int key = 0; key < padded_keys; key += 2) {
    const uint16_t* even = key < source.rows ? source.row<uint16_t>(key) : nullptr;
    const uint16_t* odd = key + 1 < source.rows ? source.row<uint16_t>(key + 1) : nullptr;
    for (int d = 0; d < source.depth; d += kLanes) {
      const __m512i low = _mm512_srli_epi32(load_widened(even, d, source.depth), 16);
      const __m512i pairs = _mm512_or_si512(low, load_widened(odd, d, source.depth));
      _mm512_storeu_si512(panels + d / kLanes * panel_stride + key / 2 * kLanes, pairs);
    }
  }
}

EMBEDMUX_AVX512_BF16 void softmax_bfloat16(const Softmax& step) {
  const __m512 scale = _mm512_set1_ps(step.scale);
  const __m512i zero = _mm512_setzero_si512();
  for (int base = 0; base < step.rows; base += kLanes) {
    const __m512 decay = move_shifts(step, base);
    __m512 sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int r = base + i;
      sums[i] = _mm512_setzero_ps();
      if (r >= step.rows) continue;
      const float* scores = step.scores + r * kKeys;
      auto* weights = reinterpret_cast<uint16_t*>(step.weights + r * step.weights_stride);
      const __m512 shift = _mm512_set1_ps(step.shift[r]);
      const Visible visible(step, r);
      for (int key = step.first; key < visible.first; key += kLanes) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + key), _mm512_castsi512_si256(zero));
      }
      for (int key = visible.last; key < step.last; key += kLanes) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + key), _mm512_castsi512_si256(zero));
      }
      for (int key = visible.first; key < visible.last; key += kLanes) {
        const __m512 weight = exp2_lanes<3>(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), scale, shift));
        sums[i] = _mm512_add_ps(sums[i], weight);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + key), (__m256i)_mm512_cvtneps_pbh(weight));
      }
    }
    move_sums(step, base, decay, sums);
  }
}

EMBEDMUX_AVX512_BF16 void finish_bfloat16(const float* output, int output_stride, const float* sum,
                                          const Source& target) {
  for (int r = 0; r < target.rows; ++r) {
    const __m512 inverse = _mm512_set1_ps(1.0F / sum[r]);
    auto* out = const_cast<uint16_t*>(target.row<uint16_t>(r));
    for (int d = 0; d < target.depth; d += kLanes) {
      const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(output + r * output_stride + d), inverse);
      _mm256_mask_storeu_epi16(out + d, first_lanes(target.depth - d), (__m256i)_mm512_cvtneps_pbh(values));
    }
  }
}

const Kernels bfloat16_avx512_bf16 = {
    attend_in_blocks, nothing,          nothing,        2, pack_bfloat16_rows, pack_bfloat16_keys, pack_bfloat16_values,
    multiply,         softmax_bfloat16, finish_bfloat16};

}  // namespace embedmux::attention

#endif
