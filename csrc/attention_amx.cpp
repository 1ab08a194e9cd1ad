// bfloat16 attention with AMX: a tile of 16 query rows times panels of 16 columns; the rest is the AVX-512 variant.
#include <algorithm>

#include "attention_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {
namespace {

constexpr int kPanelBlock = 4;  // accumulators in tiles 0 to 3, the left operand in 4, panels in 5

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};

// Not _tile_loadconfig: gcc 12 takes it for a read of 8 bytes and may leave the other 56 unwritten.
EMBEDMUX_AMX void enter() {
  const TileConfig config;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

// Other libraries find the tiles as a fresh thread has them.
EMBEDMUX_AMX void leave() { _tile_release(); }

template <int Panels>
EMBEDMUX_AMX void multiply_panels(const Product& product, int first) {
  const Cell* right = product.panels + first * product.panel_stride;
  float* out = product.out + first * kLanes;
  const int out_bytes = product.out_stride * static_cast<int>(sizeof(float));
  const int left_bytes = product.left_stride * static_cast<int>(sizeof(Cell));
  constexpr int kPanelBytes = kLanes * sizeof(Cell);
  if (product.accumulate) {
    _tile_loadd(0, out, out_bytes);
    if constexpr (Panels > 1) _tile_loadd(1, out + kLanes, out_bytes);
    if constexpr (Panels > 2) _tile_loadd(2, out + 2 * kLanes, out_bytes);
    if constexpr (Panels > 3) _tile_loadd(3, out + 3 * kLanes, out_bytes);
  } else {
    _tile_zero(0);
    if constexpr (Panels > 1) _tile_zero(1);
    if constexpr (Panels > 2) _tile_zero(2);
    if constexpr (Panels > 3) _tile_zero(3);
  }
  for (int c = 0; c < product.cells; c += kCellStep) {
    const Cell* cells = right + c * kLanes;
    _tile_loadd(4, product.left + c, left_bytes);
    _tile_loadd(5, cells, kPanelBytes);
    _tile_dpbf16ps(0, 4, 5);
    if constexpr (Panels > 1) {
      _tile_loadd(5, cells + product.panel_stride, kPanelBytes);
      _tile_dpbf16ps(1, 4, 5);
    }
    if constexpr (Panels > 2) {
      _tile_loadd(5, cells + 2 * product.panel_stride, kPanelBytes);
      _tile_dpbf16ps(2, 4, 5);
    }
    if constexpr (Panels > 3) {
      _tile_loadd(5, cells + 3 * product.panel_stride, kPanelBytes);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, out, out_bytes);
  if constexpr (Panels > 1) _tile_stored(1, out + kLanes, out_bytes);
  if constexpr (Panels > 2) _tile_stored(2, out + 2 * kLanes, out_bytes);
  if constexpr (Panels > 3) _tile_stored(3, out + 3 * kLanes, out_bytes);
}

void multiply(const Product& product) {
  for (int first = 0; first < product.num_panels; first += kPanelBlock) {
    switch (std::min(kPanelBlock, product.num_panels - first)) {
      case 1:
        multiply_panels<1>(product, first);
        break;
      case 2:
        multiply_panels<2>(product, first);
        break;
      case 3:
        multiply_panels<3>(product, first);
        break;
      default:
        multiply_panels<kPanelBlock>(product, first);
    }
  }
}

}  // namespace

const Kernels bfloat16_amx = {2,        pack_bfloat16_rows, pack_bfloat16_keys, pack_bfloat16_values,
                              multiply, softmax_bfloat16,   finish_bfloat16,    enter,
                              leave};

}  // namespace embedmux::attention

#endif
