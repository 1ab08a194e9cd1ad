#include "lora_epilogue.h"

#include <algorithm>

#include "lora_vector.h"
#include "simd.h"
#include "tensors.h"

namespace embedmux {
namespace {

constexpr int64_t kBlockRows = 32;

template <typename Element>
struct EpilogueArguments {
  const LoraCall& call;
  const float* x;
  float* sums;  // the product, then all that comes before the activation
  Element* output;
  float* down;  // scratch [kBlockRows, highest rank]: A x of one block of rows
};

// What one slice of one segment adds: from strip to strip its pointers move along the columns.
template <typename Element>
struct Addition {
  const Element* b;  // null if the slice has no factors
  int64_t rank, width;
  Affine affine;

  bool is_empty() const { return b == nullptr && affine.scale == nullptr; }
  Addition from(int64_t column) const {
    return {b == nullptr ? b : b + column, rank, width,
            affine.scale == nullptr ? affine : Affine{affine.scale + column, affine.bias + column}};
  }
};

// down[row][q] = A[q] · x[row] for R rows and Q rows of A. Each sum runs alone through the K lanes in order and then
// through one tree, so R and Q are free to follow the shape.
template <int W, int R, int Q, typename Element>
EMBEDMUX_INLINE void dot_rows(const float* x, const Element* a, int64_t inner, float* down, int64_t stride) {
  typedef typename Lanes<W>::Float Float;
  constexpr int kVectors = (R * Q + W - 1) / W * W;
  Float sums[kVectors] = {};  // [R, Q], the rest zero
  int64_t k = 0;
  for (; k + W <= inner; k += W) {
    Float factors[Q];
    for (int q = 0; q < Q; ++q) factors[q] = load<W>(a + q * inner + k);
    for (int row = 0; row < R; ++row) {
      const Float values = load<W>(x + row * inner + k);
      for (int q = 0; q < Q; ++q) sums[row * Q + q] += values * factors[q];
    }
  }
  if (k < inner) {
    for (int row = 0; row < R; ++row) {
      const Float values = load_part<W>(x + row * inner + k, inner - k);
      for (int q = 0; q < Q; ++q) sums[row * Q + q] += values * load_part<W>(a + q * inner + k, inner - k);
    }
  }
  for (int first = 0; first < R * Q; first += W) {
    sum_lanes<W>(sums + first);
    float lanes[W];
    std::memcpy(lanes, sums + first, sizeof(lanes));
    for (int lane = 0; lane < W && first + lane < R * Q; ++lane) {
      down[(first + lane) / Q * stride + (first + lane) % Q] = lanes[lane];
    }
  }
}

template <int W, int R, typename Element>
EMBEDMUX_INLINE void shrink_rows(const float* x, const Element* a, int64_t inner, int64_t rank, float* down) {
  int64_t q = 0;
  for (; q + 4 <= rank; q += 4) dot_rows<W, R, 4>(x, a + q * inner, inner, down + q, rank);
  for (; q < rank; ++q) dot_rows<W, R, 1>(x, a + q * inner, inner, down + q, rank);
}

template <int W, int R, typename Element>
EMBEDMUX_INLINE void shrink_block(const float* x, int64_t rows, const Element* a, int64_t inner, int64_t rank,
                                  float* down) {
  int64_t row = 0;
  for (; row + R <= rows; row += R) shrink_rows<W, R>(x + row * inner, a, inner, rank, down + row * rank);
  for (; row < rows; ++row) shrink_rows<W, 1>(x + row * inner, a, inner, rank, down + row * rank);
}

// R rows by V vectors of the sums; `count` columns of the last vector exist.
template <int W, int R, int V, typename Element>
EMBEDMUX_INLINE void expand_tile(float* target, int64_t columns, int64_t count, const Addition<Element>& addition,
                                 const float* down) {
  typedef typename Lanes<W>::Float Float;
  const auto read = [&](const auto* source, int v) {
    return v + 1 < V || count == W ? load<W>(source + v * W) : load_part<W>(source + v * W, count);
  };
  Float sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sums[r][v] = read(target + r * columns, v);
  }
  for (int64_t q = 0; addition.b != nullptr && q < addition.rank; ++q) {
    Float factors[V];
    for (int v = 0; v < V; ++v) factors[v] = read(addition.b + q * addition.width, v);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sums[r][v] += factors[v] * down[r * addition.rank + q];
    }
  }
  if (addition.affine.scale != nullptr) {
    for (int v = 0; v < V; ++v) {
      const Float scale = read(addition.affine.scale, v), bias = read(addition.affine.bias, v);
      for (int r = 0; r < R; ++r) sums[r][v] = sums[r][v] * scale + bias;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store<W>(target + r * columns + v * W, sums[r][v], v + 1 < V ? W : count);
  }
}

// All rows of a block for one strip of columns, so that the strip of B stays in the first-level cache.
template <int W, int R, int V, typename Element>
EMBEDMUX_INLINE void expand_strip(float* target, int64_t rows, int64_t columns, int64_t count,
                                  const Addition<Element>& addition, const float* down) {
  int64_t row = 0;
  for (; row + R <= rows; row += R) {
    expand_tile<W, R, V>(target + row * columns, columns, count, addition, down + row * addition.rank);
  }
  for (; row < rows; ++row) {
    expand_tile<W, 1, V>(target + row * columns, columns, count, addition, down + row * addition.rank);
  }
}

// output = A(sums), gated or not, for one row.
template <int W, Activation A, typename Element>
EMBEDMUX_INLINE void activate_row(const float* sums, const float* up, int64_t columns, Element* output) {
  for (int64_t column = 0; column < columns; column += W) {
    const int64_t count = std::min<int64_t>(W, columns - column);
    const auto read = [&](const float* source) {
      return count == W ? load<W>(source + column) : load_part<W>(source + column, count);
    };
    typename Lanes<W>::Float value = activate<W, A>(read(sums));
    if (up != nullptr) value *= read(up);
    store<W>(output + column, value, count);
  }
}

template <int W, typename Element>
EMBEDMUX_INLINE void activate_rows(const EpilogueArguments<Element>& arguments, int64_t first, int64_t rows) {
  const LoraCall& call = arguments.call;
  const int64_t columns = call.output_columns();
  if (call.activation == Activation::none && static_cast<const void*>(arguments.output) == arguments.sums) return;
  for (int64_t row = first; row < first + rows; ++row) {
    const float* sums = arguments.sums + row * call.columns;
    const float* up = call.is_gated ? sums + columns : nullptr;
    Element* output = arguments.output + row * columns;
    switch (call.activation) {
      case Activation::none:
        activate_row<W, Activation::none>(sums, up, columns, output);
        break;
      case Activation::gelu:
        activate_row<W, Activation::gelu>(sums, up, columns, output);
        break;
      case Activation::gelu_tanh:
        activate_row<W, Activation::gelu_tanh>(sums, up, columns, output);
        break;
      case Activation::silu:
        activate_row<W, Activation::silu>(sums, up, columns, output);
        break;
      case Activation::relu:
        activate_row<W, Activation::relu>(sums, up, columns, output);
        break;
    }
  }
}

// Rows [first, last) of one segment, or base rows where segment is null.
template <int W, int R, typename Element>
EMBEDMUX_INLINE void finish_rows(const EpilogueArguments<Element>& arguments, int64_t first, int64_t last,
                                 const LoraSegment* segment) {
  const LoraCall& call = arguments.call;
  const Element* arena = static_cast<const Element*>(call.arena);
  for (int64_t block = first; block < last; block += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, last - block);
    for (int64_t slice = 0; segment != nullptr && slice < call.num_slices(); ++slice) {
      const LoraSlice& factors = segment->slices[slice];
      const int64_t start = call.slices[slice], width = call.slices[slice + 1] - start, rank = factors.rank;
      Addition<Element> whole{rank > 0 ? arena + factors.b : nullptr, rank, width, segment->affine};
      if (whole.is_empty()) continue;
      if (whole.affine.scale != nullptr) whole.affine = {whole.affine.scale + start, whole.affine.bias + start};
      if (rank > 0) {
        shrink_block<W, R>(arguments.x + block * call.inner, rows, arena + factors.a, call.inner, rank, arguments.down);
      }
      float* target = arguments.sums + block * call.columns + start;
      int64_t column = 0;
      for (; column + 4 * W <= width; column += 4 * W) {
        expand_strip<W, R, 4>(target + column, rows, call.columns, W, whole.from(column), arguments.down);
      }
      for (; column < width; column += W) {
        expand_strip<W, R, 1>(target + column, rows, call.columns, std::min<int64_t>(W, width - column),
                              whole.from(column), arguments.down);
      }
    }
    activate_rows<W>(arguments, block, rows);
  }
}

