// Attention with AVX-512 in float32, by fused multiply-add; 16-bit operands are widened when they are packed.
#include "attention_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {
namespace {

constexpr int kRowBlock = 4;  // 4 rows x 4 panels of accumulators leave half the registers for operands
constexpr int kPanelBlock = 4;

template <typename T, Load load>
EMBEDMUX_AVX512 void pack_values(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  for (int key = 0; key < padded_keys; ++key) {
    const T* start = key < source.rows ? source.row<T>(key) : nullptr;
    for (int d = 0; d < source.depth; d += kLanes) {
      _mm512_storeu_si512(panels + d / kLanes * panel_stride + key * kLanes, load(start, d, source.depth));
    }
  }
}

// Rows beyond product.rows are computed from whatever the workspace holds and never read.
template <int Panels>
EMBEDMUX_AVX512 void multiply_panels(const Product& product, int first) {
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
        const auto cell = static_cast<int>(left[i * product.left_stride + c]);
        const __m512 value = _mm512_castsi512_ps(_mm512_set1_epi32(cell));
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

// The number of panels changes which registers are used, not what is added to a sum or in which order.
void multiply(const Product& product) {
  int first = 0;
  for (; first + kPanelBlock <= product.num_panels; first += kPanelBlock) multiply_panels<kPanelBlock>(product, first);
  if (product.num_panels - first == 3) multiply_panels<3>(product, first);
  if (product.num_panels - first == 2) multiply_panels<2>(product, first);
  if (product.num_panels - first == 1) multiply_panels<1>(product, first);
}

EMBEDMUX_AVX512 void softmax(const Softmax& step) {
  const __m512 scale = _mm512_set1_ps(step.scale);
  for (int base = 0; base < step.rows; base += kLanes) {
    const __m512 decay = move_shifts(step, base);
    __m512 sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int r = base + i;
      sums[i] = _mm512_setzero_ps();
      if (r >= step.rows) continue;
      const float* scores = step.scores + r * kKeys;
      auto* weights = reinterpret_cast<float*>(step.weights + r * step.weights_stride);
      const __m512 shift = _mm512_set1_ps(step.shift[r]);
      const Visible visible(step, r);
      for (int key = step.first; key < visible.first; key += kLanes) _mm512_storeu_ps(weights + key, sums[i]);
      for (int key = visible.last; key < step.last; key += kLanes) _mm512_storeu_ps(weights + key, _mm512_setzero_ps());
      for (int key = visible.first; key < visible.last; key += kLanes) {
        const __m512 weight = exp2_lanes<5>(_mm512_fmsub_ps(_mm512_loadu_ps(scores + key), scale, shift));
        sums[i] = _mm512_add_ps(sums[i], weight);
        _mm512_storeu_ps(weights + key, weight);
      }
    }
    move_sums(step, base, decay, sums);
  }
}

EMBEDMUX_AVX512 inline void store_halves(uint16_t* target, __mmask16 lanes, __m512 values) {
  _mm256_mask_storeu_epi16(target, lanes, _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

template <typename T, void (*store)(T*, __mmask16, __m512)>
EMBEDMUX_AVX512 void finish(const float* output, int output_stride, const float* sum, const Source& target) {
  for (int r = 0; r < target.rows; ++r) {
    const __m512 inverse = _mm512_set1_ps(1.0F / sum[r]);
    T* out = const_cast<T*>(target.row<T>(r));
    for (int d = 0; d < target.depth; d += kLanes) {
      const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(output + r * output_stride + d), inverse);
      store(out + d, first_lanes(target.depth - d), values);
    }
  }
}

}  // namespace

// clang-format off
const Kernels float32_avx512 = {
    attend_in_blocks, nothing, nothing, 1, pack_rows<float, 1, load_cells>, pack_keys<float, 1, load_cells>, pack_values<float, load_cells>,
    multiply, softmax, finish<float, store_lanes>};

const Kernels float16_avx512 = {
    attend_in_blocks, nothing, nothing, 1, pack_rows<uint16_t, 1, load_widened_half>, pack_keys<uint16_t, 1, load_widened_half>,
    pack_values<uint16_t, load_widened_half>, multiply, softmax, finish<uint16_t, store_halves>};

const Kernels bfloat16_avx512 = {
    attend_in_blocks, nothing, nothing, 1, pack_rows<uint16_t, 1, load_widened>, pack_keys<uint16_t, 1, load_widened>, pack_values<uint16_t, load_widened>,
    multiply, softmax, finish<uint16_t, store_lanes>};
// clang-format on

}  // namespace embedmux::attention

#endif
