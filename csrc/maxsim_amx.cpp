// maxsim in bfloat16 and int8 with AMX: 32 tokens of a document, read where they are, times two panels, over the whole
// of D; the 32 x 32 dot products then meet the running maxima, which stay in two registers over all tokens.
#include "maxsim.h"

#ifdef EMBEDMUX_X86

namespace embedmux::maxsim {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileCells = 16;
constexpr int64_t kTileBytes = 64;  // of a row
constexpr int64_t kAheadTokens = 64;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Not _tile_loadconfig: gcc 12 takes it for a read of 8 bytes and may leave the other 56 unwritten.
EMBEDMUX_AMX void enter() {
  const TileConfig config;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

// Other libraries find the tiles as a fresh thread has them.
EMBEDMUX_AMX void leave() { _tile_release(); }

// A macro, since gcc 12 writes the tiles' numbers into the assembly as they are spelled.
#define EMBEDMUX_MULTIPLY(sums, tokens, panel) \
  do {                                         \
    if constexpr (Ints) {                      \
      _tile_dpbssd(sums, tokens, panel);       \
    } else {                                   \
      _tile_dpbf16ps(sums, tokens, panel);     \
    }                                          \
  } while (false)

// Tiles 0 and 1 hold the sums of the first 16 tokens, 2 and 3 those of the next; 4 and 5 tokens, 6 and 7 panels.
template <bool Ints, int Rows, int Panels>
EMBEDMUX_AMX inline void multiply_block(const uint32_t* tokens, int64_t stride, const uint32_t* panels,
                                        int64_t panel_cells, int64_t cells, float* sums) {
  const int64_t token_bytes = stride * 4;
  _tile_zero(0);
  if constexpr (Panels == 2) _tile_zero(1);
  if constexpr (Rows == 2) _tile_zero(2);
  if constexpr (Rows == 2 && Panels == 2) _tile_zero(3);
  for (int64_t cell = 0; cell < cells; cell += kTileCells) {
    const uint32_t* panel = panels + cell * kLanes;
    _tile_loadd(4, tokens + cell, token_bytes);
    _tile_loadd(6, panel, kTileBytes);
    EMBEDMUX_MULTIPLY(0, 4, 6);
    if constexpr (Panels == 2) {
      _tile_loadd(7, panel + panel_cells, kTileBytes);
      EMBEDMUX_MULTIPLY(1, 4, 7);
    }
    if constexpr (Rows == 2) {
      _tile_loadd(5, tokens + kTileRows * stride + cell, token_bytes);
      EMBEDMUX_MULTIPLY(2, 5, 6);
      if constexpr (Panels == 2) EMBEDMUX_MULTIPLY(3, 5, 7);
    }
  }
  constexpr int64_t kRowBytes = Panels * kTileBytes;
  _tile_stored(0, sums, kRowBytes);
  if constexpr (Panels == 2) _tile_stored(1, sums + kLanes, kRowBytes);
  if constexpr (Rows == 2) _tile_stored(2, sums + kTileRows * Panels * kLanes, kRowBytes);
  if constexpr (Rows == 2 && Panels == 2) _tile_stored(3, sums + kTileRows * Panels * kLanes + kLanes, kRowBytes);
  __asm__ volatile("" ::: "memory");  // the tile instructions are opaque to the compiler
}

template <bool Ints>
EMBEDMUX_AMX inline __m512 load_sums(const float* sums) {
  if constexpr (Ints) return _mm512_cvtepi32_ps(_mm512_load_si512(sums));
  return _mm512_load_ps(sums);
}

template <bool Ints, int Rows, int Panels>
EMBEDMUX_AMX void raise_panels(const Product& product, int64_t panel) {
  constexpr int64_t kTokens = Rows * kTileRows;
  alignas(64) float sums[kTokens * Panels * kLanes];
  const int64_t panel_cells = (product.cells + 1) * kLanes;
  float* best = product.best + panel * kLanes;
  __m512 greatest[Panels];
  for (int p = 0; p < Panels; ++p) greatest[p] = _mm512_loadu_ps(best + p * kLanes);
  for (int64_t start = 0; start < product.count; start += kTokens) {
    // The last tokens may be some that were seen: a maximum taken twice is the same.
    const uint32_t* tokens = product.tokens + std::min(start, product.count - kTokens) * product.stride;
    if (panel == 0) {
      const auto* ahead = reinterpret_cast<const char*>(tokens + kAheadTokens * product.stride);
      for (int64_t i = 0; i < kTokens * product.stride * 4; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
    }
    multiply_block<Ints, Rows, Panels>(tokens, product.stride, product.panels + panel * panel_cells, panel_cells,
                                       product.cells, sums);
    for (int64_t row = 0; row < kTokens; ++row) {
      // Of a NaN and another, max takes the second.
      for (int p = 0; p < Panels; ++p) {
        greatest[p] = _mm512_max_ps(load_sums<Ints>(sums + (row * Panels + p) * kLanes), greatest[p]);
      }
    }
  }
  for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(best + p * kLanes, greatest[p]);
}

template <bool Ints, int Rows>
void raise_rows(const Product& product) {
  int64_t panel = 0;
  for (; panel + 2 <= product.num_panels; panel += 2) raise_panels<Ints, Rows, 2>(product, panel);
  if (panel < product.num_panels) raise_panels<Ints, Rows, 1>(product, panel);
}

template <bool Ints>
void raise(const Product& product) {
  if (product.count >= 2 * kTileRows) {
    raise_rows<Ints, 2>(product);
  } else {
    raise_rows<Ints, 1>(product);
  }
}

}  // namespace

const Kernels pairs_amx = {Form::pairs, kTileCells, kTileRows, raise<false>, enter, leave};
const Kernels quads_amx = {Form::quads, kTileCells, kTileRows, raise<true>, enter, leave};

}  // namespace embedmux::maxsim

#endif
