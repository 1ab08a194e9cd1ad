// Scores with AVX-512, 16 sums at a time: for each of 4 queries x 4 rows, or of 1 query x 16 rows, a register of
// partial sums grows along the dimensions; at the end the 16 registers are folded into one. A pair's partial sums and
// their order of addition are the same in both shapes and for any number of rows and queries.
//
// Include it once in a file, with EMBEDMUX_LANES defined as the target attribute of its functions.
#pragma once

#include <algorithm>

#include "similarity.h"

#ifdef EMBEDMUX_X86

namespace embedmux::similarity {
namespace {

// Lane by lane: the sum over `first`'s lanes l and l + 8 in the lower half, over `second`'s in the upper one. And so
// on, until lane i of the last result is the sum over the i-th register. The order is that of sum_lanes in
// math_portable.h.
template <typename Step>
EMBEDMUX_LANES inline __m512i fold_8(__m512i first, __m512i second) {
  return Step::add(_mm512_shuffle_i64x2(first, second, 0x44), _mm512_shuffle_i64x2(first, second, 0xEE));
}

template <typename Step>
EMBEDMUX_LANES inline __m512i fold_4(__m512i first, __m512i second) {
  return Step::add(_mm512_shuffle_i64x2(first, second, 0x88), _mm512_shuffle_i64x2(first, second, 0xDD));
}

template <typename Step>
EMBEDMUX_LANES inline __m512i fold_2(__m512i first, __m512i second) {
  return Step::add(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
}

template <typename Step>
EMBEDMUX_LANES inline __m512i fold_1(__m512i first, __m512i second) {
  const __m512 a = _mm512_castsi512_ps(first), b = _mm512_castsi512_ps(second);
  return Step::add(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
                   _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xDD)));
}

template <typename Step>
EMBEDMUX_LANES inline __m512i fold(const __m512i (&sums)[16]) {
  __m512i fours[4];
  for (int j = 0; j < 4; ++j) {
    fours[j] = fold_4<Step>(fold_8<Step>(sums[j], sums[4 + j]), fold_8<Step>(sums[8 + j], sums[12 + j]));
  }
  return fold_1<Step>(fold_2<Step>(fours[0], fours[1]), fold_2<Step>(fours[2], fours[3]));
}

// sums[r · Queries + q] of rows at the given pointers: an array, or Strided.
template <typename Step, int Queries, int Rows, typename Pointers>
EMBEDMUX_LANES inline __m512i multiply(const uint8_t* queries, int64_t query_bytes, const Pointers& rows,
                                       int64_t row_bytes) {
  static_assert(Queries * Rows == 16, "16 sums are folded into one register");
  __m512i sums[16];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  for (int64_t at = 0; at < row_bytes; at += kCell) {
    // One loop with masks: with a second one for the tail gcc 12 copies all sums in every turn.
    const __mmask64 bytes = row_bytes - at >= kCell ? ~__mmask64{0} : (__mmask64{1} << (row_bytes - at)) - 1;
    __m512i query[Queries];
    for (int q = 0; q < Queries; ++q) query[q] = _mm512_load_si512(queries + q * query_bytes + at);
    for (int r = 0; r < Rows; ++r) {
      const __m512i row = Step::row(_mm512_maskz_loadu_epi8(bytes, rows[r] + at));
      for (int q = 0; q < Queries; ++q) sums[r * Queries + q] = Step::step(sums[r * Queries + q], query[q], row);
    }
  }
  return fold<Step>(sums);
}

// Rows of one stride, without an array of pointers: with short rows, filling that costs as much as the sums.
struct Strided {
  const uint8_t* first;
  int64_t stride;
  const uint8_t* operator[](int row) const { return first + row * stride; }
};

constexpr int kRowsInL1 = 8;  // meet all queries of a group while they, and four queries at a time, are in this cache

// Rows past the block's last are that one again; their sums are never read.
template <typename Step>
EMBEDMUX_LANES void score_lanes(const Group& group, const Block& block, int32_t* sums) {
  const auto row_at = [&](int row) { return block.rows + std::min(row, block.count - 1) * block.stride; };
  const int64_t ahead_bytes = block.ahead == nullptr ? 0 : block.count * block.stride;
  if (group.columns == 1) {
    for (int first = 0; first < block.count; first += 16) {
      for (int64_t at = first * block.stride; at < std::min(ahead_bytes, (first + 16) * block.stride); at += kCell) {
        _mm_prefetch(block.ahead + at, _MM_HINT_T0);
      }
      __m512i result;
      if (first + 16 <= block.count) {
        const Strided rows{block.rows + first * block.stride, block.stride};
        result = multiply<Step, 1, 16>(group.queries, group.query_bytes, rows, group.row_bytes);
      } else {
        const uint8_t* rows[16];
        for (int r = 0; r < 16; ++r) rows[r] = row_at(first + r);
        result = multiply<Step, 1, 16>(group.queries, group.query_bytes, rows, group.row_bytes);
      }
      _mm512_storeu_si512(sums + first, Step::add(result, _mm512_set1_epi32(group.bias[0])));
    }
    return;
  }
  for (int start = 0; start < block.count; start += kRowsInL1) {
    for (int column = 0; column < group.columns; column += 4) {
      const uint8_t* queries = group.queries + column * group.query_bytes;
      const auto* biases = reinterpret_cast<const __m128i*>(group.bias + column);
      const __m512i bias = _mm512_broadcast_i32x4(_mm_loadu_si128(biases));
      for (int first = start; first < std::min(start + kRowsInL1, block.count); first += 4) {
        const uint8_t* rows[4];
        for (int r = 0; r < 4; ++r) rows[r] = row_at(first + r);
        const __m512i sum = multiply<Step, 4, 4>(queries, group.query_bytes, rows, group.row_bytes);
        const __m512i result = Step::add(sum, bias);
        auto* out = reinterpret_cast<__m128i*>(sums + first * group.columns + column);
        const int step = group.columns / 4;
        _mm_storeu_si128(out, _mm512_castsi512_si128(result));
        _mm_storeu_si128(out + step, _mm512_extracti32x4_epi32(result, 1));
        _mm_storeu_si128(out + 2 * step, _mm512_extracti32x4_epi32(result, 2));
        _mm_storeu_si128(out + 3 * step, _mm512_extracti32x4_epi32(result, 3));
      }
    }
  }
}

}  // namespace
}  // namespace embedmux::similarity

#endif
