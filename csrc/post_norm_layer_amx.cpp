// A post-norm layer in one go. Sequences do not see each other, so a thread takes a chunk of them through the whole
// layer: what it computes stays in its second-level cache, and no thread waits for another before the layer's end. A
// batch too small for chunks is shared: the threads split each step, and wait behind it.
//
// Every step is the kernel of the op that it replaces, and no row's bits depend on how the work is cut.
#include <algorithm>
#include <array>
#include <atomic>

#include "attention_problem.h"
#include "gemm_amx.h"
#include "norm_pairs.h"
#include "post_norm_layer.h"
#include "simd.h"

namespace embedmux {

#ifdef EMBEDMUX_X86

namespace {

constexpr int64_t kChunkRows = 256;      // what a row leaves between the steps is 15 KiB for a hidden size of 384
constexpr int64_t kLeastChunkRows = 48;  // below it the weights of the layer are what takes time
constexpr double kMostUneven = 1.15;     // of the busiest thread's rows over the mean
constexpr int kAttentionRows = 256;      // query rows that share one packing of keys, as in attention.cpp

// What stands between the steps, from the first row of the work on.
struct Buffers {
  uint16_t *qkv, *context, *sums, *states;  // [rows, 3 hidden], [rows, hidden] each
  uint16_t* middle;                         // [rows, inner] as row tiles