// Rows [first, last), cut where segments begin and end.
template <int W, int R, typename Element>
EMBEDMUX_INLINE void finish(const EpilogueArguments<Element>& arguments, int64_t first, int64_t last) {
  int64_t row = first;
  for (const LoraSegment& segment : arguments.call.segments) {
    if (segment.last_row <= row) continue;
    if (segment.first_row >= last) break;
    if (segment.first_row > row) finish_rows<W, R>(arguments, row, segment.first_row, nullptr);
    const int64_t end = std::min(last, segment.last_row);
    finish_rows<W, R>(arguments, std::max(row, segment.first_row), end, &segment);
    row = end;
  }
  if (row < last) finish_rows<W, R>(arguments, row, last, nullptr);
}

// R rows by four vectors must fit the register file: 32 registers with AVX-512, 16 below.
#ifdef EMBEDMUX_X86
template <typename Element>
EMBEDMUX_AVX512 void finish_avx512(const EpilogueArguments<Element>& arguments, int64_t first, int64_t last) {
  finish<16, 4>(arguments, first, last);
}

template <typename Element>
EMBEDMUX_AVX2 void finish_avx2(const EpilogueArguments<Element>& arguments, int64_t first, int64_t last) {
  finish<8, 2>(arguments, first, last);
}
#endif

