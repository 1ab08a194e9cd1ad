// A task is a run of rows by a run of panels. It brings its rows into tiles, computes A x for the segments it meets,
// and then walks its panels: 32 x 32 results stay in four tile registers over the whole of K and over the low-rank
// steps, then get bias, activation and their one rounding. Every sum runs through K in order inside one task, and a
// step that belongs to another segment's rows multiplies zeros, which leaves a sum as it was: so no row's bits depend
// on the cut.
#include "gemm_amx_kernel.h"

#include <algorithm>
#include <vector>

#include "gemm_amx_finish.h"

#ifdef EMBEDMUX_X86

namespace embedmux {
namespace {

constexpr int64_t kTaskBytes =
    1024 * 1024;                    // rows of a task in tiles, at most: half of the second-level cache of such a core
constexpr int64_t kTaskRows = 256;  // leaves the second-level cache room for the output and an adapter's factors
constexpr int64_t kTaskPanels = 8;  // fewer panels a task would gather x and compute A x too often

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Weights pass through the first-level cache without staying there (stream loads), so that the block's rows do: they
// meet one panel after another.
//
// Adds rows x panel over `steps` to the sums: tiles 0 and 1 for the first 16 rows, 2 and 3 for the next. Between the
// steps it finishes the block before, whose vector work fits beside the tile work, and calls `ahead`, its share of the
// next panel, from memory.
template <int Tiles, typename Finish>
EMBEDMUX_AMX inline void multiply(const uint16_t* rows, const uint16_t* panel, int64_t steps, const Pending& given,
                                  const uint16_t* ahead, int64_t ahead_elements) {
  const Pending pending = given;  // in registers: what a row writes cannot change it
  const int64_t rows_a_step = divide_up(pending.rows, steps);
  int64_t row = 0;
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t i = 0; i < ahead_elements; i += 32) _mm_prefetch(ahead + step * kStepElements + i, _MM_HINT_T1);
    _tile_loadd(4, rows + step * kStepElements, 64);
    _tile_stream_loadd(6, panel + step * kStepElements, 64);
    _tile_stream_loadd(7, panel + step * kStepElements + kTileElements, 64);
    if constexpr (Finish::is_int8) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (Tiles > 1) {
      _tile_loadd(5, rows + step * kStepElements + kTileElements, 64);
      if constexpr (Finish::is_int8) {
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
      } else {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    for (const int64_t end = std::min(pending.rows, row + rows_a_step); row < end; ++row) {
      Finish::row(pending, row);
    }
  }
}

// Adds the low-rank steps of the block's own segments; `tile` is the block's first.
template <int Tiles>
EMBEDMUX_AMX inline void multiply_low_rank(const std::vector<const LowRank*>& parts, int64_t tile, int64_t panel,
                                           int64_t column) {
  for (const LowRank* part : parts) {
    if (!part->meets(column)) continue;
    const int64_t steps = part->steps();
    const uint16_t* up = part->up + panel * part->up_elements();
    const uint16_t* down = part->down + (tile - part->first_tile()) * steps * kTileElements;
    const bool has_first = tile >= part->first_tile();
    const bool has_second = Tiles > 1 && tile + 1 < part->last_tile();
    for (int64_t step = 0; step < steps; ++step) {
      _tile_stream_loadd(6, up + step * kStepElements, 64);
      _tile_stream_loadd(7, up + step * kStepElements + kTileElements, 64);
      if (has_first) {
        _tile_loadd(4, down + step * kTileElements, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (has_second) {
        _tile_loadd(5, down + (steps + step) * kTileElements, 64);
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

EMBEDMUX_AMX inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

template <int Tiles>
EMBEDMUX_AMX inline void store_sums(float* sums) {
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  if (Tiles > 1) {
    _tile_stored(2, sums + 512, 128);
    _tile_stored(3, sums + 528, 128);
  }
}

// The low-rank steps add to the sums, or, where these are of codes, to sums of their own.
template <int Tiles, typename Finish>
EMBEDMUX_AMX void multiply_block(const uint16_t* rows, int64_t steps, const Panel& panel,
                                 const std::vector<const LowRank*>& parts, int64_t tile, const Pending& pending,
                                 float* sums, float* low_rank) {
  clear_sums();
  multiply<Tiles, Finish>(rows, panel.weight, steps, pending, panel.ahead, panel.ahead_elements);
  if (Finish::is_int8) {
    store_sums<Tiles>(sums);
    if (!parts.empty()) {
      clear_sums();
      multiply_low_rank<Tiles>(parts, tile, panel.place, panel.column);
      store_sums<Tiles>(low_rank);
    }
  } else {
    multiply_low_rank<Tiles>(parts, tile, panel.place, panel.column);
    store_sums<Tiles>(sums);
  }
  settle_memory();
}

// Where the results of a task go: from one block, panel and row to the next, in elements.
struct Target {
  uint16_t* start;
  int64_t block, panel, row;
};

// The task's rows, in tiles, by its panels: a group of panels at a time, in it block by block, so that the group's
// weights come from memory once and the output is written along its rows.
template <typename Finish>
EMBEDMUX_AMX void run_groups(const Product& product, const AmxTask& task, const AmxRows& given, const uint16_t* rows,
                             const RowScale* scales, const Target& target, const std::vector<LowRank>& parts,
                             int64_t group) {
  const auto [first_row, last_row, first_place, last_place] = task;
  const LoraCall& call = product.call;
  const int64_t block_elements = product.steps * kStepElements;
  const int64_t blocks = divide_up(last_row - first_row, kBlockRows);
  const int64_t share = round_up(divide_up(kStepElements, blocks), 32);
  alignas(64) float sums[2 * kBlockElements];  // free again before a block stores: multiply finishes the last
  alignas(64) float low_rank[2 * kBlockElements];
  std::vector<const LowRank*> touching;
  Pending pending;
  for (int64_t first = first_place; first < last_place; first += group) {
    const int64_t last = std::min(last_place, first + group);
    expand_group(product, parts, first, last, last_place);
    for (int64_t block = 0; block < blocks; ++block) {
      touching.clear();
      for (const LowRank& part : parts) {
        if (part.first_tile() < block * 2 + 2 && part.last_tile() > block * 2) touching.push_back(&part);
      }
      const int64_t row = first_row + block * kBlockRows, count = std::min(kBlockRows, last_row - row);
      const auto multiply = count > kTileRows ? multiply_block<2, Finish> : multiply_block<1, Finish>;
      for (int64_t place = first; place < last; ++place) {
        const int64_t panel = product.panel(place), column = panel * kPanelColumns;
        const uint16_t* next = nullptr;
        if (place + group < last_place) {
          next = product.packed + product.panel(place + group) * product.panel_elements;
        } else if ((place - first + 1) * product.panel_elements <= given.upcoming_elements) {
          next = given.upcoming + (place - first) * product.panel_elements;
        }
        const bool is_gate = call.is_gated && place % 2 == 0;
        const int64_t half_block = call.is_gated && !is_gate ? kBlockElements : 0;
        multiply(rows + block * block_elements, product.steps,
                 {product.packed + panel * product.panel_elements, place - first, column, next + block * share,
                  next == nullptr ? 0 : share},
                 touching, block * 2, pending, sums + half_block, low_rank + half_block);
        if (is_gate) {
          pending.rows = 0;
          continue;
        }
        const int64_t output_column = call.is_gated ? column - call.columns / 2 : column;
        const float* bias = call.affine.bias;
        pending = {sums,
                   touching.empty() ? nullptr : low_rank,
                   scales == nullptr ? nullptr : scales + block * kBlockRows,
                   product.affines == nullptr ? nullptr : product.affines + row,
                   count,
                   output_column,
                   column,
                   target.start + block * target.block + output_column / kPanelColumns * target.panel,
                   target.row,
                   low_bits(call.columns - column),
                   {_mm512_loadu_ps(bias + output_column), _mm512_loadu_ps(bias + output_column + 16),
                    _mm512_loadu_ps(bias + column), _mm512_loadu_ps(bias + column + 16)},
                   {},
                   {}};
        if (!Finish::is_int8) continue;
        for (int64_t half = 0; half < (call.is_gated ? 4 : 2); ++half) {
          const int64_t own = call.is_gated && half < 2 ? panel - product.half_panels : panel;
          const auto* tail =
              reinterpret_cast<const float*>(product.packed + (own + 1) * product.panel_elements - kInt8TailBytes / 2);
          pending.column_scales[half] = _mm512_loadu_ps(tail + half % 2 * 16);
          pending.code_sums[half] = _mm512_loadu_ps(tail + kInt8Columns + half % 2 * 16);
        }
      }
    }
  }
  for (int64_t row = 0; row < pending.rows; ++row) Finish::row(pending, row);
}

template <Activation A, bool IsGated>
auto choose_groups(const Product& product) {
  if (product.is_int8) return run_groups<Finish<A, IsGated, false, true>>;
  return product.affines == nullptr ? run_groups<Finish<A, IsGated, false, false>>
                                    : run_groups<Finish<A, IsGated, true, false>>;
}

auto choose_groups(const Product& product) {
  const bool is_gated = product.call.is_gated;
  switch (product.call.activation) {
    case Activation::gelu:
      return is_gated ? choose_groups<Activation::gelu, true>(product)
                      : choose_groups<Activation::gelu, false>(product);
    case Activation::gelu_tanh:
      return is_gated ? choose_groups<Activation::gelu_tanh, true>(product)
                      : choose_groups<Activation::gelu_tanh, false>(product);
    case Activation::silu:
      return is_gated ? choose_groups<Activation::silu, true>(product)
                      : choose_groups<Activation::silu, false>(product);
    case Activation::relu:
      return choose_groups<Activation::relu, false>(product);
    default:
      return choose_groups<Activation::none, false>(product);
  }
}

}  // namespace

EMBEDMUX_AMX void acquire_tiles() {
  const TileConfig config;
  settle_memory();
  _tile_loadconfig(&config);
}

EMBEDMUX_AMX void release_tiles() { _tile_release(); }

TaskGrid cut_amx_tasks(const Product& product, int64_t rows, int64_t threads) {
  const LoraCall& call = product.call;
  const int64_t cached_rows = kTaskBytes / (product.wide_steps() * kTileDepth * 2) / kBlockRows * kBlockRows;
  // A gated product walks its panels in pairs, gate and up.
  return cut_tasks(rows, divide_up(call.columns, kPanelColumns), std::clamp(cached_rows, kBlockRows, kTaskRows),
                   kBlockRows, kTaskPanels, call.is_gated ? 2 : 1, threads);
}

EMBEDMUX_AMX void run_amx_task(const Product& product, const AmxTask& task, const AmxRows& given) {
  static thread_local Scratch<uint16_t> row_scratch, code_scratch;
  static thread_local Scratch<RowScale> scale_scratch;
  static thread_local LowRankScratch scratch;
  std::vector<LowRank> parts = find_parts(product, task.first_row, task.last_row, scratch);
  const int64_t count = task.last_row - task.first_row;
  const uint16_t* rows = given.x;
  const RowScale* scales = nullptr;
  if (!given.x_in_tiles && !(product.is_int8 && parts.empty())) {
    uint16_t* gathered = row_scratch.reserve(row_tiles_elements(count, product.wide_steps()));
    gather_rows(given.x, product.call.inner, count, product.wide_steps(), gathered);
    rows = gathered;
  }
  settle_memory();
  shrink_parts(product, parts, rows, scratch);
  if (product.is_int8) {
    uint16_t* codes = code_scratch.reserve(row_tiles_elements(count, product.steps));
    RowScale* own = scale_scratch.reserve(count);
    quantize_rows(given.x, given.x_in_tiles, product.call.inner, count, reinterpret_cast<uint8_t*>(codes), own);
    settle_memory();
    rows = codes, scales = own;
  }
  const int64_t group = place_groups(product, count, task.last_place - task.first_place, parts, scratch);
  const int64_t columns = product.call.output_columns();
  const Target target = given.output_in_tiles ? Target{given.output, columns * kBlockRows, kStepElements, kTileDepth}
                                              : Target{given.output, columns * kBlockRows, kPanelColumns, columns};
  choose_groups(product)(product, task, given, rows, scales, target, parts, group);
}

}  // namespace embedmux

#endif
