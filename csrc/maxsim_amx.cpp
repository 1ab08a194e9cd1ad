// maxsim in bfloat16 and int8 with AMX: 32 tokens of a document, read where they are, times two panels, over the whole
// of D; the 32 x 32 dot products then meet the running maxima, which stay in two registers over all tokens.
#include "maxsim.h"

#ifdef EMBEDMUX_X86

namespace embedmux::maxsim {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileCells = 16;
constexpr int64_t kTileBytes = 64;  // of a row
constexpr int64_t kLineBytes = 64;
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kTokensAhead = 8;  // beyond the next block
constexpr int64_t kPagesAhead = 5;
constexpr int64_t kLinesAhead = 8;

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

// A processor's own prefetcher stops at the end of a page: reading the start of pages yet to come sets it going there.
EMBEDMUX_AMX inline void fetch_pages(const uint32_t* tokens, int64_t bytes) {
  const auto* ahead = reinterpret_cast<const char*>(tokens) + kPagesAhead * kPageBytes;
  for (int64_t page = 0; page < bytes; page += kPageBytes) {
    for (int64_t line = 0; line < kLinesAhead; ++line) _mm_prefetch(ahead + page + line * kLineBytes, _MM_HINT_T1);
  }
}

// Sums of a block, [Rows * 16][Panels][16], wait here until the tiles are busy with the next one.
template <bool Ints, int Rows, int Panels>
struct Sums {
  static constexpr int64_t kRows = Rows * kTileRows;
  alignas(64) float values[kRows * Panels * kLanes];

  EMBEDMUX_AMX inline void meet(int64_t first, int64_t last, __m512 (&greatest)[Panels]) const {
    for (int64_t row = first; row < std::min(last, kRows); ++row) {
      for (int p = 0; p < Panels; ++p) {
        const float* sums = values + (row * Panels + p) * kLanes;
        const __m512 wide = Ints ? _mm512_cvtepi32_ps(_mm512_load_si512(sums)) : _mm512_load_ps(sums);
        greatest[p] = _mm512_max_ps(wide, greatest[p]);  // of a NaN and another, max takes the second
      }
    }
  }

  EMBEDMUX_AMX inline void store_tiles() {
    constexpr int64_t kRowBytes = Panels * kTileBytes;
    _tile_stored(0, values, kRowBytes);
    if constexpr (Panels == 2) _tile_stored(1, values + kLanes, kRowBytes);
    if constexpr (Rows == 2) _tile_stored(2, values + kTileRows * Panels * kLanes, kRowBytes);
    if constexpr (Rows == 2 && Panels == 2) _tile_stored(3, values + kTileRows * Panels * kLanes + kLanes, kRowBytes);
    __asm__ volatile("" ::: "memory");  // the tile instructions are opaque to the compiler
  }
};

// Tiles 0 and 1 hold the sums of the first 16 tokens, 2 and 3 those of the next; 4 and 5 tokens, 6 and 7 panels.
// `before` are the sums of the block before, if there was one.
template <bool Ints, int Rows, int Panels>
EMBEDMUX_AMX inline void multiply_block(const Product& product, const uint32_t* tokens, const uint32_t* panels,
                                        const Sums<Ints, Rows, Panels>& before, int64_t rows_before,
                                        __m512 (&greatest)[Panels]) {
  const int64_t token_bytes = product.stride * 4;
  const int64_t panel_cells = (product.cells + 1) * kLanes;
  const int64_t rows_a_step = divide_up(rows_before * kTileCells, product.cells);
  int64_t row = 0;
  _tile_zero(0);
  if constexpr (Panels == 2) _tile_zero(1);
  if constexpr (Rows == 2) _tile_zero(2);
  if constexpr (Rows == 2 && Panels == 2) _tile_zero(3);
  for (int64_t cell = 0; cell < product.cells; cell += kTileCells) {
    const uint32_t* panel = panels + cell * kLanes;
    // A share of the next block, line by line: the tiles' own order, down the tokens, is one no prefetcher follows.
    const auto* next = reinterpret_cast<const char*>(tokens + (Rows * kTileRows + kTokensAhead) * product.stride +
                                                     cell * Rows * kTileRows);
    for (int64_t line = 0; line < Rows * kTileRows; ++line) _mm_prefetch(next + line * kLineBytes, _MM_HINT_T1);
    before.meet(row, std::min(row + rows_a_step, rows_before), greatest);
    row += rows_a_step;
    _tile_loadd(4, tokens + cell, token_bytes);
    _tile_loadd(6, panel, kTileBytes);
    EMBEDMUX_MULTIPLY(0, 4, 6);
    if constexpr (Panels == 2) {
      _tile_loadd(7, panel + panel_cells, kTileBytes);
      EMBEDMUX_MULTIPLY(1, 4, 7);
    }
    if constexpr (Rows == 2) {
      _tile_loadd(5, tokens + kTileRows * product.stride + cell, token_bytes);
      EMBEDMUX_MULTIPLY(2, 5, 6);
      if constexpr (Panels == 2) EMBEDMUX_MULTIPLY(3, 5, 7);
    }
  }
}

template <bool Ints, int Rows, int Panels>
EMBEDMUX_AMX void raise_panels(const Product& product, int64_t panel) {
  constexpr int64_t kTokens = Rows * kTileRows;
  Sums<Ints, Rows, Panels> sums[2];
  const uint32_t* panels = product.panels + panel * (product.cells + 1) * kLanes;
  float* best = product.best + panel * kLanes;
  __m512 greatest[Panels];
  for (int p = 0; p < Panels; ++p) greatest[p] = _mm512_loadu_ps(best + p * kLanes);
  int turn = 0;
  int64_t rows_before = 0;
  for (int64_t start = 0; start < product.count; start += kTokens) {
    // The last tokens may be some that were seen: a maximum taken twice is the same.
    const uint32_t* tokens = product.tokens + std::min(start, product.count - kTokens) * product.stride;
    if (panel == 0) fetch_pages(tokens, kTokens * product.stride * 4);
    multiply_block(product, tokens, panels, sums[1 - turn], rows_before, greatest);
    sums[turn].store_tiles();
    turn = 1 - turn;
    rows_before = kTokens;
  }
  sums[1 - turn].meet(0, kTokens, greatest);
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