template <typename Element>
void finish_baseline(const EpilogueArguments<Element>& arguments, int64_t first, int64_t last) {
  finish<4, 2>(arguments, first, last);
}

template <typename Element>
void run(const LoraCall& call, const float* x, float* sums, void* output) {
  auto kernel = finish_baseline<Element>;
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) {
    kernel = finish_avx512<Element>;
  } else if (isa() >= Isa::avx2) {
    kernel = finish_avx2<Element>;
  }
#endif
  int64_t highest_rank = 0;
  for (const LoraSegment& segment : call.segments) {
    for (int64_t slice = 0; slice < call.num_slices(); ++slice) {
      highest_rank = std::max(highest_rank, segment.slices[slice].rank);
    }
  }
  parallel_for(0, call.rows, 16, [&](int64_t first, int64_t last) {
    std::vector<float> down(kBlockRows * highest_rank);
    kernel(EpilogueArguments<Element>{call, x, sums, static_cast<Element*>(output), down.data()}, first, last);
  });
}

}  // namespace

void lora_epilogue(const LoraCall& call, const at::Tensor& x, const at::Tensor& base, const at::Tensor& output) {
  const float* rows = x.defined() ? x.const_data_ptr<float>() : nullptr;
  float* sums = base.mutable_data_ptr<float>();
  void* target = output.mutable_data_ptr();
  if (target == sums && call.segments.empty() && call.activation == Activation::none) return;
  switch (output.scalar_type()) {
    case at::kFloat:
      return run<float>(call, rows, sums, target);
    case at::kBFloat16:
      return run<BFloat16Bits>(call, rows, sums, target);
    default:
      return run<Float16Bits>(call, rows, sums, target);
  }
}

}  // namespace embedmux
