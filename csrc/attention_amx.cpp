// bfloat16 attention with AMX: 32 query rows times pairs of panels; the rest is the AVX-512 variant.
#include <algorithm>

#include "attention_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {
namespace {

constexpr int kTileRows = 16;

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

// Accumulators 0 and 1 belong to the first 16 rows, 2 and 3 to the others; 4 and 5 hold rows, 6 and 7 panels.
template <bool BothRows, bool BothPanels>
EMBEDMUX_AMX void multiply_panels(const Product& product, int first) {
  const Cell* left = product.left;
  const Cell* next_left = left + kTileRows * product.left_stride;
  const Cell* right = product.panels + first * product.panel_stride;
  float* out = product.out + first * kLanes;
  float* next_out = out + kTileRows * product.out_stride;
  const int out_bytes = product.out_stride * static_cast<int>(sizeof(float));
  const int left_bytes = product.left_stride * static_cast<int>(sizeof(Cell));
  constexpr int kPanelBytes = kLanes * sizeof(Cell);
  if (product.accumulate) {
    _tile_loadd(0, out, out_bytes);
    if constexpr (BothPanels) _tile_loadd(1, out + kLanes, out_bytes);
    if constexpr (BothRows) _tile_loadd(2, next_out, out_bytes);
    if constexpr (BothRows && BothPanels) _tile_loadd(3, next_out + kLanes, out_bytes);
  } else {
    _tile_zero(0);
    if constexpr (BothPanels) _tile_zero(1);
    if constexpr (BothRows) _tile_zero(2);
    if constexpr (BothRows && BothPanels) _tile_zero(3);
  }
  for (int c = 0; c < product.cells; c += kCellStep) {
    _tile_loadd(4, left + c, left_bytes);
    _tile_loadd(6, right + c * kLanes, kPanelBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (BothPanels) {
      _tile_loadd(7, right + product.panel_stride + c * kLanes, kPanelBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (BothRows) {
      _tile_loadd(5, next_left + c, left_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (BothPanels) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, out_bytes);
  if constexpr (BothPanels) _tile_stored(1, out + kLanes, out_bytes);
  if constexpr (BothRows) _tile_stored(2, next_out, out_bytes);
  if constexpr (BothRows && BothPanels) _tile_stored(3, next_out + kLanes, out_bytes);
}

template <bool BothRows>
void multiply_rows(const Product& product) {
  int first = 0;
  for (; first + 2 <= product.num_panels; first += 2) multiply_panels<BothRows, true>(product, first);
  if (first < product.num_panels) multiply_panels<BothRows, false>(product, first);
}

void multiply(const Product& product) {
  if (product.rows > kTileRows) {
    multiply_rows<true>(product);
  } else {
    multiply_rows<false>(product);
  }
}

}  // namespace

const Kernels bfloat16_amx = {2,        pack_bfloat16_rows, pack_bfloat16_keys, pack_bfloat16_values,
                              multiply, softmax_bfloat16,   finish_bfloat16,    enter,
                              leave};

}  // namespace embedmux::attention

#endif
