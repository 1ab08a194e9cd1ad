// embedmux::attention on the CPU: checks, the list of work, and the walk over key blocks with an online softmax.
// A row's result is a function of its own sequence only: key blocks, key ranges and row tiles are all counted from the
// sequence's start, and whichever thread runs a piece of work does the same arithmetic in the same order.
#include "attention.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "simd.h"
#include "tensors.h"

namespace embedmux {
namespace {

using attention::Cell;
using attention::Kernels;
using attention::kKeys;
using attention::kLanes;
using attention::kRows;
using attention::round_up;
using attention::Source;

constexpr int kChunkRows = 256;  // query rows (of all heads of a group) that share one packing of keys
// Tiles that go through each step side by side, so that what one step has just written is not read at once.
constexpr int kTogether = 2;
constexpr int64_t kScoresPerThread = 60000;  // less than this is done before a second thread has woken up

// A [T, heads, D] tensor; strides in elements.
struct View {
  char* data;
  int64_t element_size, token_stride, head_stride;
  int depth;

  explicit View(const at::Tensor& tensor)
      : data(static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()))),
        element_size(tensor.element_size()),
        token_stride(tensor.stride(0)),
        head_stride(tensor.stride(1)),
        depth(static_cast<int>(tensor.size(2))) {}

  Source rows(int64_t token, int64_t head, int count) const {
    return {data + (token * token_stride + head * head_stride) * element_size, token_stride, count, depth};
  }
};

struct Problem {
  View q, k, v, out;
  const int32_t* offsets;
  int heads, groups, depth;  // key and value heads, query heads for each of them, D
  bool causal;
  int window;
  float scale;

  // The keys [low, high) that position `i` of a sequence may see.
  int low(int i) const { return window < 0 ? 0 : std::max(0, i - window); }
  int high(int i, int length) const {
    const int64_t end = window < 0 ? length : static_cast<int64_t>(i) + window + 1;
    return static_cast<int>(std::min<int64_t>(causal ? std::min<int64_t>(end, i + 1) : end, length));
  }
};

// Query positions [first, first + rows) of one sequence, for all query heads of one key head.
struct Chunk {
  int begin, length;  // the sequence
  int first, rows;
};

