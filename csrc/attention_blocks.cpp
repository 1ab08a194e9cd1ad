// The walk over key blocks with an online softmax. A row's result is a function of its own sequence only: key blocks,
// key ranges and row tiles are all counted from the sequence's start, and whichever thread runs a piece of work does
// the same arithmetic in the same order.
#include <vector>

#include "attention_problem.h"

namespace embedmux::attention {
namespace {

// Tiles that go through each step side by side, so that what one step has just written is not read at once.
constexpr int kTogether = 2;

// One thread's memory: its size depends on D and the head grouping alone, never on a sequence's length.
class Workspace {
 public:
  Workspace(const Problem& problem, const Kernels& kernels, int tiles)
      : depth_cells(round_up(problem.depth / kernels.elements_per_cell, kCellStep)),
        key_cells(kKeys / kernels.elements_per_cell),
        width(round_up(problem.depth, kLanes)) {
    const int rows = tiles * kRows;
    const int sizes[] = {rows * depth_cells,
                         kKeys * depth_cells,
                         width * key_cells,
                         kTogether * kRows * kKeys,
                         kTogether * kRows * key_cells,
                         rows * width,
                         rows,
                         rows};
    int64_t total = kLanes;
    for (const int size : sizes) total += round_up(size, kLanes);
    static thread_local std::vector<Cell> memory;
    if (static_cast<int64_t>(memory.size()) < total) memory.assign(total, 0);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    Cell* next = memory.data() + (64 - address % 64) % 64 / sizeof(Cell);
    Cell** const parts[] = {&queries, &keys, &values, &scores_, &weights_, &output_, &shift_, &sum_};
    for (int part = 0; part < 8; ++part) {
      *parts[part] = next;
      next += round_up(sizes[part], kLanes);
    }
  }

  const int depth_cells, key_cells, width;
  Cell *queries, *keys, *values;
  float* scores(int place) const { return reinterpret_cast<float*>(scores_) + place * kRows * kKeys; }
  Cell* weights(int place) const { return weights_ + place * kRows * key_cells; }
  float* output(int tile) const { return reinterpret_cast<float*>(output_) + tile * kRows * width; }
  float* shift(int tile) const { return reinterpret_cast<float*>(shift_) + tile * kRows; }
  float* sum(int tile) const { return reinterpret_cast<float*>(sum_) + tile * kRows; }

 private:
  Cell *scores_, *weights_, *output_, *shift_, *sum_;
};

void pack_block(const Problem& p, const Kernels& kernels, const Workspace& w, const Chunk& chunk, int head, int first,
                int last) {
  const int block = first / kKeys * kKeys;
  const int rows = std::min(last, chunk.keys) - first;
  const int key_stride = w.depth_cells * kLanes;
  kernels.pack_keys(p.keys(p.k, p.prefix_k, chunk, first, head, rows), w.keys + (first - block) / kLanes * key_stride,
                    key_stride, last - first);
  kernels.pack_values(p.keys(p.v, p.prefix_v, chunk, first, head, rows),
                      w.values + (first - block) / kernels.elements_per_cell * kLanes, w.key_cells * kLanes,
                      last - first);
}

// One tile of query rows against one block: keys [first, last) of the block, none if the tile sees none of it.
struct Step {
  int tile, position, rows, block, first, last;
  bool started;  // the tile has met an earlier block

