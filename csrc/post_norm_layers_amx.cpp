// Post-norm layers in one go. Sequences do not see each other, so a thread takes a chunk of them through all layers:
// what it computes stays in its second-level cache, and no thread waits for another. A batch too small for chunks is
// shared: the threads split each step, and wait behind it.
//
// Every step is the kernel of the op that it replaces, and no row's bits depend on how the work is cut.
#include <algorithm>
#include <array>
#include <atomic>

#include "attention_problem.h"
#include "gemm_amx.h"
#include "norm_pairs.h"
#include "post_norm_layers.h"
#include "simd.h"

namespace embedmux {

#ifdef EMBEDMUX_X86

namespace {

constexpr int64_t kChunkRows = 256;      // what a row leaves between the steps is 15 KiB for a hidden size of 384
constexpr int64_t kLeastChunkRows = 48;  // below it the weights of the layers are what takes time
constexpr double kMostUneven = 1.15;     // of the busiest thread's rows over the mean
constexpr int kAttentionRows = 256;      // query rows that share one packing of keys, as in attention.cpp

// What stands between the steps, from the first row of the work on.
struct Buffers {
  uint16_t *qkv, *context, *sums, *states;  // [rows, 3 hidden], [rows, hidden] each
  uint16_t* middle;                         // [rows, inner] as row tiles

