// Layouts of the AMX variant: a thread's memory and what goes into it and out of it. Everything is kept in tiles of 16
// rows of 64 bytes that lie one after the other: query strips of 16 rows, panels of 16 keys, steps of 32 keys.
#pragma once

#include <algorithm>
#include <vector>

#include "attention_avx512.h"
#include "attention_problem.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {

constexpr int kStrip = 16;              // query rows of a strip
constexpr int kPanel = 16;              // keys of a panel: one tile of scores
constexpr int kStep = 32;               // keys of a step: one tile of weights
constexpr int kTile = kStrip * kLanes;  // cells of a tile
constexpr int kTogether = 2;            // strips that share each load of values
constexpr int kTileBytes = 64;          // from one row of a tile to the next
constexpr int kSkew = 8 * kLanes;
constexpr int kSteps = kKeys / kStep;
constexpr int kPanels = kKeys / kPanel;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// A tile of bfloat16 ones.
struct alignas(64) Ones {
  Cell cells[kTile];
  constexpr Ones() : cells() {
    for (Cell& cell : cells) cell = 0x3F803F80;
  }
};
constexpr Ones kOnes;

// One thread's memory: its size depends on D and on the rows of a chunk alone, never on a sequence's length.
struct Workspace {
  int chunks;  // tiles of 32 depths that a head fills
  Cell *queries, *keys, *values, *weights;
  float *scores, *output, *shift;  // output: for every strip 2 chunks tiles, then its sums of weights, 16 times over

  Workspace(int depth, int strips) : chunks(round_up(depth, 32) / 32) {
    const int sizes[] = {strips * chunks * kTile,
                         kPanels * chunks * kTile,
                         kSteps * 2 * chunks * kTile,
                         kTogether * kSteps * kTile,
                         kPanels * kTile,
                         strips * (2 * chunks + 1) * kTile,
                         strips * kStrip};
    int64_t total = kLanes + kSkew;
    for (const int size : sizes) total += size;
    static thread_local std::vector<Cell> memory;
    if (static_cast<int64_t>(memory.size()) < total) memory.assign(total, 0);
    Cell* parts[7];
    // Weights are written while scores are read: the same row of both must not have the same low 12 address bits.
    parts[0] = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / sizeof(Cell);
    for (int part = 1; part < 7; ++part) parts[part] = parts[part - 1] + sizes[part - 1];
    for (int part = 4; part < 7; ++part) parts[part] += kSkew;
    queries = parts[0], keys = parts[1], values = parts[2], weights = parts[3];
    scores = reinterpret_cast<float*>(parts[4]), output = reinterpret_cast<float*>(parts[5]);
    shift = reinterpret_cast<float*>(parts[6]);
  }
};

// Query rows of one head against one block: keys [first, last) of the block, multiples of kStep.
struct Strip {
  int index, position, rows, first, last;
  int place;     // of its output among the outputs
  bool started;  // the strip has met an earlier block
  bool ended;    // it meets no later one
};

inline Strip strip_of(const Problem& p, const Chunk& chunk, int index, int strips_per_head, int block) {
  Strip strip;
  strip.index = index;
  strip.position = chunk.first + index % strips_per_head * kStrip;
  strip.rows = std::min(kStrip, chunk.first + chunk.rows - strip.position);
  strip.first = std::max(p.low(strip.position) - block, 0) / kStep * kStep;
  strip.last = std::min(round_up(p.high(strip.position + strip.rows - 1, chunk.keys) - block, kStep), kKeys);
  strip.started = p.low(strip.position) < block;
  const int end = p.high(strip.position + strip.rows - 1, chunk.keys);
  strip.ended = end <= block + kKeys;
  // Outputs that wait for no other block follow each other in the same memory, which then stays in the first cache.
  strip.place = p.low(chunk.first) / kKeys * kKeys + kKeys >= p.high(chunk.first + chunk.rows - 1, chunk.keys)
                    ? index % kTogether
                    : index;
  return strip;
}

// Watches over elements as they are packed: false if one is so large (or NaN) that a score could be NaN.
class Largest {
 public:
  EMBEDMUX_AMX void meet(__m512i cells) {
    bits_ = _mm512_max_epu16(bits_, _mm512_add_epi16(cells, cells));  // without the sign
  }
  EMBEDMUX_AMX bool tame() const {
    constexpr int16_t kTwoTo56 = static_cast<int16_t>((127 + 56) << 8);
    return _mm512_cmp_epu16_mask(bits_, _mm512_set1_epi16(kTwoTo56), _MM_CMPINT_NLT) == 0;
  }

 private:
  __m512i bits_ = __m512i{};
};

// The queries of a strip as tiles can load them: elements 32 c .. 32 c + 31 of a row are `c` steps on.
struct Rows {
  const Cell* start;
  int64_t step;    // cells
  int64_t stride;  // bytes
};

// Full tiles are read where they lie, the rest from packed rows.
inline bool lie_in_tiles(const Source& source) { return source.rows == kStrip && source.depth % kStep == 0; }

