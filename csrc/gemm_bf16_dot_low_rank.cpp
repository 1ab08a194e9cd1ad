#include "gemm_bf16_dot_low_rank.h"

#include <algorithm>
#include <array>
#include <utility>

#include "lora_vector.h"
#include "math_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux {
namespace {

constexpr int64_t kVectorPairs = 32;  // bfloat16 of a register

EMBEDMUX_AVX512_BF16 inline __m512bh load_pairs(const uint16_t* source, __mmask32 mask) {
  return (__m512bh)_mm512_maskz_loadu_epi16(mask, source);
}

// down[row][q] = A[q] · x[row] for R rows and Q rows of A, at most 16 of them. Each sum runs alone through the lanes in
// order and then through one tree, so R and Q are free to follow the shape.
template <int R, int Q>
EMBEDMUX_AVX512_BF16 void dot_rows(const uint16_t* x, const uint16_t* a, int64_t inner, float* down, int64_t stride) {
  static_assert(R * Q <= 16);
  __m512 sums[R][Q] = {};
  for (int64_t k = 0; k < inner; k += kVectorPairs) {
    const __mmask32 mask = inner - k >= kVectorPairs ? 0xFFFFFFFF : (1U << (inner - k)) - 1;
    __m512bh factors[Q];
    for (int q = 0; q < Q; ++q) factors[q] = load_pairs(a + q * inner + k, mask);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512bh values = load_pairs(x + r * inner + k, mask);
      for (int q = 0; q < Q; ++q) sums[r][q] = _mm512_dpbf16_ps(sums[r][q], values, factors[q]);
    }
  }
  Lanes<16>::Float trees[16] = {};
  for (int place = 0; place < R * Q; ++place) trees[place] = (Lanes<16>::Float)sums[place / Q][place % Q];
  sum_lanes<16>(trees);
  float lanes[16];
  std::memcpy(lanes, trees, sizeof(lanes));
  for (int place = 0; place < R * Q; ++place) down[place / Q * stride + place % Q] = lanes[place];
}

template <int R>
void shrink_rows(const DotPart& part, const uint16_t* x, int64_t inner, float* down) {
  int64_t q = 0;
  for (; q + 4 <= part.rank; q += 4) dot_rows<R, 4>(x, part.a + q * inner, inner, down + q, part.rank);
  for (; q < part.rank; ++q) dot_rows<R, 1>(x, part.a + q * inner, inner, down + q, part.rank);
}

// Columns outside the slice keep their sums, whatever A x is.
template <int R>
EMBEDMUX_AVX512_BF16 void expand_rows(const DotPart& part, const float* down, int64_t column, float* sums) {
  const int64_t width = part.last_column - part.first_column;
  const uint16_t* b = part.b + column - part.first_column;
  __mmask16 masks[4];
  __m512 totals[R][4];
  for (int v = 0; v < 4; ++v) {
    const int64_t start = column + 16 * v;
    masks[v] = first_lanes(part.last_column - start) & ~first_lanes(part.first_column - start);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 4; ++v) totals[r][v] = _mm512_load_ps(sums + r * kDotColumns + 16 * v);
  }
  for (int64_t q = 0; q < part.rank; ++q, b += width) {
    __m512 factors[4];
    for (int v = 0; v < 4; ++v) factors[v] = load_lanes(b + 16 * v, masks[v]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512 value = _mm512_set1_ps(down[r * part.rank + q]);
      for (int v = 0; v < 4; ++v) totals[r][v] = _mm512_mask3_fmadd_ps(value, factors[v], totals[r][v], masks[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 4; ++v) _mm512_store_ps(sums + r * kDotColumns + 16 * v, totals[r][v]);
  }
}

}  // namespace

std::vector<DotPart> shrink_dot_parts(const DotProduct& product, const DotTask& task, Scratch<float>& scratch) {
  const LoraCall& call = product.call;
  const uint16_t* arena = static_cast<const uint16_t*>(call.arena);
  const int64_t first_column = task.first_panel * kDotColumns, last_column = task.last_panel * kDotColumns;
  std::vector<DotPart> parts;
  int64_t elements = 0;
  for (const LoraSegment& segment : call.segments) {
    const int64_t first = std::max(segment.first_row, task.first_row), last = std::min(segment.last_row, task.last_row);
    if (first >= last) continue;
    for (int64_t slice = 0; slice < call.num_slices(); ++slice) {
      const LoraSlice& factors = segment.slices[slice];
      const int64_t start = call.slices[slice], end = call.slices[slice + 1];
      // Of a gated product every panel reads both slices.
      if (factors.rank == 0 || (!call.is_gated && (start >= last_column || end <= first_column))) continue;
      parts.push_back({first - task.first_row, last - task.first_row, start, end, factors.rank, arena + factors.a,
                       arena + factors.b, nullptr});
      elements += (last - first) * factors.rank;
    }
  }
  float* down = scratch.reserve(elements);
  for (DotPart& part : parts) {
    part.down = down;
    const uint16_t* x = product.x + (task.first_row + part.first_row) * call.inner;
    int64_t rows = part.last_row - part.first_row;
    for (; rows >= 4; rows -= 4, x += 4 * call.inner, down += 4 * part.rank) shrink_rows<4>(part, x, call.inner, down);
    for (; rows > 0; --rows, x += call.inner, down += part.rank) shrink_rows<1>(part, x, call.inner, down);
  }
  return parts;
}

std::vector<DotTile> cut_dot_tiles(const LoraCall& call, const DotTask& task, const std::vector<DotPart>& parts) {
  const int64_t all_rows = task.last_row - task.first_row, count = divide_up(all_rows, kDotRows);
  const int64_t num_parts = static_cast<int64_t>(parts.size());
  std::vector<DotTile> tiles(count);
  auto segment = call.segments.begin();
  int64_t row = 0, part = 0;
  for (int64_t index = 0; index < count; ++index) {
    tiles[index] = {row, all_rows / count + (index < all_rows % count), {}};
    for (const int64_t end = row + tiles[index].rows; row < end;) {
      while (segment != call.segments.end() && segment->last_row - task.first_row <= row) ++segment;
      while (part < num_parts && parts[part].last_row <= row) ++part;
      DotPiece piece{row, end - row, nullptr, part, part};
      if (segment != call.segments.end()) {
        const int64_t begin = segment->first_row - task.first_row;
        if (begin <= row) piece.segment = &*segment;
        piece.rows = std::min(end, begin <= row ? segment->last_row - task.first_row : begin) - row;
      }
      while (piece.last_part < num_parts && parts[piece.last_part].first_row <= row) ++piece.last_part;
      tiles[index].pieces.push_back(piece);
      row += piece.rows;
    }
  }
  return tiles;
}

void expand_dot_part(const DotPart& part, int64_t row, int64_t rows, int64_t column, float* sums) {
  static constexpr std::array<decltype(&expand_rows<1>), kDotRows + 1> kKernels = {
      nullptr, expand_rows<1>, expand_rows<2>, expand_rows<3>, expand_rows<4>, expand_rows<5>, expand_rows<6>};
  kKernels[rows](part, part.down + (row - part.first_row) * part.rank, column, sums);
}

}  // namespace embedmux

#endif
