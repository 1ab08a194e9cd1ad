// bfloat16 attention with AMX. A strip's scores against a block of keys stay in the first cache level between the two
// products.
#include "attention_amx_tiles.h"

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
EMBEDMUX_AMX void score_panels(const Cell* queries, const Cell* keys, int chunks, float* scores) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Panels == 4) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int c = 0; c < chunks; ++c) {
    const Cell* right = keys + c * kTile;
    const int panel = chunks * kTile;
    _tile_loadd(4, queries + c * kTile, kTileBytes);
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

// The scores of a strip, four panels at a time: between rows of the strip before it, whose softmax keeps the vector
// units busy while the tiles wait for each other.
class Scoring {
 public:
  Scoring(const Workspace& w, const Strip& strip, float* scores)
      : w_(w), strip_(strip), scores_(scores), panel_(strip.first / kPanel) {}

  void advance() {
    const int left = strip_.last / kPanel - panel_;
    if (left <= 0) return;
    const Cell* queries = w_.queries + strip_.index * w_.chunks * kTile;
    const Cell* keys = w_.keys + panel_ * w_.chunks * kTile;
    if (left >= 4) {
      score_panels<4>(queries, keys, w_.chunks, scores_ + panel_ * kTile);
    } else {
      score_panels<2>(queries, keys, w_.chunks, scores_ + panel_ * kTile);
    }
    panel_ += 4;
  }

  void finish() {
    while (panel_ < strip_.last / kPanel) advance();
  }

 private:
  const Workspace& w_;
  const Strip& strip_;
  float* scores_;
  int panel_;
};

// 2^x for a weight that is rounded to bfloat16 next: relative error 3.3e-4, exact at whole x, so that the largest
// weight is 1. 0 for -inf and below the range; NaN stays NaN.
EMBEDMUX_AMX inline __m512 exp2_weight(__m512 x) {
  const __m512 rest = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 value = _mm512_fmadd_ps(_mm512_set1_ps(0.0866486979F), rest, _mm512_set1_ps(0.2146019173F));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.6987493848F));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(1.0F));
  return _mm512_scalef_ps(value, x);  // by 2^floor(x)
}

// Overwrites the scores of keys that a row must not see.
EMBEDMUX_AMX void hide(const Problem& p, const Strip& strip, int block, int length, float* scores) {
  if (p.low(strip.position + strip.rows - 1) <= block + strip.first &&
      p.high(strip.position, length) >= block + strip.last) {
    return;
  }
  const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
  for (int r = 0; r < strip.rows; ++r) {
    const int low = p.low(strip.position + r) - block;
    const int high = p.high(strip.position + r, length) - block;
    float* row = scores + r * kLanes;
    for (int key = strip.first; key < std::min(low, strip.last); key += kPanel) {
      _mm512_mask_store_ps(row + key / kPanel * kTile, first_lanes(low - key), hidden);
    }
    for (int key = std::max(strip.first, high & -kPanel); key < strip.last; key += kPanel) {
      _mm512_mask_store_ps(row + key / kPanel * kTile, static_cast<__mmask16>(~first_lanes(high - key)), hidden);
    }
  }
}

// Scores -> weights; moves the strip's shifts, sums and what earlier blocks left in its output.
EMBEDMUX_AMX void weigh(const Workspace& w, const Strip& strip, float scale, const float* scores, Cell* weights,
                        Prefetch& prefetch, int64_t lines, Scoring& next) {
  const int first = strip.first / kPanel, last = strip.last / kPanel;
  float* shifts = w.shift + strip.index * kStrip;
  float* totals = w.sum + strip.index * kStrip;
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
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 old = _mm512_load_ps(shifts);
  const __m512 moved = _mm512_max_ps(_mm512_mul_ps(reduce_each<larger>(each), factor), old);
  _mm512_store_ps(shifts, moved);
  for (int r = 0; r < strip.rows; ++r) {
    prefetch.advance(lines);
    if (r % 4 == 0) next.advance();
    const __m512 shift = _mm512_set1_ps(shifts[r]);
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int panel = first; panel < last; panel += 2) {
      const float* row = scores + panel * kTile + r * kLanes;
      const __m512 one = exp2_weight(_mm512_fmsub_ps(_mm512_load_ps(row), factor, shift));
      const __m512 other = exp2_weight(_mm512_fmsub_ps(_mm512_load_ps(row + kTile), factor, shift));
      even = _mm512_add_ps(even, one);
      odd = _mm512_add_ps(odd, other);
      _mm512_store_si512(weights + panel / 2 * kTile + r * kLanes, (__m512i)_mm512_cvtne2ps_pbh(other, one));
    }
    each[r] = _mm512_add_ps(even, odd);
  }
  const __m512 decay = exp2_lanes<5>(_mm512_sub_ps(old, moved));
  _mm512_store_ps(totals, _mm512_fmadd_ps(_mm512_load_ps(totals), decay, reduce_each<add>(each)));
  if (!strip.started) return;
  alignas(64) float decays[kLanes];
  _mm512_store_ps(decays, decay);
  float* output = w.output + strip.index * 2 * w.chunks * kTile;
  for (int tile = 0; tile < 2 * w.chunks; ++tile) {
    for (int r = 0; r < strip.rows; ++r, output += kLanes) {
      _mm512_store_ps(output, _mm512_mul_ps(_mm512_load_ps(output), _mm512_set1_ps(decays[r])));
    }
    output += (kStrip - strip.rows) * kLanes;
  }
}

