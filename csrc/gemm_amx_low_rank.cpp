#include "gemm_amx_low_rank.h"

#include <algorithm>

#ifdef EMBEDMUX_X86

namespace embedmux {
namespace {

constexpr int64_t kGroupBytes = 512 * 1024;  // of packed weight and B that stay in the second-level cache for all rows

// C (16 rows, 16 ranks) of up to four row tiles at once: four sums in flight hide the latency of one.
template <int Tiles>
EMBEDMUX_AMX void shrink_tiles(const uint16_t* const* rows, const uint16_t* a, int64_t steps, float* const* targets) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, a + step * kTileElements, 64);
    _tile_loadd(5, rows[0] + step * kStepElements, 64);
    _tile_dpbf16ps(0, 5, 4);
    if (Tiles > 1) {
      _tile_loadd(6, rows[1] + step * kStepElements, 64);
      _tile_dpbf16ps(1, 6, 4);
    }
    if (Tiles > 2) {
      _tile_loadd(7, rows[2] + step * kStepElements, 64);
      _tile_dpbf16ps(2, 7, 4);
    }
    if (Tiles > 3) {
      _tile_loadd(5, rows[3] + step * kStepElements, 64);
      _tile_dpbf16ps(3, 5, 4);
    }
  }
  _tile_stored(0, targets[0], 64);
  if (Tiles > 1) _tile_stored(1, targets[1], 64);
  if (Tiles > 2) _tile_stored(2, targets[2], 64);
  if (Tiles > 3) _tile_stored(3, targets[3], 64);
  settle_memory();
}

// A x of one part, as row tiles of split values.
EMBEDMUX_AMX void shrink(const Product& product, const LowRank& part, const uint16_t* rows, uint16_t* a_tiles) {
  const int64_t inner = product.call.inner, steps = product.steps, first_tile = part.first_tile();
  for (int64_t rank_tile = 0; rank_tile < part.rank_tiles; ++rank_tile) {
    for (int64_t step = 0; step < steps; ++step) {
      const uint16_t* source = part.a + rank_tile * kTileRows * inner + step * kTileDepth;
      transpose_to_pairs(source, inner, part.rank - rank_tile * kTileRows, inner - step * kTileDepth,
                         a_tiles + step * kTileElements);
    }
    settle_memory();
    for (int64_t tile = first_tile; tile < part.last_tile(); tile += 4) {
      const int64_t count = std::min<int64_t>(4, part.last_tile() - tile);
      const uint16_t* sources[4];
      float* targets[4];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t place = tile + i;
        sources[i] = rows + place / 2 * steps * kStepElements + place % 2 * kTileElements;
        targets[i] =
            reinterpret_cast<float*>(part.down + ((place - first_tile) * part.rank_tiles + rank_tile) * kTileElements);
      }
      constexpr decltype(&shrink_tiles<1>) kKernels[] = {shrink_tiles<1>, shrink_tiles<2>, shrink_tiles<3>,
                                                         shrink_tiles<4>};
      kKernels[count - 1](sources, a_tiles, steps, targets);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = (tile + i) * kTileRows;
        split_to_pairs(targets[i], part.first_row - row, part.last_row - row);
      }
    }
  }
}

}  // namespace

EMBEDMUX_AMX std::vector<LowRank> shrink_segments(const Product& product, int64_t first, int64_t last,
                                                  const uint16_t* rows, LowRankScratch& scratch) {
  const LoraCall& call = product.call;
  const uint16_t* arena = static_cast<const uint16_t*>(call.arena);
  std::vector<LowRank> parts;
  int64_t down_tiles = 0;
  for (const LoraSegment& segment : call.segments) {
    const int64_t begin = std::max(first, segment.first_row) - first, end = std::min(last, segment.last_row) - first;
    if (begin >= end) continue;
    for (int64_t slice = 0; slice < call.num_slices(); ++slice) {
      const LoraSlice& factors = segment.slices[slice];
      if (factors.rank == 0) continue;
      parts.push_back({begin, end, call.slices[slice], call.slices[slice + 1], factors.rank,
                       divide_up(factors.rank, kTileRows), arena + factors.a, arena + factors.b, nullptr, nullptr});
      down_tiles += parts.back().num_tiles() * parts.back().rank_tiles;
    }
  }
  uint16_t* a_tiles = scratch.a.reserve(product.steps * kTileElements);
  uint16_t* down = scratch.down.reserve(down_tiles * kTileElements);
  for (LowRank& part : parts) {
    part.down = down;
    shrink(product, part, rows, a_tiles);
    down += part.num_tiles() * part.rank_tiles * kTileElements;
  }
  return parts;
}

int64_t place_groups(const Product& product, int64_t panels, std::vector<LowRank>& parts, LowRankScratch& scratch) {
  int64_t up_elements = 0;
  for (const LowRank& part : parts) up_elements += part.up_elements();
  const int64_t panel_bytes = (product.steps * kStepElements + up_elements) * 2;
  const int64_t unit = product.half_panels == 0 ? 1 : 2;
  const int64_t group = std::clamp(kGroupBytes / panel_bytes / unit * unit, unit, panels);
  uint16_t* place = scratch.up.reserve(up_elements * group);
  for (LowRank& part : parts) {
    part.up = place;
    place += part.up_elements() * group;
  }
  return group;
}

EMBEDMUX_AMX void expand_group(const Product& product, const std::vector<LowRank>& parts, int64_t first, int64_t last) {
  for (const LowRank& part : parts) {
    const int64_t width = part.last_column - part.first_column;
    for (int64_t place = first; place < last; ++place) {
      const int64_t column = product.panel(place) * kPanelColumns;
      if (!part.meets(column)) continue;
      const __mmask32 mask = low_bits(part.last_column - column) & ~low_bits(part.first_column - column);
      uint16_t* target = part.up + (place - first) * part.up_elements();
      for (int64_t rank = 0; rank < part.rank; rank += kTileRows, target += kStepElements) {
        duplicate_to_pairs(part.b + rank * width + column - part.first_column, width, part.rank - rank, mask, target);
      }
    }
  }
  settle_memory();
}

}  // namespace embedmux

#endif
