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
// start of the prefix, if there is one; the row of position p is own + p, and p < prefix is in the prefix tensors. Only
// positions below `keys` are keys, the others are read by nobody.
struct Chunk {
  int64_t own;           // row of q, k and v where position 0 would be
  int64_t prefix_begin;  // row of the prefix tensors where position 0 is
  int prefix, length;    // positions of the prefix, positions altogether
  int keys;
  int first, rows;
};

// A chunk for the query heads of the key heads [first_head, end_head).
struct Piece {
  const Chunk& chunk;
  int first_head, end_head;
};

struct Problem {
  View q, k, v, out, prefix_k, prefix_v;
  int heads, groups, depth;  // key and value heads, query heads for each of them, D
  bool causal;
  int window;
  float scale;  // times log2(e)

  // Whether every position may see all keys.
  bool sees_all() const { return !causal && window < 0; }
  // The keys [low, high) that position `i` of a sequence may see.
  int low(int i) const { return window < 0 ? 0 : std::max(0, i - window); }
  int high(int i, int keys) const {
    const int64_t end = window < 0 ? keys : static_cast<int64_t>(i) + window + 1;
    return static_cast<int>(std::min<int64_t>(causal ? std::min<int64_t>(end, i + 1) : end, keys));
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

// Brings the rows that the thread's next piece of work reads and writes into the cache, a few lines at a time while the
// present piece computes: heads lie far apart in memory, and the processor does not foresee such strides. Many at once
// would wait for each other.
class Prefetch {
 public:
  void add(const View& view, int64_t token, int head, int64_t rows, int64_t row_bytes) {
    if (rows <= 0) return;
    runs_[count_++] = {view.at(token, head), view.token_stride * view.element_size, rows, row_bytes};
    lines_ += rows * ((row_bytes + kLine - 1) / kLine);
  }

  int64_t lines() const { return lines_; }

  void advance(int64_t lines) {
    for (; lines > 0 && run_ < count_; --lines) {
      Run& run = runs_[run_];
      __builtin_prefetch(run.data + byte_, 0, 2);
      byte_ += kLine;
      if (byte_ < run.row_bytes) continue;
      byte_ = 0;
      run.data += run.stride;
      if (--run.rows == 0) {
        std::copy(runs_ + run_ + 1, runs_ + count_, runs_ + run_);
        --count_;
      } else {
        ++run_;
      }
      if (run_ >= count_) run_ = 0;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Run {
    const char* data;
    int64_t stride, rows, row_bytes;
  };
  Run runs_[4];
  int count_ = 0, run_ = 0;
  int64_t byte_ = 0, lines_ = 0;
};

}  // namespace embedmux::attention
