// Attention without wide intrinsics: plain loops over 16 lanes that the compiler turns into SSE2, NEON or, in the
// functions marked so, AVX2. All arithmetic is float32; 16-bit operands are widened when they are packed.
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention.h"
#include "math_portable.h"

namespace embedmux::attention {
namespace {

struct Half {
  uint16_t bits;
};

using embedmux::narrow;
using embedmux::widen;
EMBEDMUX_INLINE float widen(Half value) { return c10::detail::fp16_ieee_to_fp32_value(value.bits); }
EMBEDMUX_INLINE void narrow(float value, Half* out) { out->bits = c10::detail::fp16_ieee_from_fp32_value(value); }

EMBEDMUX_INLINE float* floats(Cell* cells) { return reinterpret_cast<float*>(cells); }
EMBEDMUX_INLINE const float* floats(const Cell* cells) { return reinterpret_cast<const float*>(cells); }

template <typename T>
EMBEDMUX_INLINE void pack_rows(const Source& source, Cell* out, int out_stride) {
  for (int r = 0; r < source.rows; ++r) {
    float* target = floats(out + r * out_stride);
    for (int d = 0; d < source.depth; ++d) target[d] = widen(source.row<T>(r)[d]);
    std::fill(target + source.depth, target + out_stride, 0.0F);
  }
}

template <typename T>
EMBEDMUX_INLINE void pack_keys(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  for (int key = 0; key < padded_keys; ++key) {
    float* target = floats(panels + key / kLanes * panel_stride) + key % kLanes;
    const int depth = key < source.rows ? source.depth : 0;
    for (int d = 0; d < depth; ++d) target[d * kLanes] = widen(source.row<T>(key)[d]);
    for (int d = depth; d < panel_stride / kLanes; ++d) target[d * kLanes] = 0.0F;
  }
}

template <typename T>
EMBEDMUX_INLINE void pack_values(const Source& source, Cell* panels, int panel_stride, int padded_keys) {
  for (int key = 0; key < padded_keys; ++key) {
    for (int start = 0; start < source.depth; start += kLanes) {
      float* target = floats(panels + start / kLanes * panel_stride) + key * kLanes;
      const int lanes = key < source.rows ? std::min(kLanes, source.depth - start) : 0;
      for (int lane = 0; lane < lanes; ++lane) target[lane] = widen(source.row<T>(key)[start + lane]);
      std::fill(target + lanes, target + kLanes, 0.0F);
    }
  }
}

// Floats in the compiler's vector type, which becomes registers of the function that the loop is inlined into.
template <int Lanes>
struct Floats {
  typedef float Vector __attribute__((vector_size(4 * Lanes)));
};

template <int Lanes>
EMBEDMUX_INLINE void multiply(const Product& product) {
  using Vector = typename Floats<Lanes>::Vector;
  constexpr int kParts = kLanes / Lanes;
  constexpr int kRowBlock = Lanes == 4 ? 2 : 4;  // what 16 registers hold
  for (int panel = 0; panel < product.num_panels; ++panel) {
    for (int r = 0; r < product.rows; r += kRowBlock) {
      const float* left = floats(product.left + r * product.left_stride);
      const Cell* panel_cells = product.panels + panel * product.panel_stride;
      float* out = product.out + r * product.out_stride + panel * kLanes;
      Vector sums[kRowBlock][kParts] = {};
      for (int i = 0; product.accumulate && i < kRowBlock; ++i) {
        for (int part = 0; part < kParts; ++part) {
          std::memcpy(&sums[i][part], out + i * product.out_stride + part * Lanes, sizeof(Vector));
        }
      }
      for (int c = 0; c < product.cells; ++c) {
        for (int part = 0; part < kParts; ++part) {
          Vector right;
          std::memcpy(&right, panel_cells + c * kLanes + part * Lanes, sizeof(Vector));
          for (int i = 0; i < kRowBlock; ++i) {
            sums[i][part] += left[i * product.left_stride + c] * right;
          }
        }
      }
      for (int i = 0; i < kRowBlock; ++i) {
        for (int part = 0; part < kParts; ++part) {
          std::memcpy(out + i * product.out_stride + part * Lanes, &sums[i][part], sizeof(Vector));
        }
      }
    }
  }
}

EMBEDMUX_INLINE void softmax(const Softmax& step) {
  for (int r = 0; r < step.rows; ++r) {
    float* scores = step.scores + r * kKeys;
    float* weights = floats(step.weights + r * step.weights_stride);
    std::fill(scores + step.first, scores + std::max(step.first, std::min(step.low[r], step.last)), -INFINITY);
    std::fill(scores + std::max(step.first, std::min(step.high[r], step.last)), scores + step.last, -INFINITY);

    float largest[kLanes];
    std::fill_n(largest, kLanes, -INFINITY);
    for (int key = step.first; key < step.last; key += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        largest[lane] = scores[key + lane] > largest[lane] ? scores[key + lane] : largest[lane];
      }
    }
    const float shift = std::max(step.shift[r], *std::max_element(largest, largest + kLanes) * step.scale);

    float sums[kLanes] = {};
    for (int key = step.first; key < step.last; key += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        weights[key + lane] = exp2_portable(scores[key + lane] * step.scale - shift);
        sums[lane] += weights[key + lane];
      }
    }
    const float decay = exp2_portable(step.shift[r] - shift);
    step.sum[r] = step.sum[r] * decay + sum_lanes(sums);
    step.shift[r] = shift;
    float* output = step.output + r * step.output_stride;
    for (int d = 0; step.started && d < step.output_stride; ++d) output[d] *= decay;
  }
}

