// A task walks its panels, and for each its tiles of up to six rows: a panel's weights come from the second-level cache
// faster than the products of one tile use them up, so each sum runs through all of K in a register, pair by pair, and
// nothing but K decides in which order a row is summed. The sums of a tile then wait in the first-level cache for
// low-rank parts, bias, activation and the one rounding.
//
// The instruction adds a pair's two products and the sum so far in a way of its own, and takes subnormal numbers for
// zero: these bits differ from those of the widening product, and may from one make of processor to another.
#include "gemm_bf16_dot_kernel.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "gemm_bf16_dot_low_rank.h"
#include "lora_vector.h"
#include "math_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux {
namespace {

constexpr int64_t kTileElements = kDotRows * kDotColumns;  // of sums
constexpr int64_t kPairElements = 2 * kDotColumns;         // of weights: four lines of memory
constexpr int64_t kLineElements = 32;
constexpr int64_t kTilesAhead = 2;  // that call the next panel's weights from memory, every second line each

inline __mmask32 first_of_32(int64_t count) { return count >= 32 ? 0xFFFFFFFF : (1U << count) - 1; }

// What stands behind the last value of an odd row is the next one's, and may be no number.
template <bool IsWhole>
EMBEDMUX_INLINE int32_t read_pair(const uint16_t* x) {
  int32_t pair = *x;
  if constexpr (IsWhole) std::memcpy(&pair, x, sizeof(pair));
  return pair;
}

template <int R, bool IsWhole>
EMBEDMUX_AVX512_BF16 EMBEDMUX_INLINE void add_pair(const uint16_t* x, int64_t inner, const uint16_t* weights,
                                                   __m512 (&totals)[R][4]) {
  __m512bh factors[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) factors[v] = (__m512bh)_mm512_loadu_si512(weights + kLineElements * v);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const __m512bh pair = (__m512bh)_mm512_set1_epi32(read_pair<IsWhole>(x + r * inner));
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) totals[r][v] = _mm512_dpbf16_ps(totals[r][v], pair, factors[v]);
  }
}

// R rows by one panel, all of K. Meanwhile every second line of the weights at `ahead` is called from memory.
template <int R>
EMBEDMUX_AVX512_BF16 void multiply_tile(const uint16_t* x, int64_t inner, const uint16_t* weights,
                                        const uint16_t* ahead, float* sums) {
  __m512 totals[R][4] = {};
  const uint16_t* end = x + inner / 2 * 2;
#pragma GCC unroll 2
  for (; x < end; x += 2, weights += kPairElements, ahead += kPairElements) {
    _mm_prefetch(ahead, _MM_HINT_T1);
    _mm_prefetch(ahead + kTilesAhead * kLineElements, _MM_HINT_T1);
    add_pair<R, true>(x, inner, weights, totals);
  }
  if (inner % 2 != 0) add_pair<R, false>(x, inner, weights, totals);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) _mm512_store_ps(sums + r * kDotColumns + 16 * v, totals[r][v]);
  }
}

constexpr std::array<decltype(&multiply_tile<1>), kDotRows + 1> kTiles = {
    nullptr,          multiply_tile<1>, multiply_tile<2>, multiply_tile<3>,
    multiply_tile<4>, multiply_tile<5>, multiply_tile<6>};

// sums [rows, kDotColumns]: the product's columns from `column`, for the tile of that index. The second half of a gated
// product may begin inside a panel, and then takes two.
void multiply_columns(const DotProduct& product, int64_t row, int64_t rows, int64_t column, int64_t tile, float* sums) {
  const int64_t inner = product.call.inner, panel_elements = product.pairs * kPairElements;
  const int64_t panels = divide_up(product.call.columns, kDotColumns);
  const int64_t panel = column / kDotColumns, offset = column % kDotColumns;
  const auto multiply = [&](int64_t index, float* target) {
    const uint16_t* weights = product.packed + index * panel_elements;
    const bool is_ahead = tile < kTilesAhead && index + 1 < panels;
    kTiles[rows](product.x + row * inner, inner, weights,
                 is_ahead ? weights + panel_elements + tile * kLineElements : weights, target);
  };
  if (offset == 0) return multiply(panel, sums);
  alignas(64) float wide[2][kTileElements] = {};
  multiply(panel, wide[0]);
  if (panel + 1 < panels) multiply(panel + 1, wide[1]);
  for (int64_t place = 0; place < rows * kDotColumns; place += kDotColumns) {
    std::copy_n(wide[0] + place + offset, kDotColumns - offset, sums + place);
    std::copy_n(wide[1] + place, offset, sums + place + kDotColumns - offset);
  }
}

// Rows of a tile that have their low-rank parts and share scale and bias; all but sums begin at the panel's columns.
struct Pending {
  const float* sums;  // [rows, kDotColumns]
  const float* up;    // likewise, in a gated product
  Affine affine, up_affine;
  int64_t rows, columns;
  uint16_t* output;
  int64_t stride;
};

// What sums of up to 32 columns are multiplied by and shifted by, held for all rows.
template <bool HasScale>
struct Shift {
  __m512 scale[2], bias[2];

  EMBEDMUX_AVX512_BF16 EMBEDMUX_INLINE void read(const Affine& affine, int64_t start, int64_t columns) {
    for (int v = 0; v < 2; ++v) {
      const __mmask16 lanes = first_lanes(columns - start - 16 * v);
      bias[v] = load_lanes(affine.bias + start + 16 * v, lanes);
      if (HasScale) scale[v] = load_lanes(affine.scale + start + 16 * v, lanes);
    }
  }
  EMBEDMUX_AVX512_BF16 EMBEDMUX_INLINE __m512 apply(const float* sums, int v) const {
    const __m512 value = _mm512_load_ps(sums + 16 * v);
    return HasScale ? _mm512_fmadd_ps(value, scale[v], bias[v]) : _mm512_add_ps(value, bias[v]);
  }
};