// Output tiles 2 c and 2 c + 1 of one or two neighbouring strips, over the keys of the first.
template <int Strips>
EMBEDMUX_AMX void gather_chunk(const Workspace& w, const Strip& strip, const Cell* weights, int c) {
  const int tiles = 2 * w.chunks;
  float* output = w.output + (strip.index * tiles + 2 * c) * kTile;
  float* next = output + tiles * kTile;
  if (strip.started) {
    _tile_loadd(0, output, kTileBytes);
    _tile_loadd(1, output + kTile, kTileBytes);
    if constexpr (Strips == 2) {
      _tile_loadd(2, next, kTileBytes);
      _tile_loadd(3, next + kTile, kTileBytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Strips == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (int step = strip.first / kStep; step < strip.last / kStep; ++step) {
    const Cell* values = w.values + (step * tiles + 2 * c) * kTile;
    _tile_loadd(4, weights + step * kTile, kTileBytes);
    _tile_loadd(6, values, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, values + kTile, kTileBytes);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (Strips == 2) {
      _tile_loadd(5, weights + (kSteps + step) * kTile, kTileBytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, output, kTileBytes);
  _tile_stored(1, output + kTile, kTileBytes);
  if constexpr (Strips == 2) {
    _tile_stored(2, next, kTileBytes);
    _tile_stored(3, next + kTile, kTileBytes);
  }
}

void gather(const Workspace& w, const Strip* strips, int count) {
  const bool together = count == 2 && strips[1].index == strips[0].index + 1 && strips[0].first == strips[1].first &&
                        strips[0].last == strips[1].last && strips[0].started == strips[1].started;
  for (int c = 0; c < w.chunks; ++c) {
    if (together) {
      gather_chunk<2>(w, strips[0], w.weights, c);
    } else {
      for (int i = 0; i < count; ++i) gather_chunk<1>(w, strips[i], w.weights + i * kSteps * kTile, c);
    }
  }
}

// The rows of the piece, of at most one block of its keys.
Prefetch prefetch_of(const Problem& p, const Piece& piece) {
  Prefetch prefetch;
  const Chunk& chunk = piece.chunk;
  const int64_t bytes = p.depth * p.q.element_size * (piece.end_head - piece.first_head);
  const int low = std::max(p.low(chunk.first), chunk.prefix);
  const int keys = std::min(p.high(chunk.first + chunk.rows - 1, chunk.length) - low, kKeys);
  prefetch.add(p.k, chunk.own + low, piece.first_head, keys, bytes);
  prefetch.add(p.v, chunk.own + low, piece.first_head, keys, bytes);
  prefetch.add(p.q, chunk.own + chunk.first, piece.first_head * p.groups, chunk.rows, bytes * p.groups);
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
  for (int index = 0; index < strips; ++index) {
    pack_queries(rows_of(p.q, index), w.queries + index * w.chunks * kTile);
  }
  std::fill_n(w.shift, strips * kStrip, kNoKey);
  std::fill_n(w.sum, strips * kStrip, 0.0F);

  const int low = p.low(chunk.first);
  const int high = p.high(chunk.first + chunk.rows - 1, chunk.length);
  for (int block = low / kKeys * kKeys; block < high; block += kKeys) {
    const int first = std::max(low - block, 0) / kStep * kStep;
    const int last = std::min(round_up(high - block, kStep), kKeys);
    const int rows = std::min(block + last, chunk.length) - block - first;
    pack_keys(p.keys(p.k, p.prefix_k, chunk, block + first, head, rows), w.keys + first / kPanel * w.chunks * kTile,
              last - first);
    pack_values(p.keys(p.v, p.prefix_v, chunk, block + first, head, rows),
                w.values + first / kStep * 2 * w.chunks * kTile, last - first);
    Strip strip = strip_of(p, chunk, 0, strips_per_head, block);
    Scoring(w, strip, w.scores).finish();
    Strip group[kTogether];
    int count = 0;
    for (int index = 0; index < strips; ++index) {
      Strip after = strip_of(p, chunk, std::min(index + 1, strips - 1), strips_per_head, block);
      if (index + 1 == strips) after.last = after.first;
      float* scores = w.scores + index % 2 * kPanels * kTile;
      Scoring next(w, after, w.scores + (index + 1) % 2 * kPanels * kTile);
      if (strip.first < strip.last) {
        hide(p, strip, block, chunk.length, scores);
        weigh(w, strip, p.scale, scores, w.weights + count * kSteps * kTile, prefetch, lines, next);
        group[count++] = strip;
      }
      next.finish();
      strip = after;
      if (count == kTogether || index + 1 == strips) {
        gather(w, group, count);
        count = 0;
      }
    }
  }
  for (int index = 0; index < strips; ++index) finish(w, index, rows_of(p.out, index));
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
