// Bringing operands into the form AMX multiplies. A tile is 16 rows of 64 bytes; TDPBF16PS adds to a float tile C the
// product of a row tile (16 rows of 32 bfloat16 along K) and a pair tile (16 pairs along K of 16 columns).
#pragma once

#include "simd.h"

#ifdef EMBEDMUX_X86

#include <algorithm>
#include <cstdint>

#include "gemm_tasks.h"

namespace embedmux {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;                    // bfloat16 along K
constexpr int64_t kTileElements = 16 * 32;            // bfloat16; 1 KiB
constexpr int64_t kPanelColumns = 32;                 // two tiles
constexpr int64_t kBlockRows = 32;                    // two tiles
constexpr int64_t kStepElements = 2 * kTileElements;  // one step along K of a panel, or of a block of 32 rows

// The low `count` bits of 32.
inline uint32_t low_bits(int64_t count) {
  return count <= 0 ? 0 : count >= 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
}

// The tile instructions are opaque to the compiler: what they read must be in memory before.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

// 16 bfloat16 as float.
EMBEDMUX_AMX inline __m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

// A pair tile from up to 16 rows of W (or A), [rows, K] row-major, `depth` of the 32 along K: the transpose of 16 x 16
// words, each a pair. What is missing becomes zero.
EMBEDMUX_AMX inline void transpose_to_pairs(const uint16_t* source, int64_t stride, int64_t rows, int64_t depth,
                                            uint16_t* tile) {
  __m512i r[16], t[16];
  const __mmask32 mask = low_bits(depth);
  for (int64_t i = 0; i < 16; ++i) {
    r[i] = i < rows ? _mm512_maskz_loadu_epi16(mask, source + i * stride) : _mm512_setzero_si512();
  }
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512i even_low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    _mm512_store_si512(tile + 32 * i, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    _mm512_store_si512(tile + 32 * (4 + i), _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    _mm512_store_si512(tile + 32 * (8 + i), _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    _mm512_store_si512(tile + 32 * (12 + i), _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}

// `rows` rows of x as row tiles: blocks of 32 rows, in a block steps along K, in a step two tiles. The missing
// rows of the last block and the missing depth of the last step become zero.
EMBEDMUX_AMX inline void gather_rows(const uint16_t* x, int64_t inner, int64_t rows, int64_t steps, uint16_t* tiles) {
  for (int64_t row = 0; row < round_up(rows, kBlockRows); ++row) {
    const bool exists = row < rows;
    const uint16_t* source = x + (exists ? row : 0) * inner;
    uint16_t* target = tiles + row / 32 * steps * kStepElements + row % 32 * kTileDepth;
    for (int64_t step = 0; step < steps; ++step) {
      const __mmask32 mask = exists ? low_bits(inner - step * kTileDepth) : 0;
      _mm512_store_si512(target + step * kStepElements, _mm512_maskz_loadu_epi16(mask, source + step * kTileDepth));
    }
  }
}

// 16 rows of B, [rank, width] row-major, as two pair tiles for the columns of `mask` in a panel whose column 0 stands
// at `source`. Each pair holds one value twice, to meet the two halves of a value of A x.
EMBEDMUX_AMX inline void duplicate_to_pairs(const uint16_t* source, int64_t width, int64_t rows, __mmask32 mask,
                                            uint16_t* tiles) {
  for (int64_t i = 0; i < kTileRows; ++i) {
    const __m512i values = i < rows ? _mm512_maskz_loadu_epi16(mask, source + i * width) : _mm512_setzero_si512();
    const __m512i left = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(values));
    const __m512i right = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(values, 1));
    _mm512_store_si512(tiles + 32 * i, _mm512_or_si512(left, _mm512_slli_epi32(left, 16)));
    _mm512_store_si512(tiles + kTileElements + 32 * i, _mm512_or_si512(right, _mm512_slli_epi32(right, 16)));
  }
}

// 16 pairs, each of a value of the one and a value of the other.
EMBEDMUX_AMX inline __m512i interleave(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// 32 rows of B likewise, each pair of one row and the next.
EMBEDMUX_AMX inline void interleave_to_pairs(const uint16_t* source, int64_t width, int64_t rows, __mmask32 mask,
                                             uint16_t* tiles) {
  for (int64_t i = 0; i < kTileRows; ++i, source += 2 * width) {
    const __m512i even = _mm512_maskz_loadu_epi16(2 * i < rows ? mask : 0, source);
    const __m512i odd = _mm512_maskz_loadu_epi16(2 * i + 1 < rows ? mask : 0, source + width);
    _mm512_store_si512(tiles + 32 * i, interleave(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd)));
    _mm512_store_si512(tiles + kTileElements + 32 * i,
                       interleave(_mm512_extracti64x4_epi64(even, 1), _mm512_extracti64x4_epi64(odd, 1)));
  }
}

// A row tile from a float tile of A x: each value becomes the pair of its bfloat16 and of the rest, which together hold
// 16 bits of it. Rows outside [first, last) become zero: they belong to other segments.
EMBEDMUX_AMX inline void split_to_pairs(const float* tile, int64_t first, int64_t last, uint16_t* target) {
  for (int64_t row = 0; row < kTileRows; ++row) {
    __m512i pairs = _mm512_setzero_si512();
    if (row >= first && row < last) {
      const __m512 value = _mm512_load_ps(tile + 16 * row);
      const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
      const __m512 rest = _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
      const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rest));
      pairs = _mm512_or_si512(high, _mm512_slli_epi32(low, 16));
    }
    _mm512_store_si512(target + 32 * row, pairs);
  }
}

// The left or right half of a row tile from a float tile of A x, each value rounded to bfloat16, rows as above.
EMBEDMUX_AMX inline void round_to_half(const float* tile, int64_t first, int64_t last, uint16_t* half) {
  for (int64_t row = 0; row < kTileRows; ++row) {
    const bool is_own = row >= first && row < last;
    const __m256i values = (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(tile + 16 * row));
    _mm256_store_si256(reinterpret_cast<__m256i*>(half + 32 * row), is_own ? values : _mm256_setzero_si256());
  }
}

}  // namespace embedmux

#endif