template <Activation A, bool IsGated, bool HasScale>
EMBEDMUX_AVX512_BF16 void finish(const Pending& pending) {
  // An error that rounding hides would be multiplied by a gated product's other half.
  constexpr Exactness kExactness = IsGated ? Exactness::whole : Exactness::bits_8;
  for (int64_t start = 0; start < pending.columns; start += 32) {
    const int64_t columns = pending.columns - start;
    const __mmask32 mask = first_of_32(columns);
    Shift<HasScale> shift, up_shift;
    shift.read(pending.affine, start, pending.columns);
    if constexpr (IsGated) up_shift.read(pending.up_affine, start, pending.columns);
    for (int64_t row = 0; row < pending.rows; ++row) {
      const int64_t place = row * kDotColumns + start;
      __m512 values[2];
      for (int v = 0; v < 2; ++v) {
        values[v] = activate<16, A, kExactness>(shift.apply(pending.sums + place, v));
        if constexpr (IsGated) values[v] = _mm512_mul_ps(values[v], up_shift.apply(pending.up + place, v));
      }
      _mm512_mask_storeu_epi16(pending.output + row * pending.stride + start, mask,
                               (__m512i)_mm512_cvtne2ps_pbh(values[1], values[0]));
    }
  }
}

using FinishKernel = void (*)(const Pending&);

template <Activation A>
FinishKernel choose_finish(const LoraCall& call) {
  if (call.is_gated) return call.affine.scale == nullptr ? finish<A, true, false> : finish<A, true, true>;
  return call.affine.scale == nullptr ? finish<A, false, false> : finish<A, false, true>;
}

FinishKernel choose_finish(const LoraCall& call) {
  switch (call.activation) {
    case Activation::gelu:
      return choose_finish<Activation::gelu>(call);
    case Activation::gelu_tanh:
      return choose_finish<Activation::gelu_tanh>(call);
    case Activation::silu:
      return choose_finish<Activation::silu>(call);
    case Activation::relu:
      return choose_finish<Activation::relu>(call);
    default:
      return choose_finish<Activation::none>(call);
  }
}

Affine columns_from(const Affine& affine, int64_t column) {
  return {affine.scale == nullptr ? nullptr : affine.scale + column, affine.bias + column};
}

// Adds to the sums of one panel, whose first column is `column`, what the piece's parts have for them.
void expand(const std::vector<DotPart>& parts, const DotPiece& piece, int64_t column, float* sums) {
  for (int64_t part = piece.first_part; part < piece.last_part; ++part) {
    if (parts[part].meets(column)) expand_dot_part(parts[part], piece.row, piece.rows, column, sums);
  }
}

}  // namespace

EMBEDMUX_AVX512_BF16 void pack_dot_panel(const uint16_t* weight, int64_t rows, int64_t inner, uint32_t* panel) {
  for (int64_t column = 0; column < kDotColumns; column += 16) {
    for (int64_t k = 0; k < inner; k += 32) {
      const __mmask32 mask = first_of_32(inner - k);
      __m512i words[16];
      for (int64_t row = 0; row < 16; ++row) {
        const bool exists = column + row < rows;
        words[row] = _mm512_maskz_loadu_epi16(exists ? mask : 0, weight + (exists ? column + row : 0) * inner + k);
      }
      alignas(64) uint32_t turned[256];
      transpose_16x16(words, turned);
      for (int64_t pair = 0; pair < std::min<int64_t>(16, divide_up(inner - k, 2)); ++pair) {
        std::copy_n(turned + 16 * pair, 16, panel + (k / 2 + pair) * kDotColumns + column);
      }
    }
  }
}

void run_dot_task(const DotProduct& product, const DotTask& task) {
  static thread_local Scratch<float> scratch;
  const LoraCall& call = product.call;
  const int64_t width = call.output_columns();
  const std::vector<DotPart> parts = shrink_dot_parts(product, task, scratch);
  const std::vector<DotTile> tiles = cut_dot_tiles(call, task, parts);
  const FinishKernel finish_piece = choose_finish(call);
  alignas(64) float sums[kTileElements], up[kTileElements];
  for (int64_t panel = task.first_panel; panel < task.last_panel; ++panel) {
    const int64_t column = panel * kDotColumns, up_column = width + column;
    for (size_t index = 0; index < tiles.size(); ++index) {
      const DotTile& tile = tiles[index];
      const int64_t row = task.first_row + tile.row;
      multiply_columns(product, row, tile.rows, column, index, sums);
      if (call.is_gated) multiply_columns(product, row, tile.rows, up_column, index, up);
      for (const DotPiece& piece : tile.pieces) {
        const int64_t place = (piece.row - tile.row) * kDotColumns;
        const Affine& affine = piece.segment == nullptr ? call.affine : piece.segment->affine;
        expand(parts, piece, column, sums + place);
        if (call.is_gated) expand(parts, piece, up_column, up + place);
        finish_piece({sums + place, up + place, columns_from(affine, column),
                      call.is_gated ? columns_from(affine, up_column) : Affine{}, piece.rows,
                      std::min(kDotColumns, width - column),
                      product.output + (task.first_row + piece.row) * width + column, width});
      }
    }
  }
}

}  // namespace embedmux

#endif
