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

// The low-rank part of one segment and slice inside a task. Rows and tiles count from the task's first.
struct LowRank {
  int64_t first_row, last_row;
  int64_t slice;
  int64_t rank, rank_tiles;
  const uint16_t* a;
  const uint16_t* b;
  uint16_t* down;  // A x: row tiles [num_tiles, rank_tiles]
  uint16_t* up;    // B: pair tiles [rank_tiles, 2] of the current panel

  int64_t first_tile() const { return first_row / kTileRows; }
  int64_t last_tile() const { return divide_up(last_row, kTileRows); }
  int64_t num_tiles() const { return last_tile() - first_tile(); }
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

// Adds rows x panel over `steps` to the sums: tiles 0 and 1 for the first 16 rows, 2 and 3 for the next.
template <int Tiles>
EMBEDMUX_AMX inline void multiply(const uint16_t* rows, const uint16_t* panel, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step) {
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
  }
}

// Adds the low-rank steps of the block's own segments; `tile` is the block's first.
template <int Tiles>
EMBEDMUX_AMX inline void multiply_low_rank(const std::vector<const LowRank*>& parts, int64_t tile) {
  for (const LowRank* part : parts) {
    if (part->first_tile() >= tile + Tiles) break;
    if (part->last_tile() <= tile) continue;
    const uint16_t* down = part->down + (tile - part->first_tile()) * part->rank_tiles * kTileElements;
    const bool has_first = tile >= part->first_tile();
    const bool has_second = Tiles > 1 && tile + 1 < part->last_tile();
    for (int64_t rank_tile = 0; rank_tile < part->rank_tiles; ++rank_tile) {
      _tile_loadd(6, part->up + rank_tile * kStepElements, 64);
      _tile_loadd(7, part->up + rank_tile * kStepElements + kTileElements, 64);
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

// Bias, activation and rounding of `rows` rows of sums [rows, 32] into a panel of the output.
template <bool Gelu>
EMBEDMUX_AMX inline void finish_block(const float* sums, int64_t rows, __m512 left_bias, __m512 right_bias,
                                      __mmask32 mask, uint16_t* output, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    __m512 left = _mm512_add_ps(_mm512_load_ps(sums + row * kPanelColumns), left_bias);
    __m512 right = _mm512_add_ps(_mm512_load_ps(sums + row * kPanelColumns + 16), right_bias);
    if (Gelu) {
      left = gelu<16>(left);
      right = gelu<16>(right);
    }
    _mm512_mask_storeu_epi16(output + row * columns, mask, (__m512i)_mm512_cvtne2ps_pbh(right, left));
  }
}

template <int Tiles>
EMBEDMUX_AMX void multiply_block(const uint16_t* rows, const uint16_t* panel, int64_t steps,
                                 const std::vector<const LowRank*>& parts, int64_t tile, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  multiply<Tiles>(rows, panel, steps);
  multiply_low_rank<Tiles>(parts, tile);
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  if (Tiles > 1) {
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
  }
  settle_memory();
}

// Fills the panel's pair tiles of every part whose slice it meets, and lists those parts.
EMBEDMUX_AMX void expand_panel(const LoraCall& call, const std::vector<LowRank>& parts, int64_t column,
                               std::vector<const LowRank*>& active) {
  active.clear();
  for (const LowRank& part : parts) {
    const int64_t start = call.slices[part.slice], end = call.slices[part.slice + 1];
    if (start >= column + kPanelColumns || end <= column) continue;
    const __mmask32 mask = low_bits(end - column) & ~low_bits(start - column);
    for (int64_t rank_tile = 0; rank_tile < part.rank_tiles; ++rank_tile) {
      const uint16_t* source = part.b + rank_tile * kTileRows * (end - start) + column - start;
      duplicate_to_pairs(source, end - start, part.rank - rank_tile * kTileRows, mask,
                         part.up + rank_tile * kStepElements);
    }
    active.push_back(&part);
  }
  settle_memory();
}

// The low-rank parts of rows [first, last), A x already computed.
EMBEDMUX_AMX std::vector<LowRank> shrink_segments(const Product& product, int64_t first, int64_t last,
                                                  const uint16_t* rows, ThreadScratch& scratch) {
  const LoraCall& call = product.call;
  const uint16_t* arena = static_cast<const uint16_t*>(call.arena);
  std::vector<LowRank> parts;
  int64_t down_tiles = 0, up_tiles = 0;
  for (const LoraSegment& segment : call.segments) {
    const int64_t begin = std::max(first, segment.first_row) - first, end = std::min(last, segment.last_row) - first;
    if (begin >= end) continue;
    for (int64_t slice = 0; slice < call.num_slices(); ++slice) {
      const LoraFactors& factors = segment.factors[slice];
      if (factors.rank == 0) continue;
      parts.push_back({begin, end, slice, factors.rank, divide_up(factors.rank, kTileRows), arena + factors.a,
                       arena + factors.b, nullptr, nullptr});
      down_tiles += parts.back().num_tiles() * parts.back().rank_tiles;
      up_tiles += 2 * parts.back().rank_tiles;
    }
  }
  if (parts.empty()) return parts;
  uint16_t* a_tiles = scratch.a.reserve(product.steps * kTileElements);
  uint16_t* down = scratch.down.reserve(down_tiles * kTileElements);
  uint16_t* up = scratch.up.reserve(up_tiles * kTileElements);
  for (LowRank& part : parts) {
    part.down = down;
    part.up = up;
    shrink(product, part, rows, a_tiles);
    down += part.num_tiles() * part.rank_tiles * kTileElements;
    up += 2 * part.rank_tiles * kTileElements;
  }
  return parts;
}

}  // namespace

EMBEDMUX_AMX void acquire_tiles() {
  const TileConfig config;
  settle_memory();
  _tile_loadconfig(&config);
}

EMBEDMUX_AMX void release_tiles() { _tile_release(); }

// Rows [first_row, last_row) by panels [first_panel, last_panel).
EMBEDMUX_AMX void run_amx_task(const Product& product, int64_t first_row, int64_t last_row, int64_t first_panel,
                               int64_t last_panel) {
  static thread_local ThreadScratch scratch;
  const LoraCall& call = product.call;
  const int64_t block_elements = product.steps * kStepElements;
  uint16_t* rows = scratch.rows.reserve(divide_up(last_row - first_row, kBlockRows) * block_elements);
  gather_rows(product.x, call.inner, first_row, last_row, product.steps, rows);
  settle_memory();
  const std::vector<LowRank> parts = shrink_segments(product, first_row, last_row, rows, scratch);
  std::vector<const LowRank*> active;
  alignas(64) float sums[kBlockRows * kPanelColumns];

  for (int64_t panel = first_panel; panel < last_panel; ++panel) {
    const int64_t column = panel * kPanelColumns;
    expand_panel(call, parts, column, active);
    const uint16_t* weight = product.packed + panel * block_elements;
    const __mmask32 mask = low_bits(call.columns - column);
    __m512 left_bias = _mm512_setzero_ps(), right_bias = _mm512_setzero_ps();
    if (product.bias != nullptr) {
      const __m512i bias = _mm512_maskz_loadu_epi16(mask, product.bias + column);
      left_bias = widen(_mm512_castsi512_si256(bias));
      right_bias = widen(_mm512_extracti64x4_epi64(bias, 1));
    }
    for (int64_t row = first_row; row < last_row; row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, last_row - row), place = row - first_row;
      const uint16_t* block = rows + place / kBlockRows * block_elements;
      const auto multiply = count > kTileRows ? multiply_block<2> : multiply_block<1>;
      multiply(block, weight, product.steps, active, place / kTileRows, sums);
      const auto finish = call.gelu ? finish_block<true> : finish_block<false>;
      finish(sums, count, left_bias, right_bias, mask, product.output + row * call.columns + column, call.columns);
    }
  }
}

}  // namespace embedmux

#endif
