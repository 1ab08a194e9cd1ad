// A task is a run of rows by a run of panels. It brings its rows into tiles, computes A x for the segments it meets,
// and then walks its panels: 32 x 32 results stay in four tile registers over the whole of K and over the low-rank
// steps, then get bias, activation and their one rounding. Every sum runs through K in order inside one task, and a
// step that belongs to another segment's rows multiplies zeros, which leaves a sum as it was: so no row's bits depend
// on the cut.
#include "gemm_amx_kernel.h"

#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <vector>

#include "lora_vector.h"

#ifdef EMBEDMUX_X86

namespace embedmux {
namespace {

// The tile instructions are opaque to the compiler: what they read must be in memory before.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Memory of one thread, kept between calls: fresh pages would cost more than a small product.
class Scratch {
 public:
  ~Scratch() { c10::free_cpu(memory_); }
  uint16_t* reserve(int64_t elements) {
    if (elements > size_) {
      c10::free_cpu(memory_);
      memory_ = c10::alloc_cpu(elements * sizeof(uint16_t));
      size_ = elements;
    }
    return static_cast<uint16_t*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

struct ThreadScratch {
  Scratch rows, a, down, up;
};

constexpr int64_t kGroupBytes = 512 * 1024;  // of packed weight and B that stay in the second-level cache for all rows

// The low-rank part of one segment and slice inside a task. Rows and tiles count from the task's first.
struct LowRank {
  int64_t first_row, last_row;
  int64_t first_column, last_column;
  int64_t rank, rank_tiles;
  const uint16_t* a;
  const uint16_t* b;
  uint16_t* down;  // A x: row tiles [num_tiles, rank_tiles]
  uint16_t* up;    // B: pair tiles [panels of the group, rank_tiles, 2]

  int64_t first_tile() const { return first_row / kTileRows; }
  int64_t last_tile() const { return divide_up(last_row, kTileRows); }
  int64_t num_tiles() const { return last_tile() - first_tile(); }
  int64_t up_elements() const { return rank_tiles * kStepElements; }  // a panel
  bool meets(int64_t column) const { return first_column < column + kPanelColumns && column < last_column; }
};

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

// A block whose sums are stored and wait for bias, activation and rounding into the output.
struct Pending {
  const float* sums = nullptr;  // [rows, 32]
  int64_t rows = 0;
  uint16_t* output = nullptr;
  int64_t columns = 0;  // of the output's rows
  __mmask32 mask = 0;   // of the panel's columns that exist
  __m512 left_bias, right_bias;
};

template <bool Gelu>
EMBEDMUX_AMX inline void finish_row(const Pending& pending, int64_t row) {
  __m512 left = _mm512_add_ps(_mm512_load_ps(pending.sums + row * kPanelColumns), pending.left_bias);
  __m512 right = _mm512_add_ps(_mm512_load_ps(pending.sums + row * kPanelColumns + 16), pending.right_bias);
  if (Gelu) {
    left = gelu<16>(left);
    right = gelu<16>(right);
  }
  _mm512_mask_storeu_epi16(pending.output + row * pending.columns, pending.mask,
                           (__m512i)_mm512_cvtne2ps_pbh(right, left));
}

// Adds rows x panel over `steps` to the sums: tiles 0 and 1 for the first 16 rows, 2 and 3 for the next. Between the
// steps it finishes the block before, whose vector work fits beside the tile work, and calls `ahead`, its share of the
// next panel, from memory.
template <int Tiles, bool Gelu>
EMBEDMUX_AMX inline void multiply(const uint16_t* rows, const uint16_t* panel, int64_t steps, const Pending& pending,
                                  const uint16_t* ahead, int64_t ahead_elements) {
  const int64_t rows_a_step = divide_up(pending.rows, steps);
  int64_t row = 0;
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < ahead_elements; i += 32) _mm_prefetch(ahead + step * kStepElements + i, _MM_HINT_T1);
    _tile_loadd(4, rows + step * kStepElements, 64);
    _tile_loadd(6, panel + step * kStepElements, 64);
    _tile_loadd(7, panel + step * kStepElements + kTileElements, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (Tiles > 1) {
      _tile_loadd(5, rows + step * kStepElements + kTileElements, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    for (const int64_t end = std::min(pending.rows, row + rows_a_step); row < end; ++row) {
      finish_row<Gelu>(pending, row);
    }
  }
}

// Adds the low-rank steps of the block's own segments; `tile` is the block's first.
template <int Tiles>
EMBEDMUX_AMX inline void multiply_low_rank(const std::vector<const LowRank*>& parts, int64_t tile, int64_t panel,
                                           int64_t column) {
  for (const LowRank* part : parts) {
    if (!part->meets(column)) continue;
    const uint16_t* up = part->up + panel * part->up_elements();
    const uint16_t* down = part->down + (tile - part->first_tile()) * part->rank_tiles * kTileElements;
    const bool has_first = tile >= part->first_tile();
    const bool has_second = Tiles > 1 && tile + 1 < part->last_tile();
    for (int64_t rank_tile = 0; rank_tile < part->rank_tiles; ++rank_tile) {
      _tile_loadd(6, up + rank_tile * kStepElements, 64);
      _tile_loadd(7, up + rank_tile * kStepElements + kTileElements, 64);
      if (has_first) {
        _tile_loadd(4, down + rank_tile * kTileElements, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (has_second) {
        _tile_loadd(5, down + (part->rank_tiles + rank_tile) * kTileElements, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
}

// What a block is multiplied by: a panel, and in the pair tiles of the low-rank parts the place of its columns.
struct Panel {
  const uint16_t* weight;
  int64_t place;          // in its group
  int64_t column;         // its first
  const uint16_t* ahead;  // weights to call from memory meanwhile, ahead_elements of each step
  int64_t ahead_elements;
};

template <int Tiles, bool Gelu>
EMBEDMUX_AMX void multiply_block(const uint16_t* rows, int64_t steps, const Panel& panel,
                                 const std::vector<const LowRank*>& parts, int64_t tile, const Pending& pending,
                                 float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  multiply<Tiles, Gelu>(rows, panel.weight, steps, pending, panel.ahead, panel.ahead_elements);
  multiply_low_rank<Tiles>(parts, tile, panel.place, panel.column);
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  if (Tiles > 1) {
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
  }
  settle_memory();
}

// Fills the pair tiles of B for the panels [first, last) of a group.
EMBEDMUX_AMX void expand_group(const std::vector<LowRank>& parts, int64_t first, int64_t last) {
  for (const LowRank& part : parts) {
    const int64_t width = part.last_column - part.first_column;
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t column = panel * kPanelColumns;
      if (!part.meets(column)) continue;
      const __mmask32 mask = low_bits(part.last_column - column) & ~low_bits(part.first_column - column);
      uint16_t* target = part.up + (panel - first) * part.up_elements();
      for (int64_t rank = 0; rank < part.rank; rank += kTileRows, target += kStepElements) {
        duplicate_to_pairs(part.b + rank * width + column - part.first_column, width, part.rank - rank, mask, target);
      }
    }
  }
  settle_memory();
}

// The low-rank parts of rows [first, last), A x already computed.
EMBEDMUX_AMX std::vector<LowRank> shrink_segments(const Product& product, int64_t first, int64_t last,
                                                  const uint16_t* rows, ThreadScratch& scratch) {
  const LoraCall& call = product.call;
  const uint16_t* arena = static_cast<const uint16_t*>(call.arena);
  std::vector<LowRank> parts;
  int64_t down_tiles = 0;
  for (const LoraSegment& segment : call.segments) {
    const int64_t begin = std::max(first, segment.first_row) - first, end = std::min(last, segment.last_row) - first;
    if (begin >= end) continue;
    for (int64_t slice = 0; slice < call.num_slices(); ++slice) {
      const LoraFactors& factors = segment.factors[slice];
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

// Room for the parts' B of one group; returns the panels of a group.
int64_t place_groups(const Product& product, int64_t panels, std::vector<LowRank>& parts, Scratch& up) {
  int64_t up_elements = 0;
  for (const LowRank& part : parts) up_elements += part.up_elements();
  const int64_t panel_bytes = (product.steps * kStepElements + up_elements) * 2;
  const int64_t group = std::clamp(kGroupBytes / panel_bytes, int64_t{1}, panels);
  uint16_t* place = up.reserve(up_elements * group);
  for (LowRank& part : parts) {
    part.up = place;
    place += part.up_elements() * group;
  }
  return group;
}

// Rows from first_row, in tiles, by panels [first_panel, last_panel): a group of panels at a time, in it block by
// block, so that the group's weights come from memory once and the output is written along its rows.
template <bool Gelu>
EMBEDMUX_AMX void run_groups(const Product& product, int64_t first_row, int64_t last_row, int64_t first_panel,
                             int64_t last_panel, const uint16_t* rows, const std::vector<LowRank>& parts,
                             int64_t group) {
  const LoraCall& call = product.call;
  const int64_t block_elements = product.steps * kStepElements;
  const int64_t blocks = divide_up(last_row - first_row, kBlockRows);
  const int64_t share = round_up(divide_up(kStepElements, blocks), 32);
  alignas(64) float sums[2][kBlockRows * kPanelColumns];
  std::vector<const LowRank*> touching;
  int64_t turn = 0;
  Pending pending;
  for (int64_t first = first_panel; first < last_panel; first += group) {
    const int64_t last = std::min(last_panel, first + group);
    expand_group(parts, first, last);
    for (int64_t block = 0; block < blocks; ++block) {
      touching.clear();
      for (const LowRank& part : parts) {
        if (part.first_tile() < block * 2 + 2 && part.last_tile() > block * 2) touching.push_back(&part);
      }
      const int64_t row = first_row + block * kBlockRows, count = std::min(kBlockRows, last_row - row);
      const auto multiply = count > kTileRows ? multiply_block<2, Gelu> : multiply_block<1, Gelu>;
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t column = panel * kPanelColumns;
        const uint16_t* weight = product.packed + panel * block_elements;
        const bool is_followed = panel + group < last_panel;
        float* target = sums[turn++ % 2];
        multiply(
            rows + block * block_elements, product.steps,
            {weight, panel - first, column, weight + group * block_elements + block * share, is_followed ? share : 0},
            touching, block * 2, pending, target);
        const __mmask32 mask = low_bits(call.columns - column);
        __m512i bias = _mm512_setzero_si512();
        if (product.bias != nullptr) bias = _mm512_maskz_loadu_epi16(mask, product.bias + column);
        pending = {target,
                   count,
                   product.output + row * call.columns + column,
                   call.columns,
                   mask,
                   widen(_mm512_castsi512_si256(bias)),
                   widen(_mm512_extracti64x4_epi64(bias, 1))};
      }
    }
  }
  for (int64_t row = 0; row < pending.rows; ++row) finish_row<Gelu>(pending, row);
}

}  // namespace

EMBEDMUX_AMX void acquire_tiles() {
  const TileConfig config;
  settle_memory();
  _tile_loadconfig(&config);
}

EMBEDMUX_AMX void release_tiles() { _tile_release(); }

EMBEDMUX_AMX void run_amx_task(const Product& product, int64_t first_row, int64_t last_row, int64_t first_panel,
                               int64_t last_panel) {
  static thread_local ThreadScratch scratch;
  const int64_t blocks = divide_up(last_row - first_row, kBlockRows);
  uint16_t* rows = scratch.rows.reserve(blocks * product.steps * kStepElements);
  gather_rows(product.x, product.call.inner, first_row, last_row, product.steps, rows);
  settle_memory();
  std::vector<LowRank> parts = shrink_segments(product, first_row, last_row, rows, scratch);
  const int64_t group = place_groups(product, last_panel - first_panel, parts, scratch.up);
  const auto run = product.call.gelu ? run_groups<true> : run_groups<false>;
  run(product, first_row, last_row, first_panel, last_panel, rows, parts, group);
}

}  // namespace embedmux

#endif