inline Rows queries_of(const Workspace& w, const Source& source, int index) {
  if (!lie_in_tiles(source)) return {w.queries + index * w.chunks * kTile, kTile, kTileBytes};
  return {source.row<Cell>(0), kLanes, source.stride * static_cast<int64_t>(sizeof(uint16_t))};
}

// Packs the queries of a strip if need be; what stands behind its last row is read by nobody. Returns whether scores of
// them with tame keys are numbers; so does pack_keys.
EMBEDMUX_AMX inline bool take_queries(const Workspace& w, const Source& source, int index) {
  Largest largest;
  if (lie_in_tiles(source)) {
    for (int r = 0; r < source.rows; ++r) {
      for (int d = 0; d < source.depth; d += kStep) {
        largest.meet(_mm512_loadu_si512(source.row<uint16_t>(r) + d));
      }
    }
    return largest.tame();
  }
  Cell* tiles = w.queries + index * w.chunks * kTile;
  for (int r = 0; r < source.rows; ++r) {
    for (int d = 0; d < source.depth; d += kStep) {
      const __m512i cells = load_cells(source.row<uint16_t>(r), d / 2, source.depth / 2);
      largest.meet(cells);
      _mm512_store_si512(tiles + d / kStep * kTile + r * kLanes, cells);
    }
  }
  return largest.tame();
}

EMBEDMUX_AMX inline void clear_tile(Cell* tile) {
  for (int r = 0; r < kStrip; ++r) _mm512_store_si512(tile + r * kLanes, _mm512_setzero_si512());
}

// Cell (c, key) of tile d of a panel holds the elements 32 d + 2 c and 32 d + 2 c + 1 of that key.
EMBEDMUX_AMX inline bool pack_keys(const Source& source, Cell* panels, int padded_keys) {
  const int chunks = (source.depth + kStep - 1) / kStep;
  Largest largest;
  for (int c = 0; c < chunks; ++c) {
    const __mmask16 lanes = first_lanes(source.depth / 2 - c * kLanes);
    for (int key = 0; key < padded_keys; key += kPanel) {
      Cell* tile = panels + (key / kPanel * chunks + c) * kTile;
      if (key >= source.rows) {
        clear_tile(tile);
        continue;
      }
      __m512i block[kPanel];
      for (int i = 0; i < kPanel; ++i) {
        block[i] = __m512i{};
        if (key + i < source.rows) {
          block[i] = _mm512_maskz_loadu_epi32(lanes, source.row<uint16_t>(key + i) + c * kStep);
        }
        largest.meet(block[i]);
      }
      transpose_16x16(block, tile);
    }
  }
  return largest.tame();
}

// The row of a tile that holds the values of the keys `key` and `key` + 1, by the order of weights.
constexpr int value_row(int key) { return key % kPanel / 4 * 4 + key % kStep / kPanel * 2 + key % 4 / 2; }

// Cell (value_row(key), d) of a tile holds the elements d of the keys `key` and `key` + 1, `key` even; two tiles for
// every 32 depths.
EMBEDMUX_AMX inline void pack_values(const Source& source, Cell* tiles, int padded_keys) {
  alignas(64) static constexpr uint16_t kFirst[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kFirst);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const int chunks = (source.depth + kStep - 1) / kStep;
  for (int c = 0; c < chunks; ++c) {
    const auto lanes = static_cast<__mmask32>((1ULL << std::min(kStep, source.depth - c * kStep)) - 1);
    const auto row_of = [&](int key) { return source.row<uint16_t>(key) + c * kStep; };
    for (int key = 0; key < padded_keys; key += 2) {
      Cell* target = tiles + (key / kStep * chunks + c) * 2 * kTile + value_row(key) * kLanes;
      __m512i even{}, odd{};
      if (key < source.rows) even = _mm512_maskz_loadu_epi16(lanes, row_of(key));
      if (key + 1 < source.rows) odd = _mm512_maskz_loadu_epi16(lanes, row_of(key + 1));
      _mm512_store_si512(target, _mm512_permutex2var_epi16(even, low, odd));
      _mm512_store_si512(target + kTile, _mm512_permutex2var_epi16(even, high, odd));
    }
  }
}

EMBEDMUX_AMX inline void finish(const Workspace& w, int index, const Source& target) {
  const float* output = w.output + index * (2 * w.chunks + 1) * kTile;
  const float* sums = output + 2 * w.chunks * kTile;
  for (int r = 0; r < target.rows; ++r) {
    const __m512 inverse = _mm512_set1_ps(1.0F / sums[r * kLanes]);
    auto* out = const_cast<uint16_t*>(target.row<uint16_t>(r));
    for (int d = 0; d < target.depth; d += kStep) {
      const float* row = output + d / kPanel * kTile + r * kLanes;
      const __m512 low = _mm512_mul_ps(_mm512_load_ps(row), inverse);
      const __m512 high = _mm512_mul_ps(_mm512_load_ps(row + kTile), inverse);
      const auto lanes = static_cast<__mmask32>((1ULL << std::min(kStep, target.depth - d)) - 1);
      _mm512_mask_storeu_epi16(out + d, lanes, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
}

}  // namespace embedmux::attention

#endif
