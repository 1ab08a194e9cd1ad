#include "gemm_int8_kernel.h"

#include <cstring>

#include "simd.h"

namespace embedmux {
namespace {

constexpr int64_t kFours = kInt8Depth / 4;          // in a tile
constexpr int64_t kTileBytes = kInt8StepBytes / 2;  // 16 columns

// The same last step everywhere: sums [4, 32] of codes become values.
void finish(const int32_t* sums, const int8_t* panel, int64_t steps, const RowScale* rows, const float* bias,
            float* block) {
  const auto* scales = reinterpret_cast<const float*>(panel + steps * kInt8StepBytes);
  const float* code_sums = scales + kInt8Columns;
  for (int64_t row = 0; row < kInt8Rows; ++row) {
    for (int64_t column = 0; column < kInt8Columns; ++column) {
      const int64_t place = row * kInt8Columns + column;
      block[place] = static_cast<float>(sums[place]) * rows[row].scale * scales[column] +
                     (rows[row].shift * code_sums[column] + bias[column]);
    }
  }
}

void multiply_baseline(const uint8_t* codes, int64_t depth, const int8_t* panel, int64_t steps, const RowScale* rows,
                       const float* bias, float* block) {
  int32_t sums[kInt8Rows * kInt8Columns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const int8_t* weights = panel + k / kInt8Depth * kInt8StepBytes + k % kInt8Depth / 4 * 64 + k % 4;
    for (int64_t row = 0; row < kInt8Rows; ++row) {
      const int32_t code = codes[row * depth + k];
      int32_t* sum = sums + row * kInt8Columns;
      for (int64_t column = 0; column < 16; ++column) {
        sum[column] += code * weights[column * 4];
        sum[16 + column] += code * weights[kTileBytes + column * 4];
      }
    }
  }
  finish(sums, panel, steps, rows, bias, block);
}

#ifdef EMBEDMUX_X86

// Bytes widened to 16 bits, where the sums of two products are exact: the instruction for bytes saturates. A register
// of sums holds four columns, each in two halves.
EMBEDMUX_AVX2 void multiply_avx2(const uint8_t* codes, int64_t depth, const int8_t* panel, int64_t steps,
                                 const RowScale* rows, const float* bias, float* block) {
  int32_t sums[kInt8Rows * kInt8Columns];
  for (int64_t tile = 0; tile < 2; ++tile) {
    for (int64_t pair = 0; pair < kInt8Rows; pair += 2) {
      __m256i totals[2][4] = {};
      for (int64_t step = 0; step < steps; ++step) {
        const int8_t* weights = panel + step * kInt8StepBytes + tile * kTileBytes;
        for (int64_t four = 0; four < kFours; ++four, weights += 64) {
          __m256i x[2];
          for (int row = 0; row < 2; ++row) {
            int32_t bytes;
            std::memcpy(&bytes, codes + (pair + row) * depth + step * kInt8Depth + four * 4, 4);
            x[row] = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(bytes)));
          }
          for (int part = 0; part < 4; ++part) {
            const __m256i w =
                _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + 16 * part)));
            for (int row = 0; row < 2; ++row) {
              totals[row][part] = _mm256_add_epi32(totals[row][part], _mm256_madd_epi16(x[row], w));
            }
          }
        }
      }
      for (int row = 0; row < 2; ++row) {
        alignas(32) int32_t halves[32];
        for (int part = 0; part < 4; ++part) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(halves + 8 * part), totals[row][part]);
        }
        int32_t* target = sums + (pair + row) * kInt8Columns + tile * 16;
        for (int column = 0; column < 16; ++column) target[column] = halves[2 * column] + halves[2 * column + 1];
      }
    }
  }
  finish(sums, panel, steps, rows, bias, block);
}

EMBEDMUX_AVX512_VNNI void multiply_vnni(const uint8_t* codes, int64_t depth, const int8_t* panel, int64_t steps,
                                        const RowScale* rows, const float* bias, float* block) {
  __m512i sums[kInt8Rows][2] = {};
  for (int64_t step = 0; step < steps; ++step) {
    const int8_t* weights = panel + step * kInt8StepBytes;
    for (int64_t four = 0; four < kFours; ++four, weights += 64) {
      const __m512i left = _mm512_loadu_si512(weights), right = _mm512_loadu_si512(weights + kTileBytes);
      for (int row = 0; row < kInt8Rows; ++row) {
        int32_t bytes;
        std::memcpy(&bytes, codes + row * depth + step * kInt8Depth + four * 4, 4);
        const __m512i x = _mm512_set1_epi32(bytes);
        sums[row][0] = _mm512_dpbusd_epi32(sums[row][0], x, left);
        sums[row][1] = _mm512_dpbusd_epi32(sums[row][1], x, right);
      }
    }
  }
  alignas(64) int32_t stored[kInt8Rows * kInt8Columns];
  for (int row = 0; row < kInt8Rows; ++row) {
    _mm512_store_si512(stored + row * kInt8Columns, sums[row][0]);
    _mm512_store_si512(stored + row * kInt8Columns + 16, sums[row][1]);
  }
  finish(stored, panel, steps, rows, bias, block);
}

#endif

}  // namespace

Int8Kernel choose_int8_kernel() {
#ifdef EMBEDMUX_X86
  if (has_vnni()) return multiply_vnni;
  if (isa() >= Isa::avx2) return multiply_avx2;
#endif
  return multiply_baseline;
}

}  // namespace embedmux
