// What attention.cpp (checks, work list, walk over key blocks) and the attention_<isa>.cpp files share.
//
// A variant is a table of functions on small packed operands. Operands are made of 4-byte cells: one float32, or two
// neighbouring bfloat16, which is the layout that vdpbf16ps and AMX read. Both products of attention, scores = Q Kᵀ and
// output = P V, are then one function: rows of cells times panels of cells, 16 columns a panel.
#pragma once

#include <cstdint>

namespace embedmux::attention {

constexpr int kRows = 32;         // query rows of a tile
constexpr int kLanes = 16;        // columns of a panel
constexpr int kKeys = 256;        // keys of a block; blocks count from the sequence's start, so their edges are fixed
constexpr int kCellStep = 16;     // packed depths grow to multiples of this
constexpr float kNoKey = -1e30F;  // shift of a row that has not met a key; finite, so that no inf - inf arises

using Cell = uint32_t;

constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Rows of a source matrix: `rows` of `depth` elements, `stride` elements apart. The keys and values of a sequence that
// follows a shared prefix stand in two tensors: the rows from `split` on are those of `rest`.
struct Source {
  const void* data;
  int64_t stride;
  int rows;
  int depth;
  int split = INT32_MAX;
  const void* rest = nullptr;
  int64_t rest_stride = 0;

  template <typename T>
  const T* row(int index) const {
    return index < split ? static_cast<const T*>(data) + index * stride
                         : static_cast<const T*>(rest) + (index - split) * rest_stride;
  }
};

// out[r * out_stride + 16 p + lane] (+)= Σ_c left[r * left_stride + c] · panels[p * panel_stride + 16 c + lane]
struct Product {
  const Cell* left;
  int left_stride;
  const Cell* panels;
  int panel_stride;
  int num_panels;
  int cells;  // a multiple of kCellStep; padding cells are zero on both sides
  int rows;   // at most kRows; left and out are readable and writable up to kRows
  bool accumulate;
  float* out;
  int out_stride;
};

// One step of the online softmax: scores of one tile against one key block -> weights 2^(score * scale - shift).
struct Softmax {
  float* scores;  // [rows][kKeys]
  Cell* weights;  // [rows][kKeys cells at most]
  int weights_stride;
  int rows;
  int first;  // keys [first, last) of the block, multiples of Kernels::key_step
  int last;
  const int* low;  // row r may see the keys [low[r], high[r]) of the block; all others get weight 0
  const int* high;
  float scale;    // times log2(e)
  bool started;   // an earlier block has filled `output`, which then follows the new shift
  float* shift;   // [rows]: largest score * scale so far
  float* sum;     // [rows]: Σ weights so far
  float* output;  // [rows][output_stride]
  int output_stride;
};

struct Problem;
struct Piece;

struct Kernels {
  // Writes the piece's rows of the result. `upcoming` is what the thread does after it, or null.
  void (*attend)(const Problem& problem, const Kernels& kernels, const Piece& piece, const Piece* upcoming);
  void (*enter)();  // before and after a thread's share of the work; AMX sets its tiles up here
  void (*leave)();
  // What attend_in_blocks is made of; AMX has its own walk.
  int elements_per_cell;  // 1: float32, 2: bfloat16
  // Key ranges inside a block grow to multiples of this, so that weights fill whole cells and depths.
  int key_step() const { return kCellStep * elements_per_cell; }
  void (*pack_rows)(const Source& source, Cell* out, int out_stride);
  void (*pack_keys)(const Source& source, Cell* panels, int panel_stride, int padded_keys);
  void (*pack_values)(const Source& source, Cell* panels, int panel_stride, int padded_keys);
  void (*multiply)(const Product& product);
  void (*softmax)(const Softmax& step);
  void (*finish)(const float* output, int output_stride, const float* sum, const Source& target);
};

// The walk of all variants but AMX (attention_blocks.cpp).
void attend_in_blocks(const Problem& problem, const Kernels& kernels, const Piece& piece, const Piece* upcoming);
inline void nothing() {}

// By element type of q, k and v, and by what they are computed in.
extern const Kernels float32_baseline;
extern const Kernels float16_baseline;
extern const Kernels bfloat16_baseline;
#if defined(__x86_64__)
extern const Kernels float32_avx2;
extern const Kernels float16_avx2;
extern const Kernels bfloat16_avx2;
extern const Kernels float32_avx512;
extern const Kernels float16_avx512;
extern const Kernels bfloat16_avx512;
extern const Kernels bfloat16_avx512_bf16;
extern const Kernels bfloat16_amx;
#endif

}  // namespace embedmux::attention