  static int64_t elements(const PostNormLayer& layer, int64_t rows) {
    return round_up(rows, kBlockRows) * (6 * layer.hidden + layer.inner);
  }
  Buffers(const PostNormLayer& layer, int64_t rows, uint16_t* memory) {
    const int64_t each = round_up(rows, kBlockRows) * layer.hidden;
    middle = memory;  // first, since tiles are aligned
    qkv = middle + round_up(rows, kBlockRows) * layer.inner;
    context = qkv + 3 * each, sums = context + each, states = sums + each;
  }
};

// One of the layer's linears; the weights of the one behind it are called from memory meanwhile.
void run_linear(const std::array<Product, kLinears>& products, int index, int64_t first_row, int64_t rows,
                AmxRows given, const Team& team) {
  const Product &product = products[index], &next = products[(index + 1) % kLinears];
  const LoraCall& call = product.call;
  const TaskGrid grid = cut_amx_tasks(product, rows, team.size);
  const int64_t first = team.first(grid.num_tasks()), last = team.last(grid.num_tasks());
  for (int64_t place = first; place < last; ++place) {
    AmxTask task = amx_task(grid, place, rows);
    AmxRows own{given.x + task.first_row * call.inner, given.x_in_tiles, given.output + task.first_row * call.columns,
                given.output_in_tiles};
    // Behind the last linear stands the first one again, of the thread's next chunk.
    if (place + 1 == last && (team.size == 1 || index + 1 < kLinears)) {
      const TaskGrid others = cut_amx_tasks(next, rows, team.size);
      const AmxTask upcoming = amx_task(others, team.first(others.num_tasks()), rows);
      own.upcoming = next.packed + upcoming.first_place * next.panel_elements;
      own.upcoming_elements = (upcoming.last_place - upcoming.first_place) * next.panel_elements;
    }
    task.first_row += first_row;
    task.last_row += first_row;
    run_amx_task(product, task, own);
  }
}

void run_attention(const PostNormLayer& layer, int64_t first_sequence, int64_t last_sequence, const Buffers& buffers,
                   const Team& team) {
  const int64_t depth = layer.hidden / layer.heads;
  const auto view = [&](uint16_t* start, int64_t stride) {
    return attention::View{reinterpret_cast<char*>(start), 2, stride, depth};
  };
  constexpr double kLog2E = 1.4426950408889634;
  const attention::Problem problem{view(buffers.qkv, 3 * layer.hidden),
                                   view(buffers.qkv + layer.hidden, 3 * layer.hidden),
                                   view(buffers.qkv + 2 * layer.hidden, 3 * layer.hidden),
                                   view(buffers.context, layer.hidden),
                                   {},
                                   {},
                                   static_cast<int>(layer.heads),
                                   1,
                                   static_cast<int>(depth),
                                   false,
                                   -1,
                                   static_cast<float>(layer.scale * kLog2E)};
  const int64_t origin = layer.offsets[first_sequence];
  const int first_head = static_cast<int>(team.first(layer.heads)), end_head = static_cast<int>(team.last(layer.heads));
  if (first_head == end_head) return;
  for (int64_t s = first_sequence; s < last_sequence; ++s) {
    const int length = layer.offsets[s + 1] - layer.offsets[s];
    attention::Chunk chunk{layer.offsets[s] - origin, 0, 0, length, length, 0, 0};
    for (chunk.first = 0; chunk.first < length; chunk.first += kAttentionRows) {
      chunk.rows = std::min(kAttentionRows, length - chunk.first);
      attention::bfloat16_amx.attend(problem, attention::bfloat16_amx, {chunk, first_head, end_head}, nullptr);
    }
  }
}

void run_norm(const PostNormLayer& layer, int norm, int64_t rows, const uint16_t* x, const uint16_t* residual,
              uint16_t* out, const Team& team) {
  static thread_local Scratch<float> scratch;
  const PairedRows work{x,
                        residual,
                        layer.norms[norm].weight.data(),
                        layer.norms[norm].bias.data(),
                        out,
                        layer.hidden,
                        layer.hidden,
                        layer.hidden,
                        static_cast<float>(layer.eps)};
  norm_pairs(work, team.first(rows), team.last(rows), scratch.reserve(2 * layer.hidden));
}

// Sequences [first, last) through the layer, on a thread that holds the tiles. x and out count from the batch's start.
void run_sequences(const PostNormLayer& layer, const std::array<Product, kLinears>& products, int64_t first,
                   int64_t last, const uint16_t* x, uint16_t* out, const Buffers& buffers, const Team& team) {
  const int64_t row = layer.offsets[first], rows = layer.offsets[last] - row;
  x += row * layer.hidden;
  out += row * layer.hidden;
  run_linear(products, 0, row, rows, {x, false, buffers.qkv, false}, team);
  team.wait();
  run_attention(layer, first, last, buffers, team);
  team.wait();
  run_linear(products, 1, row, rows, {buffers.context, false, buffers.sums, false}, team);
  team.wait();
  run_norm(layer, 0, rows, buffers.sums, x, buffers.states, team);
  team.wait();
  run_linear(products, 2, row, rows, {buffers.states, false, buffers.middle, true}, team);
  team.wait();
  run_linear(products, 3, row, rows, {buffers.middle, true, buffers.sums, false}, team);
  team.wait();
  run_norm(layer, 1, rows, buffers.sums, buffers.states, out, team);
}

struct Chunk {
  int64_t first, last;  // sequences, all of one weight set
  int64_t rows;
};

int64_t end_of_set(const PostNormLayer& layer, int64_t first) {
  int64_t last = first + 1;
  while (last < layer.sequences && layer.sets[last] == layer.sets[first]) ++last;
  return last;
}

// Runs of whole sequences of about the same number of rows, in their order: threads that work side by side then read
// the same weights. None if they would keep the threads unevenly busy.
std::vector<Chunk> cut_chunks(const PostNormLayer& layer, int64_t threads) {
  const int64_t count = round_up(divide_up(layer.rows, kChunkRows), threads);
  std::vector<Chunk> chunks;
  if (layer.rows < count * kLeastChunkRows) return chunks;
  for (int64_t first = 0, last = 0; first < layer.sequences; first = last) {
    const int64_t end = layer.offsets[first] + divide_up(layer.rows, count), border = end_of_set(layer, first);
    do {
      ++last;  // as long as that brings its end nearer
    } while (last < border && (layer.offsets[last] + layer.offsets[last + 1]) / 2 <= end);
    chunks.push_back({first, last, layer.offsets[last] - layer.offsets[first]});
  }
  std::vector<int64_t> busy(threads);
  for (const Chunk& chunk : chunks) *std::min_element(busy.begin(), busy.end()) += chunk.rows;
  const double most = static_cast<double>(*std::max_element(busy.begin(), busy.end()));
  if (most * static_cast<double>(threads) > kMostUneven * static_cast<double>(layer.rows)) chunks.clear();
  return chunks;
}

}  // namespace

bool can_fuse_post_norm_layer(const at::Tensor& x, int64_t hidden, int64_t inner, int64_t heads) {
  const int64_t depth = hidden / heads;
  return isa() == Isa::amx && x.scalar_type() == at::kBFloat16 && hidden % kTileDepth == 0 &&
         inner % kPanelColumns == 0 && depth % 8 == 0 && depth >= 16 && depth <= 256;
}

void fused_post_norm_layer(const PostNormLayer& layer, const at::Tensor& x, const at::Tensor& out) {
  if (layer.rows == 0) return;
  const auto* from = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
  auto* to = reinterpret_cast<uint16_t*>(out.mutable_data_ptr<at::BFloat16>());
  std::vector<std::array<Product, kLinears>> products;
  for (const std::array<at::Tensor, kLinears>& packed : layer.packed) {
    const auto product = [&](int index) { return make_product(layer.calls[index], packed[index], nullptr); };
    products.push_back({product(0), product(1), product(2), product(3)});
  }
  const int64_t threads = at::get_num_threads();
  const std::vector<Chunk> chunks = cut_chunks(layer, threads);
  if (chunks.empty()) {
    static thread_local Scratch<uint16_t> memory;
    const Buffers buffers(layer, layer.rows, memory.reserve(Buffers::elements(layer, layer.rows)));
    return run_team(threads, [&](const Team& team) {
      const HeldTiles tiles;
      for (int64_t first = 0, last; first < layer.sequences; first = last) {
        last = end_of_set(layer, first);
        run_sequences(layer, products[layer.sets[first]], first, last, from, to, buffers, team);
        team.wait();  // the buffers are free again
      }
    });
  }
  std::atomic<size_t> next{0};
  run_team(threads, [&](const Team&) {
    static thread_local Scratch<uint16_t> memory;
    const HeldTiles tiles;
    for (size_t index = next++; index < chunks.size(); index = next++) {
      const auto [first, last, rows] = chunks[index];
      const Buffers buffers(layer, rows, memory.reserve(Buffers::elements(layer, rows)));
      run_sequences(layer, products[layer.sets[first]], first, last, from, to, buffers, {0, 1, nullptr});
    }
  });
}

#else

bool can_fuse_post_norm_layer(const at::Tensor&, int64_t, int64_t, int64_t) { return false; }

void fused_post_norm_layer(const PostNormLayer&, const at::Tensor&, const at::Tensor&) {}

#endif

}  // namespace embedmux
