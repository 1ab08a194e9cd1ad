// Similarity of int8 codes and of packed bits with AMX: 32 rows, as they lie in memory, times 16 or 32 queries.
//
// Packed bits become bytes: 0 or -1 in a row, -1 or +1 in a query (+1 where the bit is set). A set bit of a row adds -1
// to the product where the query has it and +1 where not, so product + set bits of the query = bits that differ.
#include <cstring>
#include <vector>

#include "similarity.h"

#ifdef EMBEDMUX_X86

namespace embedmux::similarity {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = kTileRows * kCell;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 queries. With one column a tile of queries is one cell, 4 bytes a row.
EMBEDMUX_AMX_INT8 void enter(bool one_column) {
  TileConfig config;
  const uint16_t narrow = one_column ? 4 : kCell;
  for (int tile = 0; tile < 8; ++tile) config.row_bytes[tile] = tile == 4 || tile == 5 ? kCell : narrow;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

EMBEDMUX_AMX_INT8 void leave() { _tile_release(); }

// The rows that come next are asked for between the products, a few lines each time.
class Prefetch {
 public:
  Prefetch(const Block& block, int64_t steps)
      : next_(block.ahead),
        end_(block.ahead == nullptr ? nullptr : block.ahead + kBlock * block.stride),
        step_(round_up((end_ - next_ + steps - 1) / steps, kCell)) {}

  EMBEDMUX_AMX_INT8 void step() {
    const uint8_t* stop = end_ - next_ > step_ ? next_ + step_ : end_;
    for (; next_ < stop; next_ += kCell) _mm_prefetch(next_, _MM_HINT_T1);
  }

 private:
  const uint8_t* next_;
  const uint8_t* end_;
  int64_t step_;
};

// 32 rows times 32 columns, or 16 or 1 if Wide is false; `queries` are the columns' tiles, one tile a cell of the rows.
template <bool Wide>
EMBEDMUX_AMX_INT8 inline void multiply(const Group& group, const Block& block, int column, int32_t* sums,
                                       Prefetch& prefetch) {
  const int stride = static_cast<int>(block.stride);
  const uint8_t* rows = block.rows;
  const uint8_t* next_rows = rows + kTileRows * block.stride;
  const uint8_t* queries = group.queries + column * group.query_bytes;
  const int query_stride = group.columns == 1 ? 4 : kCell;
  const int query_tile = group.columns == 1 ? kCell : kTileBytes;
  const uint8_t* next_queries = queries + kLanes * group.query_bytes;
  // With a stride of 0 every row of the tile begins as the bias.
  _tile_loadd(0, group.bias + column, 0);
  _tile_loadd(2, group.bias + column, 0);
  if constexpr (Wide) {
    _tile_loadd(1, group.bias + column + kLanes, 0);
    _tile_loadd(3, group.bias + column + kLanes, 0);
  }
  for (int64_t at = 0; at < group.query_bytes; at += kCell) {
    prefetch.step();
    _tile_loadd(4, rows + at, stride);
    _tile_loadd(6, queries, query_stride);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, next_rows + at, stride);
    _tile_dpbssd(2, 5, 6);
    queries += query_tile;
    if constexpr (Wide) {
      _tile_loadd(7, next_queries, query_stride);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(3, 5, 7);
      next_queries += query_tile;
    }
  }
  const int out_stride = group.columns * static_cast<int>(sizeof(int32_t));
  int32_t* out = sums + column;
  int32_t* next_out = out + kTileRows * group.columns;
  _tile_stored(0, out, out_stride);
  _tile_stored(2, next_out, out_stride);
  if constexpr (Wide) {
    _tile_stored(1, out + kLanes, out_stride);
    _tile_stored(3, next_out + kLanes, out_stride);
  }
}

EMBEDMUX_AMX_INT8 void score(const Group& group, const Block& block, int32_t* sums) {
  const int products = (group.columns + 2 * kLanes - 1) / (2 * kLanes);
  Prefetch prefetch(block, products * group.query_bytes / kCell);
  int column = 0;
  for (; column + 2 * kLanes <= group.columns; column += 2 * kLanes) {
    multiply<true>(group, block, column, sums, prefetch);
  }
  if (column < group.columns) multiply<false>(group, block, column, sums, prefetch);
}

// Query q's four bytes d .. d + 3 of a cell go to row d / 4 of the tile, place q.
void place(const uint8_t* query, int column, const Preparation& preparation) {
  uint8_t* out = preparation.out + column / kLanes * kLanes * preparation.query_bytes;
  if (preparation.columns == 1) {
    std::memcpy(out, query, preparation.query_bytes);
    return;
  }
  for (int64_t at = 0; at < preparation.query_bytes; at += 4) {
    const int64_t tile = at / kCell * kTileBytes;
    std::memcpy(out + tile + at % kCell * kLanes + column % kLanes * 4, query + at, 4);
  }
}

void prepare_codes(const Preparation& preparation) {
  std::vector<uint8_t> query(preparation.query_bytes);
  for (int q = 0; q < preparation.count; ++q) {
    std::memcpy(query.data(), preparation.queries + q * preparation.stride, preparation.width);
    place(query.data(), q, preparation);
  }
}

void prepare_bits(const Preparation& preparation) {
  std::vector<uint8_t> query(preparation.query_bytes);
  for (int q = 0; q < preparation.count; ++q) {
    const uint8_t* bits = preparation.queries + q * preparation.stride;
    for (int64_t j = 0; j < 8 * preparation.width; ++j) {
      const int is_set = bits[j / 8] >> j % 8 & 1;
      query[j] = static_cast<uint8_t>(2 * is_set - 1);
      preparation.bias[q] += is_set;
    }
    place(query.data(), q, preparation);
  }
}

EMBEDMUX_AMX_INT8 void decode_bits(const uint8_t* row, int64_t width, uint8_t* out) {
  int64_t at = 0;
  for (; at + 8 <= width; at += 8, out += kCell) {
    uint64_t bits;
    std::memcpy(&bits, row + at, 8);
    _mm512_storeu_si512(out, _mm512_movm_epi8(bits));
  }
  if (at == width) return;
  uint64_t bits = 0;
  std::memcpy(&bits, row + at, width - at);
  _mm512_storeu_si512(out, _mm512_movm_epi8(bits));
}

}  // namespace

const Kernel int8_amx = {true, true, 1, nullptr, prepare_codes, score, enter, leave};
const Kernel hamming_amx = {true, true, 8, decode_bits, prepare_bits, score, enter, leave};

}  // namespace embedmux::similarity

#endif