  static int64_t elements(const PostNormLayers& given, int64_t rows) {
    return round_up(rows, kBlockRows) * (6 * given.hidden + given.inner);
  }
  Buffers(const PostNormLayers& given, int64_t rows, uint16_t* memory) {
    const int64_t each = round_up(rows, kBlockRows) * given.hidden;
    middle = memory;  // first, since tiles are aligned
    qkv = middle + round_up(rows, kBlockRows) * given.inner;
    context = qkv + 3 * each, sums = context + each, states = sums + each;
  }
};

using Products = std::array<Product, kLinears>;

// One of a layer's linears; the weights of `next`, the one behind it, are called from memory meanwhile.
void run_linear(const Product& product, const Product& next, int64_t first_row, int64_t rows, AmxRows given,
                const Team& team) {
  const LoraCall& call = product.call;
  const TaskGrid grid = cut_amx_tasks(product, rows, team.size);
  const int64_t first = team.first(grid.num_tasks()), last = team.last(grid.num_tasks());
  for (int64_t place = first; place < last; ++place) {
    AmxTask task = amx_task(grid, place, rows);
    AmxRows own{given.x + task.first_row * call.inner, given.x_in_tiles, given.output + task.first_row * call.columns,
                given.output_in_tiles};
    if (place + 1 == last) {
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

void run_attention(const PostNormLayers& given, int64_t first_sequence, int64_t last_sequence, const Buffers& buffers,
                   const Team& team) {
  const int64_t depth = given.hidden / given.heads;
  const auto view = [&](uint16_t* start, int64_t stride) {
    return attention::View{reinterpret_cast<char*>(start), 2, stride, depth};
  };
  constexpr double kLog2E = 1.4426950408889634;
  const attention::Problem problem{view(buffers.qkv, 3 * given.hidden),
                                   view(buffers.qkv + given.hidden, 3 * given.hidden),
                                   view(buffers.qkv + 2 * given.hidden, 3 * given.hidden),
                                   view(buffers.context, given.hidden),
                                   {},
                                   {},
                                   static_cast<int>(given.heads),
                                   1,
                                   static_cast<int>(depth),
                                   false,
                                   -1,
                                   static_cast<float>(given.scale * kLog2E)};
  const int64_t origin = given.offsets[first_sequence];
  const int first_head = static_cast<int>(team.first(given.heads)), end_head = static_cast<int>(team.last(given.heads));
  if (first_head == end_head) return;
  for (int64_t s = first_sequence; s < last_sequence; ++s) {
    const int length = given.offsets[s + 1] - given.offsets[s];
    attention::Chunk chunk{given.offsets[s] - origin, 0, 0, length, length, 0, 0};
    for (chunk.first = 0; chunk.first < length; chunk.first += kAttentionRows) {
      chunk.rows = std::min(kAttentionRows, length - chunk.first);
      attention::bfloat16_amx.attend(problem, attention::bfloat16_amx, {chunk, first_head, end_head}, nullptr);
    }
  }
}

void run_norm(const PostNormLayers& given, const LayerNormWeights& norm, int64_t rows, const uint16_t* x,
              const uint16_t* residual, uint16_t* out, const Team& team) {
  static thread_local Scratch<float> scratch;
  const PairedRows work{x,
                        residual,
                        norm.weight.data(),
                        norm.bias.data(),
                        out,
                        given.hidden,
                        given.hidden,
                        given.hidden,
                        static_cast<float>(given.eps)};
  norm_pairs(work, team.first(rows), team.last(rows), scratch.reserve(kRowsAtOnce * given.hidden));
}

// Layers, and which of them.
struct Run {
  int64_t first, last;
};

// Sequences [first, last) through the layers, on a thread that holds the tiles. x and out count from the batch's start.
void run_sequences(const PostNormLayers& given, const std::vector<Products>& products, Run layers, int64_t first,
                   int64_t last, const uint16_t* x, uint16_t* out, const Buffers& buffers, const Team& team) {
  const int64_t row = given.offsets[first], rows = given.offsets[last] - row, count = products.size();
  out += row * given.hidden;
  x = layers.first == 0 ? x + row * given.hidden : out;
  for (int64_t index = layers.first; index < layers.last; ++index) {
    const Products& own = products[index];
    const auto& norms = given.layers[index].norms;
    run_linear(own[0], own[1], row, rows, {x, false, buffers.qkv, false}, team);
    team.wait();
    run_attention(given, first, last, buffers, team);
    team.wait();
    run_linear(own[1], own[2], row, rows, {buffers.context, false, buffers.sums, false}, team);
    team.wait();
    run_norm(given, norms[0], rows, buffers.sums, x, buffers.states, team);
    team.wait();
    run_linear(own[2], own[3], row, rows, {buffers.states, false, buffers.middle, true}, team);
    team.wait();
    // Behind the last layer stands the first one again, of the thread's next chunk.
    run_linear(own[3], products[(index + 1) % count][0], row, rows, {buffers.middle, true, buffers.sums, false}, team);
    team.wait();
    run_norm(given, norms[1], rows, buffers.sums, buffers.states, out, team);
    team.wait();  // the buffers are free again
    x = out;      // a layer reads its rows no more when it writes them
  }
}

struct Chunk {
  int64_t first, last;  // sequences, all of one weight set
  int64_t rows;
};

int64_t end_of_set(const PostNormLayers& given, int64_t first) {
  int64_t last = first + 1;
  while (last < given.sequences && given.sets[last] == given.sets[first]) ++last;
  return last;
}

// Runs of whole sequences of about the same number of rows, in their order: threads that work side by side then read
// the same weights. None if they would keep the threads unevenly busy.
std::vector<Chunk> cut_chunks(const PostNormLayers& given, int64_t threads) {
  const int64_t count = round_up(divide_up(given.rows, kChunkRows), threads);
  std::vector<Chunk> chunks;
  if (given.rows < count * kLeastChunkRows) return chunks;
  for (int64_t first = 0, last = 0; first < given.sequences; first = last) {
    const int64_t end = given.offsets[first] + divide_up(given.rows, count), border = end_of_set(given, first);
    do {
      ++last;  // as long as that brings its end nearer
    } while (last < border && (given.offsets[last] + given.offsets[last + 1]) / 2 <= end);
    chunks.push_back({first, last, given.offsets[last] - given.offsets[first]});
  }
  std::vector<int64_t> busy(threads);
  for (const Chunk& chunk : chunks) *std::min_element(busy.begin(), busy.end()) += chunk.rows;
  const double most = static_cast<double>(*std::max_element(busy.begin(), busy.end()));
  if (most * static_cast<double>(threads) > kMostUneven * static_cast<double>(given.rows)) chunks.clear();
  return chunks;
}

}  // namespace

bool can_fuse_post_norm_layers(const at::Tensor& x, int64_t hidden, int64_t inner, int64_t heads) {
  const int64_t depth = hidden / heads;
  return isa() == Isa::amx && x.scalar_type() == at::kBFloat16 && hidden % kTileDepth == 0 &&
         inner % kPanelColumns == 0 && depth % 8 == 0 && depth >= 16 && depth <= 256;
}

void fused_post_norm_layers(const PostNormLayers& given, const at::Tensor& x, const at::Tensor& out) {
  if (given.rows == 0) return;
  const auto* from = reinterpret_cast<const uint16_t*>(x.const_data_ptr<at::BFloat16>());
  auto* to = reinterpret_cast<uint16_t*>(out.mutable_data_ptr<at::BFloat16>());
  std::vector<std::vector<Products>> products(given.layers[0].packed.size());  // by weight set, then by layer
  for (const PostNormLayer& layer : given.layers) {
    for (size_t set = 0; set < products.size(); ++set) {
      const auto product = [&](int index) {
        return make_product(layer.calls[index], layer.packed[set][index], nullptr);
      };
      products[set].push_back({product(0), product(1), product(2), product(3)});
    }
  }
  const int64_t threads = at::get_num_threads(), count = static_cast<int64_t>(given.layers.size());
  const std::vector<Chunk> chunks = cut_chunks(given, threads);
  if (chunks.empty()) {
    static thread_local Scratch<uint16_t> memory;
    const Buffers buffers(given, given.rows, memory.reserve(Buffers::elements(given, given.rows)));
    return run_team(threads, [&](const Team& team) {
      const HeldTiles tiles;
      for (int64_t first = 0, last; first < given.sequences; first = last) {
        last = end_of_set(given, first);
        run_sequences(given, products[given.sets[first]], {0, count}, first, last, from, to, buffers, team);
      }
    });
  }
  // Several sets of weights are more than a cache holds: threads that go layer by layer read the same ones.
  const int64_t step = products.size() > 1 ? 1 : count;
  for (int64_t layer = 0; layer < count; layer += step) {
    std::atomic<size_t> next{0};
    run_team(threads, [&](const Team&) {
      static thread_local Scratch<uint16_t> memory;
      const HeldTiles tiles;
      for (size_t index = next++; index < chunks.size(); index = next++) {
        const auto [first, last, rows] = chunks[index];
        const Buffers buffers(given, rows, memory.reserve(Buffers::elements(given, rows)));
        const Run layers{layer, layer + step};
        run_sequences(given, products[given.sets[first]], layers, first, last, from, to, buffers, {0, 1, nullptr});
      }
    });
  }
}

#else

bool can_fuse_post_norm_layers(const at::Tensor&, int64_t, int64_t, int64_t) { return false; }

void fused_post_norm_layers(const PostNormLayers&, const at::Tensor&, const at::Tensor&) {}

#endif

}  // namespace embedmux