  Step(const Problem& p, int key_step, const Chunk& chunk, int tile, int tiles_per_head, int block)
      : tile(tile),
        position(chunk.first + tile % tiles_per_head * kRows),
        rows(std::min(kRows, chunk.first + chunk.rows - position)),
        block(block),
        first(std::max(p.low(position) - block, 0) / key_step * key_step),
        last(std::min(round_up(p.high(position + rows - 1, chunk.keys) - block, key_step), kKeys)),
        started(p.low(position) < block) {}
};

void score(const Kernels& kernels, const Workspace& w, const Step& step, int place) {
  if (step.first >= step.last) return;
  const int key_stride = w.depth_cells * kLanes;
  kernels.multiply({w.queries + step.tile * kRows * w.depth_cells, w.depth_cells,
                    w.keys + step.first / kLanes * key_stride, key_stride, (step.last - step.first) / kLanes,
                    w.depth_cells, step.rows, false, w.scores(place) + step.first, kKeys});
}

void weigh(const Problem& p, const Kernels& kernels, const Workspace& w, const Chunk& chunk, const Step& step,
           int place) {
  if (step.first >= step.last) return;
  int low[kRows], high[kRows];
  for (int r = 0; r < step.rows; ++r) {
    low[r] = p.low(step.position + r) - step.block;
    high[r] = p.high(step.position + r, chunk.keys) - step.block;
  }
  kernels.softmax({w.scores(place), w.weights(place), w.key_cells, step.rows, step.first, step.last, low, high, p.scale,
                   step.started, w.shift(step.tile), w.sum(step.tile), w.output(step.tile), w.width});
}

void gather(const Kernels& kernels, const Workspace& w, const Step& step, int place) {
  if (step.first >= step.last) return;
  const int first_cell = step.first / kernels.elements_per_cell;
  kernels.multiply({w.weights(place) + first_cell, w.key_cells, w.values + first_cell * kLanes, w.key_cells * kLanes,
                    w.width / kLanes, (step.last - step.first) / kernels.elements_per_cell, step.rows, step.started,
                    w.output(step.tile), w.width});
}

void attend_head(const Problem& p, const Kernels& kernels, const Chunk& chunk, int head) {
  const int tiles_per_head = (chunk.rows + kRows - 1) / kRows;
  const int tiles = tiles_per_head * p.groups;
  const Workspace w(p, kernels, tiles);
  const auto rows_of = [&](const View& view, int tile) {
    const int start = tile % tiles_per_head * kRows;
    return p.queries(view, chunk, chunk.first + start, head * p.groups + tile / tiles_per_head,
                     std::min(kRows, chunk.rows - start));
  };
  for (int tile = 0; tile < tiles; ++tile) {
    kernels.pack_rows(rows_of(p.q, tile), w.queries + tile * kRows * w.depth_cells, w.depth_cells);
  }
  std::fill_n(w.shift(0), tiles * kRows, kNoKey);
  std::fill_n(w.sum(0), tiles * kRows, 0.0F);

  const int low = p.low(chunk.first);
  const int high = p.high(chunk.first + chunk.rows - 1, chunk.keys);
  const int key_step = kernels.key_step();
  for (int block = low / kKeys * kKeys; block < high; block += kKeys) {
    const int first = std::max(low, block) / key_step * key_step;
    const int last = std::min(round_up(high, key_step), block + kKeys);
    pack_block(p, kernels, w, chunk, head, first, last);
    for (int tile = 0; tile < tiles; tile += kTogether) {
      const Step steps[kTogether] = {{p, key_step, chunk, tile, tiles_per_head, block},
                                     {p, key_step, chunk, std::min(tile + 1, tiles - 1), tiles_per_head, block}};
      const int count = std::min(kTogether, tiles - tile);
      for (int i = 0; i < count; ++i) score(kernels, w, steps[i], i);
      for (int i = 0; i < count; ++i) weigh(p, kernels, w, chunk, steps[i], i);
      for (int i = 0; i < count; ++i) gather(kernels, w, steps[i], i);
    }
  }
  for (int tile = 0; tile < tiles; ++tile) {
    kernels.finish(w.output(tile), w.width, w.sum(tile), rows_of(p.out, tile));
  }
}

}  // namespace

void attend_in_blocks(const Problem& problem, const Kernels& kernels, const Piece& piece, const Piece*) {
  for (int head = piece.first_head; head < piece.end_head; ++head) attend_head(problem, kernels, piece.chunk, head);
}

}  // namespace embedmux::attention