template <typename T>
EMBEDMUX_INLINE void finish(const float* output, int output_stride, const float* sum, const Source& target) {
  for (int r = 0; r < target.rows; ++r) {
    const float inverse = 1.0F / sum[r];
    T* out = const_cast<T*>(target.row<T>(r));
    for (int d = 0; d < target.depth; ++d) narrow(output[r * output_stride + d] * inverse, out + d);
  }
}

// The same loops once for each instruction set: a function compiles what it inlines for its own target.
#define EMBEDMUX_ATTENTION_VARIANT(NAME, ELEMENT, LANES, TARGET)                                       \
  TARGET void NAME##_pack_rows(const Source& source, Cell* out, int stride) {                          \
    pack_rows<ELEMENT>(source, out, stride);                                                           \
  }                                                                                                    \
  TARGET void NAME##_pack_keys(const Source& source, Cell* panels, int stride, int keys) {             \
    pack_keys<ELEMENT>(source, panels, stride, keys);                                                  \
  }                                                                                                    \
  TARGET void NAME##_pack_values(const Source& source, Cell* panels, int stride, int keys) {           \
    pack_values<ELEMENT>(source, panels, stride, keys);                                                \
  }                                                                                                    \
  TARGET void NAME##_multiply(const Product& product) { multiply<LANES>(product); }                    \
  TARGET void NAME##_softmax(const Softmax& step) { softmax(step); }                                   \
  TARGET void NAME##_finish(const float* output, int stride, const float* sum, const Source& target) { \
    finish<ELEMENT>(output, stride, sum, target);                                                      \
  }

EMBEDMUX_ATTENTION_VARIANT(float32_baseline, float, 4, )
EMBEDMUX_ATTENTION_VARIANT(float16_baseline, Half, 4, )
EMBEDMUX_ATTENTION_VARIANT(bfloat16_baseline, uint16_t, 4, )
#ifdef EMBEDMUX_X86
EMBEDMUX_ATTENTION_VARIANT(float32_avx2, float, 8, EMBEDMUX_AVX2)
EMBEDMUX_ATTENTION_VARIANT(float16_avx2, Half, 8, EMBEDMUX_AVX2)
EMBEDMUX_ATTENTION_VARIANT(bfloat16_avx2, uint16_t, 8, EMBEDMUX_AVX2)
#endif

}  // namespace

#define EMBEDMUX_ATTENTION_TABLE(NAME)                                                                           \
  const Kernels NAME = {                                                                                         \
      attend_in_blocks, nothing,        nothing,      1, NAME##_pack_rows, NAME##_pack_keys, NAME##_pack_values, \
      NAME##_multiply,  NAME##_softmax, NAME##_finish};

EMBEDMUX_ATTENTION_TABLE(float32_baseline)
EMBEDMUX_ATTENTION_TABLE(float16_baseline)
EMBEDMUX_ATTENTION_TABLE(bfloat16_baseline)
#ifdef EMBEDMUX_X86
EMBEDMUX_ATTENTION_TABLE(float32_avx2)
EMBEDMUX_ATTENTION_TABLE(float16_avx2)
EMBEDMUX_ATTENTION_TABLE(bfloat16_avx2)
#endif

}  // namespace embedmux::attention
