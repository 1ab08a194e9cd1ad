// One call of attention as the walks see it: where the tensors lie, which keys a position sees, the pieces of work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention.h"

namespace embedmux::attention {

// A [T, heads, D] tensor; strides in elements.
struct View {
  char* data;
  int64_t element_size, token_stride, head_stride;

  char* at(int64_t token, int64_t head) const {
    return data + (token * token_stride + head * head_stride) * element_size;
  }
};

// Query positions [first, first + rows) of one sequence, for all query heads of one key head. Positions count from the
// start of the prefix, if there is one; the row of position p is own + p, and p < prefix is in the prefix tensors.
struct Chunk {
  int64_t own;           // row of q, k and v where position 0 would be
  int64_t prefix_begin;  // row of the prefix tensors where position 0 is
  int prefix, length;    // positions of the prefix, positions altogether
  int first, rows;
};

struct Problem {
  View q, k, v, out, prefix_k, prefix_v;
  int heads, groups, depth;  // key and value heads, query heads for each of them, D
  bool causal;
  int window;
  float scale;  // times log2(e)

  // The keys [low, high) that position `i` of a sequence may see.
  int low(int i) const { return window < 0 ? 0 : std::max(0, i - window); }
  int high(int i, int length) const {
    const int64_t end = window < 0 ? length : static_cast<int64_t>(i) + window + 1;
    return static_cast<int>(std::min<int64_t>(causal ? std::min<int64_t>(end, i + 1) : end, length));
  }

  // `rows` rows of q or out from a position on.
  Source queries(const View& view, const Chunk& chunk, int position, int head, int rows) const {
    return {view.at(chunk.own + position, head), view.token_stride, rows, depth};
  }

  // `rows` keys or values from a position on: the prefix's, then the sequence's own.
  Source keys(const View& own, const View& prefix, const Chunk& chunk, int position, int head, int rows) const {
    if (position >= chunk.prefix) return queries(own, chunk, position, head, rows);
    return {prefix.at(chunk.prefix_begin + position, head), prefix.token_stride, rows, depth, chunk.prefix - position,
            own.at(chunk.own + chunk.prefix, head),         own.token_stride};
  }
};

}  // namespace embedmux::attention
