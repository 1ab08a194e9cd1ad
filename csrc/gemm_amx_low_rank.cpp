#include "gemm_amx_low_rank.h"

#include <algorithm>

#ifdef EMBEDMUX_X86

namespace embedmux {
namespace {

constexpr int64_t kGroupBytes = 256 * 1024;  // of packed weight and B that stay in the second-level cache for all rows

constexpr int64_t kAheadBytes = 32 * 1024;

// 16 ranks of one part: where their A stands in tiles, and which they are.
struct RankTile {
  const LowRank* part;
  int64_t index;
};

// A x of up to two row tiles by up to two rank tiles, all four sums in flight as in the product itself.
template <int Rows, int Ranks>
EMBEDMUX_AMX void shrink_tiles(const uint16_t* rows, const uint16_t* a, int64_t steps, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, rows + step * kStepElements, 64);
    _tile_stream_loadd(6, a + step * kTileElements, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (Ranks > 1) {
      _tile_stream_loadd(7, a + (steps + step) * kTileElements, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (Rows > 1) {
      _tile_loadd(5, rows + step * kStepElements + kTileElements, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (Ranks > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  if (Ranks > 1) _tile_stored(1, sums + 256, 64);
  if (Rows > 1) _tile_stored(2, sums + 512, 64);
  if (Rows > 1 && Ranks > 1) _tile_stored(3, sums + 768, 64);
  settle_memory();
}

// A float tile of A x, from row `row` of the task, into its place in the part's row tiles.
EMBEDMUX_AMX void place_down(const RankTile& rank_tile, const float* sums, int64_t row) {
  const auto [part, index] = rank_tile;
  const int64_t first = part->first_row - row, last = part->last_row - row;
  uint16_t* target = part->down + ((row / kTileRows - part->first_tile()) * part->steps() + index / 2) * kTileElements;
  if (part->is_split()) return split_to_pairs(sums, first, last, target);
  round_to_half(sums, first, last, target + index % 2 * kTileRows);
  // Nothing may stand beside the last tile that times the zeros of B is not zero.
  if (index % 2 == 0 && index + 1 == part->rank_tiles) round_to_half(sums, 0, 0, target + kTileRows);
}

// A x of the parts of one segment, as row tiles; block by block, so that its rows are read from memory
// once for all parts.
EMBEDMUX_AMX void shrink(const Product& product, const LowRank* parts, int64_t num_parts, const uint16_t* rows,
                         Scratch<uint16_t>& scratch) {
  const int64_t inner = product.call.inner, steps = product.wide_steps();
  std::vector<RankTile> ranks;
  for (const LowRank* part = parts; part != parts + num_parts; ++part) {
    for (int64_t index = 0; index < part->rank_tiles; ++index) ranks.push_back({part, index});
  }
  const int64_t num_ranks = static_cast<int64_t>(ranks.size());
  uint16_t* a_tiles = scratch.reserve(num_ranks * steps * kTileElements);
  for (int64_t i = 0; i < num_ranks; ++i) {
    const auto [part, index] = ranks[i];
    for (int64_t step = 0; step < steps; ++step) {
      transpose_to_pairs(part->a + index * kTileRows * inner + step * kTileDepth, inner, part->rank - index * kTileRows,
                         inner - step * kTileDepth, a_tiles + (i * steps + step) * kTileElements);
    }
  }
  settle_memory();
  const int64_t last_tile = parts->last_tile();
  for (int64_t tile = parts->first_tile(), count; tile < last_tile; tile += count) {
    count = std::min(2 - tile % 2, last_tile - tile);  // whole blocks where the segment has them
    const uint16_t* block = rows + tile / 2 * steps * kStepElements + tile % 2 * kTileElements;
    for (int64_t i = 0; i < num_ranks; i += 2) {
      const int64_t together = std::min<int64_t>(2, num_ranks - i);
      alignas(64) float sums[4 * kTileRows * kTileRows];
      constexpr decltype(&shrink_tiles<1, 1>) kKernels[2][2] = {{shrink_tiles<1, 1>, shrink_tiles<1, 2>},
                                                                {shrink_tiles<2, 1>, shrink_tiles<2, 2>}};
      kKernels[count - 1][together - 1](block, a_tiles + i * steps * kTileElements, steps, sums);
      for (int64_t j = 0; j < 4; ++j) {
        if (j / 2 >= count || j % 2 >= together) continue;
        place_down(ranks[i + j % 2], sums + j * kTileRows * kTileRows, (tile + j / 2) * kTileRows);
      }
    }
  }
}

// A new adapter's factors come from memory in every layer: better all at once than line by line.
void call_ahead(const uint16_t* factors, int64_t elements) {
  for (int64_t i = 0; i < elements; i += 32) _mm_prefetch(factors + i, _MM_HINT_T1);
}

}  // namespace

std::vector<LowRank> find_parts(const Product& product, int64_t first, int64_t last, LowRankScratch& scratch) {
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
      down_tiles += parts.back().num_tiles() * parts.back().steps();
    }
  }
  uint16_t* down = scratch.down.reserve(down_tiles * kTileElements);
  for (LowRank& part : parts) {
    part.down = down;
    down += part.num_tiles() * part.steps() * kTileElements;
    call_ahead(part.a, part.rank * call.inner);
  }
  return parts;
}

EMBEDMUX_AMX void shrink_parts(const Product& product, const std::vector<LowRank>& parts, const uint16_t* rows,
                               LowRankScratch& scratch) {
  for (size_t first = 0, last; first < parts.size(); first = last) {
    for (last = first + 1; last < parts.size() && parts[last].first_row == parts[first].first_row;) ++last;
    shrink(product, &parts[first], last - first, rows, scratch.a);
  }
}

int64_t place_groups(const Product& product, int64_t rows, int64_t panels, std::vector<LowRank>& parts,
                     LowRankScratch& scratch) {
  int64_t up_elements = 0;
  for (const LowRank& part : parts) up_elements += part.up_elements();
  const int64_t panel_bytes = (product.panel_elements + up_elements) * 2;
  const int64_t unit = product.half_panels == 0 ? 1 : 2;
  // One block reads every panel once: its groups are as far ahead as memory is called, no farther.
  const int64_t group_bytes = rows <= kBlockRows ? kAheadBytes : kGroupBytes;
  const int64_t group = std::clamp(group_bytes / panel_bytes / unit * unit, unit, panels);
  uint16_t* place = scratch.up.reserve(up_elements * group);
  for (LowRank& part : parts) {
    part.up = place;
    place += part.up_elements() * group;
  }
  return group;
}

EMBEDMUX_AMX void expand_group(const Product& product, const std::vector<LowRank>& parts, int64_t first, int64_t last,
                               int64_t end) {
  for (const LowRank& part : parts) {
    const int64_t width = part.last_column - part.first_column;
    for (int64_t place = first; place < last; ++place) {
      const int64_t column = product.panel(place) * kPanelColumns;
      if (!part.meets(column)) continue;
      const __mmask32 mask = low_bits(part.last_column - column) & ~low_bits(part.first_column - column);
      uint16_t* target = part.up + (place - first) * part.up_elements();
      const uint16_t* source = part.b + column - part.first_column;
      if (part.is_split()) {
        duplicate_to_pairs(source, width, part.rank, mask, target);
        continue;
      }
      for (int64_t rank = 0; rank < part.rank; rank += kTileDepth, target += kStepElements) {
        interleave_to_pairs(source + rank * width, width, part.rank - rank, mask, target);
      }
    }
    for (int64_t place = last; place < std::min(end, 2 * last - first); ++place) {
      const int64_t column = product.panel(place) * kPanelColumns;
      if (!part.meets(column)) continue;
      const uint16_t* next = part.b + std::max(column, part.first_column) - part.first_column;
      for (int64_t rank = 0; rank < part.rank; ++rank) _mm_prefetch(next + rank * width, _MM_HINT_T1);
    }
  }
  settle_memory();
}

}  // namespace embedmux

#endif