// One thread's memory: its size depends on D and the head grouping alone, never on a sequence's length.
class Workspace {
 public:
  Workspace(const Problem& problem, const Kernels& kernels, int chunk_tiles)
      : depth_cells(round_up(problem.depth / kernels.elements_per_cell, attention::kCellStep)),
        key_cells(kKeys / kernels.elements_per_cell),
        width(round_up(problem.depth, kLanes)) {
    const int rows = chunk_tiles * problem.groups * kRows;
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
  const int rows = std::min(last, chunk.length) - first;
  const int key_stride = w.depth_cells * kLanes;
  kernels.pack_keys(p.k.rows(chunk.begin + first, head, rows), w.keys + (first - block) / kLanes * key_stride,
                    key_stride, last - first);
  kernels.pack_values(p.v.rows(chunk.begin + first, head, rows),
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
        last(std::min(round_up(p.high(position + rows - 1, chunk.length) - block, key_step), kKeys)),
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
    high[r] = p.high(step.position + r, chunk.length) - step.block;
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

void attend_chunk(const Problem& p, const Kernels& kernels, const Workspace& w, const Chunk& chunk, int head) {
  const int tiles_per_head = (chunk.rows + kRows - 1) / kRows;
  const int tiles = tiles_per_head * p.groups;
  const auto rows_of = [&](const View& view, int tile) {
    const int start = tile % tiles_per_head * kRows;
    return view.rows(chunk.begin + chunk.first + start, head * p.groups + tile / tiles_per_head,
                     std::min(kRows, chunk.rows - start));
  };
  for (int tile = 0; tile < tiles; ++tile) {
    kernels.pack_rows(rows_of(p.q, tile), w.queries + tile * kRows * w.depth_cells, w.depth_cells);
  }
  std::fill_n(w.shift(0), tiles * kRows, attention::kNoKey);
  std::fill_n(w.sum(0), tiles * kRows, 0.0F);

  const int low = p.low(chunk.first);
  const int high = p.high(chunk.first + chunk.rows - 1, chunk.length);
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

const Kernels& choose_kernels(bool is_bfloat16) {
  switch (isa()) {
#ifdef EMBEDMUX_X86
    case Isa::amx:
      return is_bfloat16 ? attention::bfloat16_amx : attention::float32_avx512;
    case Isa::avx512_bf16:
      return is_bfloat16 ? attention::bfloat16_avx512_bf16 : attention::float32_avx512;
    case Isa::avx512:
      return is_bfloat16 ? attention::bfloat16_avx512 : attention::float32_avx512;
    case Isa::avx2:
      return is_bfloat16 ? attention::bfloat16_avx2 : attention::float32_avx2;
#endif
    default:
      return is_bfloat16 ? attention::bfloat16_baseline : attention::float32_baseline;
  }
}

void check_arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                     int64_t window, double scale) {
  check_rank(q, "q", 3);
  TORCH_CHECK(q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16, "q must be float32 or bfloat16, got ",
              q.scalar_type());
  const int64_t depth = q.size(2);
  TORCH_CHECK(depth % 8 == 0 && depth >= 16 && depth <= 256,
              "q must have a head size that is a multiple of 8 from 16 to 256, got ", depth);
  for (const auto& [tensor, name] : {std::pair(k, "k"), std::pair(v, "v")}) {
    check_rank(tensor, name, 3);
    check_dtype(tensor, name, q.scalar_type());
    check_size(tensor, name, 0, q.size(0));
    check_size(tensor, name, 1, k.size(1));
    check_size(tensor, name, 2, depth);
  }
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "q must have a multiple of the ", k.size(1),
              " heads of k and v, got ", q.size(1));
  for (const auto& [tensor, name] : {std::pair(q, "q"), std::pair(k, "k"), std::pair(v, "v")}) {
    TORCH_CHECK(tensor.stride(2) == 1, name, " must be contiguous in its last dimension, got strides ",
                tensor.strides());
  }
  check_offsets(offsets, "offsets", q.size(0));
  TORCH_CHECK(window >= -1, "window must be -1 (none) or a half-window of at least 0, got ", window);
  TORCH_CHECK(scale > 0 && scale < 1e6, "scale must be above 0 and below 1e6, got ", scale);
}

at::Tensor attention_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& offsets,
                         bool causal, int64_t window, double scale) {
  check_arguments(q, k, v, offsets, window, scale);
  at::Tensor out = at::empty(q.sizes(), q.options());
  if (out.numel() == 0) return out;
  constexpr double kLog2E = 1.4426950408889634;
  const int heads = static_cast<int>(k.size(1));
  const Problem problem{View(q),
                        View(k),
                        View(v),
                        View(out),
                        offsets.const_data_ptr<int32_t>(),
                        heads,
                        static_cast<int>(q.size(1)) / heads,
                        static_cast<int>(q.size(2)),
                        causal,
                        static_cast<int>(std::min<int64_t>(window, 1 << 30)),
                        static_cast<float>(scale * kLog2E)};
  const Kernels& kernels = choose_kernels(q.scalar_type() == at::kBFloat16);

  const int chunk_tiles = std::max(1, kChunkRows / kRows / problem.groups);
  std::vector<Chunk> chunks;
  int64_t scores = 0;
  for (int64_t s = 0; s + 1 < offsets.numel(); ++s) {
    const int begin = problem.offsets[s];
    const int length = problem.offsets[s + 1] - begin;
    scores += static_cast<int64_t>(length) * length * q.size(1);
    for (int first = 0; first < length; first += chunk_tiles * kRows) {
      chunks.push_back({begin, length, first, std::min(chunk_tiles * kRows, length - first)});
    }
  }

  // Pieces differ in size by orders of magnitude, so the threads take them one by one.
  const int64_t pieces = static_cast<int64_t>(chunks.size()) * heads;
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const Workspace workspace(problem, kernels, chunk_tiles);
    kernels.enter();
    for (int64_t piece = next++; piece < pieces; piece = next++) {
      attend_chunk(problem, kernels, workspace, chunks[piece / heads], static_cast<int>(piece % heads));
    }
    kernels.leave();
  };
  const int64_t threads = std::min<int64_t>({at::get_num_threads(), pieces, 1 + scores / kScoresPerThread});
  at::parallel_for(0, threads, 1, work);
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("attention", &embedmux::attention_cpu); }
