// bfloat16 attention with AMX. A strip's scores against a block of keys stay in the first cache level between the two
// products.
#include "attention_amx_tiles.h"
#include "attention_amx_weights.h"

#ifdef EMBEDMUX_X86

namespace embedmux::attention {
namespace {

// Not _tile_loadconfig: gcc 12 takes it for a read of 8 bytes and may leave the other 56 unwritten.
EMBEDMUX_AMX void enter() {
  const TileConfig config;
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

// Other libraries find the tiles as a fresh thread has them.
EMBEDMUX_AMX void leave() { _tile_release(); }

// Scores of a strip against `Panels` panels.
template <int Panels>
EMBEDMUX_AMX void score_panels(const Rows& queries, const Cell* keys, int chunks, float* scores) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Panels == 4) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int c = 0; c < chunks; ++c) {
    const Cell* right = keys + c * kTile;
    const int panel = chunks * kTile;
    _tile_loadd(4, queries.start + c * queries.step, queries.stride);
    _tile_loadd(5, right, kTileBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, right + panel, kTileBytes);
    _tile_dpbf16ps(1, 4, 6);
    if constexpr (Panels == 4) {
      _tile_loadd(7, right + 2 * panel, kTileBytes);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(5, right + 3 * panel, kTileBytes);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, scores, kTileBytes);
  _tile_stored(1, scores + kTile, kTileBytes);
  if constexpr (Panels == 4) {
    _tile_stored(2, scores + 2 * kTile, kTileBytes);
    _tile_stored(3, scores + 3 * kTile, kTileBytes);
  }
}

void score(const Workspace& w, const Rows& queries, const Strip& strip) {
  int panel = strip.first / kPanel;
  for (; panel + 4 <= strip.last / kPanel; panel += 4) {
    score_panels<4>(queries, w.keys + panel * w.chunks * kTile, w.chunks, w.scores + panel * kTile);
  }
  if (panel < strip.last / kPanel) {
    score_panels<2>(queries, w.keys + panel * w.chunks * kTile, w.chunks, w.scores + panel * kTile);
  }
}

constexpr float kHidden = -__builtin_inff();

// Overwrites a row's scores of the keys from `high` on.
EMBEDMUX_AMX inline void hide_behind(const Strip& strip, int high, float* row) {
  for (int key = std::max(strip.first, high & -kPanel); key < strip.last; key += kPanel) {
    const auto lanes = static_cast<__mmask16>(~first_lanes(high - key));
    _mm512_mask_store_ps(row + key / kPanel * kTile, lanes, _mm512_set1_ps(kHidden));
  }
}

// Overwrites the scores of keys that a row must not see.
EMBEDMUX_AMX void hide(const Problem& p, const Strip& strip, int block, int keys, float* scores) {
  if (p.sees_all()) {
    if (keys - block >= strip.last) return;
    for (int r = 0; r < strip.rows; ++r) hide_behind(strip, keys - block, scores + r * kLanes);
    return;
  }
  if (p.low(strip.position + strip.rows - 1) <= block + strip.first &&
      p.high(strip.position, keys) >= block + strip.last) {
    return;
  }
  for (int r = 0; r < strip.rows; ++r) {
    const int low = p.low(strip.position + r) - block;
    float* row = scores + r * kLanes;
    for (int key = strip.first; key < std::min(low, strip.last); key += kPanel) {
      _mm512_mask_store_ps(row + key / kPanel * kTile, first_lanes(low - key), _mm512_set1_ps(kHidden));
    }
    hide_behind(strip, p.high(strip.position + r, keys) - block, row);
  }
}

// Scores -> weights; moves the strip's shifts and what earlier blocks left in its output.
EMBEDMUX_AMX void weigh(const Workspace& w, const Strip& strip, float scale, bool tame, Cell* weights,
                        Prefetch& prefetch, int64_t lines) {
  const float* scores = w.scores;
  const int first = strip.first / kPanel, last = strip.last / kPanel;
  float* shifts = w.shift + strip.index * kStrip;
  __m512 each[kStrip];
  for (int r = strip.rows; r < kStrip; ++r) each[r] = _mm512_setzero_ps();
  for (int r = 0; r < strip.rows; ++r) {
    __m512 even = _mm512_load_ps(scores + first * kTile + r * kLanes);
    __m512 odd = _mm512_load_ps(scores + (first + 1) * kTile + r * kLanes);
    for (int panel = first + 2; panel < last; panel += 2) {
      even = _mm512_max_ps(even, _mm512_load_ps(scores + panel * kTile + r * kLanes));
      odd = _mm512_max_ps(odd, _mm512_load_ps(scores + (panel + 1) * kTile + r * kLanes));
    }
    each[r] = _mm512_max_ps(even, odd);
  }
  const __m512 old = _mm512_load_ps(shifts);
  const __m512 moved = whole_shift(reduce_each<larger>(each), scale, old);
  _mm512_store_ps(shifts, moved);
  const bool quick = tame && suits_quick_weights(moved);
  for (int r = 0; r < strip.rows; ++r) {
    if (r % 2 == 0) prefetch.advance(lines);
    const float* row = scores + first * kTile + r * kLanes;
    Cell* target = weights + first / 2 * kTile + r * kLanes;
    if (quick) {
      weigh_row_quickly(row, last - first, scale, shifts[r], target);
    } else {
      weigh_row(row, last - first, scale, shifts[r], target);
    }
  }
  if (!strip.started) return;
  alignas(64) float decays[kLanes];
  _mm512_store_ps(decays, exp2_lanes<5>(_mm512_sub_ps(old, moved)));
  float* output = w.output + strip.place * (2 * w.chunks + 1) * kTile;
  for (int tile = 0; tile < 2 * w.chunks + 1; ++tile) {
    for (int r = 0; r < strip.rows; ++r, output += kLanes) {
      _mm512_store_ps(output, _mm512_mul_ps(_mm512_load_ps(output), _mm512_set1_ps(decays[r])));
    }
    output += (kStrip - strip.rows) * kLanes;
  }
}

// Accumulators: tiles 0 and 1 output of the first strip, 2 and 3 of the second, 4 and 5 their sums of weights.
template <int Strips, bool Sums>
EMBEDMUX_AMX inline void start_gathering(bool started, float* output, float* next, float* sum, float* next_sum) {
  if (started) {
    _tile_loadd(0, output, kTileBytes);
    _tile_loadd(1, output + kTile, kTileBytes);
    if constexpr (Sums) _tile_loadd(4, sum, kTileBytes);
    if constexpr (Strips == 2) {
      _tile_loadd(2, next, kTileBytes);
      _tile_loadd(3, next + kTile, kTileBytes);
      if constexpr (Sums) _tile_loadd(5, next_sum, kTileBytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(4);
    if constexpr (Strips == 2) {
      _tile_zero(2);
      _tile_zero(3);
      _tile_zero(5);
    }
  }
}

// Output tiles 2 c and 2 c + 1 of one or two neighbouring strips, over the keys of the first; with `Sums` also the tile
// behind the outputs: the weights times ones.
template <int Strips, bool Sums>
EMBEDMUX_AMX void gather_chunk(const Workspace& w, const Strip& strip, const Cell* weights, int c) {
  const int tiles = 2 * w.chunks;
  float* output = w.output + (strip.place * (tiles + 1) + 2 * c) * kTile;
  float* next = output + (tiles + 1) * kTile;
  float* sum = output + (tiles - 2 * c) * kTile;
  float* next_sum = next + (tiles - 2 * c) * kTile;
  start_gathering<Strips, Sums>(strip.started, output, next, sum, next_sum);
  for (int step = strip.first / kStep; step < strip.last / kStep; ++step) {
    const Cell* values = w.values + (step * tiles + 2 * c) * kTile;
    _tile_loadd(6, weights + step * kTile, kTileBytes);
    _tile_loadd(7, values, kTileBytes);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(7, values + kTile, kTileBytes);
    _tile_dpbf16ps(1, 6, 7);
    if constexpr (Sums) {
      _tile_loadd(7, kOnes.cells, kTileBytes);
      _tile_dpbf16ps(4, 6, 7);
    }
    if constexpr (Strips == 2) {
      _tile_loadd(6, weights + (kSteps + step) * kTile, kTileBytes);
      if constexpr (Sums) _tile_dpbf16ps(5, 6, 7);
      _tile_loadd(7, values, kTileBytes);
      _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(7, values + kTile, kTileBytes);
      _tile_dpbf16ps(3, 6, 7);
    }
  }
  _tile_stored(0, output, kTileBytes);
  _tile_stored(1, output + kTile, kTileBytes);
  if constexpr (Sums) _tile_stored(4, sum, kTileBytes);
  if constexpr (Strips == 2) {
    _tile_stored(2, next, kTileBytes);
    _tile_stored(3, next + kTile, kTileBytes);
    if constexpr (Sums) _tile_stored(5, next_sum, kTileBytes);
  }
}

template <int Strips>
void gather_strips(const Workspace& w, const Strip& strip, const Cell* weights) {
  gather_chunk<Strips, true>(w, strip, weights, 0);
  for (int c = 1; c < w.chunks; ++c) gather_chunk<Strips, false>(w, strip, weights, c);
}

void gather(const Workspace& w, const Strip* strips, int count) {
  const bool together = count == 2 && strips[1].index == strips[0].index + 1 && strips[0].first == strips[1].first &&
                        strips[0].last == strips[1].last && strips[0].started == strips[1].started;
  if (together) {
    gather_strips<2>(w, strips[0], w.weights);
  } else {
    for (int i = 0; i < count; ++i) gather_strips<1>(w, strips[i], w.weights + i * kSteps * kTile);
  }
}

// The rows of the piece, of at most one block of its keys.
Prefetch prefetch_of(const Problem& p, const Piece& piece) {
  Prefetch prefetch;
  const Chunk& chunk = piece.chunk;
  const int64_t bytes = p.depth * p.q.element_size * (piece.end_head - piece.first_head);
  const int low = std::max(p.low(chunk.first), chunk.prefix);
  const int keys = std::min(p.high(chunk.first + chunk.rows - 1, chunk.keys) - low, kKeys);
  prefetch.add(p.q, chunk.own + chunk.first, piece.first_head * p.groups, chunk.rows, bytes * p.groups);
  prefetch.add(p.k, chunk.own + low, piece.first_head, keys, bytes);
  prefetch.add(p.v, chunk.own + low, piece.first_head, keys, bytes);
  prefetch.add(p.out, chunk.own + chunk.first, piece.first_head * p.groups, chunk.rows, bytes * p.groups);
  return prefetch;
}

// Asks for `lines` lines of `prefetch` a row.
void attend_head(const Problem& p, const Chunk& chunk, int head, Prefetch& prefetch, int64_t lines) {
  const int strips_per_head = (chunk.rows + kStrip - 1) / kStrip;
  const int strips = strips_per_head * p.groups;
  const Workspace w(p.depth, strips);
  const auto rows_of = [&](const View& view, int index) {
    const int start = index % strips_per_head * kStrip;
    return p.queries(view, chunk, chunk.first + start, head * p.groups + index / strips_per_head,
                     std::min(kStrip, chunk.rows - start));
  };
  bool tame = true;
  for (int index = 0; index < strips; ++index) {
    tame &= take_queries(w, rows_of(p.q, index), index);
  }
  std::fill_n(w.shift, strips * kStrip, kNoKey);

  const int low = p.low(chunk.first);
  const int high = p.high(chunk.first + chunk.rows - 1, chunk.keys);
  for (int block = low / kKeys * kKeys; block < high; block += kKeys) {
    const int first = std::max(low - block, 0) / kStep * kStep;
    const int last = std::min(round_up(high - block, kStep), kKeys);
    const int rows = std::min(block + last, chunk.keys) - block - first;
    tame &= pack_keys(p.keys(p.k, p.prefix_k, chunk, block + first, head, rows),
                      w.keys + first / kPanel * w.chunks * kTile, last - first);
    pack_values(p.keys(p.v, p.prefix_v, chunk, block + first, head, rows),
                w.values + first / kStep * 2 * w.chunks * kTile, last - first);
    Strip group[kTogether];
    int count = 0;
    for (int index = 0; index < strips; ++index) {
      const Strip strip = strip_of(p, chunk, index, strips_per_head, block);
      if (strip.first < strip.last) {
        score(w, queries_of(w, rows_of(p.q, index), index), strip);
        hide(p, strip, block, chunk.keys, w.scores);
        weigh(w, strip, p.scale, tame, w.weights + count * kSteps * kTile, prefetch, lines);
        group[count++] = strip;
      }
      prefetch.advance(lines * kStrip / 2);
      if (count < kTogether && index + 1 < strips) continue;
      gather(w, group, count);
      for (int i = 0; i < count; ++i) {
        if (group[i].ended) finish(w, group[i].place, rows_of(p.out, group[i].index));
      }
      count = 0;
    }
  }
}

void attend_in_tiles(const Problem& p, const Kernels&, const Piece& piece, const Piece* upcoming) {
  Prefetch prefetch = upcoming == nullptr ? Prefetch() : prefetch_of(p, *upcoming);
  const int64_t rows = static_cast<int64_t>(piece.chunk.rows) * p.groups * (piece.end_head - piece.first_head);
  const int64_t lines = (prefetch.lines() + rows - 1) / rows;
  for (int head = piece.first_head; head < piece.end_head; ++head) {
    attend_head(p, piece.chunk, head, prefetch, lines);
  }
}

}  // namespace

const Kernels bfloat16_amx = {attend_in_tiles, enter, leave};

}  // namespace embedmux::attention

#endif
