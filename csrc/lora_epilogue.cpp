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
  const float* base;
  Element* output;
  float* down;  // scratch [kBlockRows, highest rank]: A x of one block of rows
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

// R rows by V vectors of the output; `count` columns of the last vector exist. b is null where the slice has no
// factors.
template <int W, int R, int V, typename Element>
EMBEDMUX_INLINE void expand_tile(const EpilogueArguments<Element>& arguments, int64_t row, int64_t column,
                                 int64_t count, const Element* b, int64_t width, int64_t rank, const float* down) {
  typedef typename Lanes<W>::Float Float;
  const int64_t columns = arguments.call.columns;
  Float sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      const float* source = arguments.base + (row + r) * columns + column + v * W;
      sums[r][v] = v + 1 < V || count == W ? load<W>(source) : load_part<W>(source, count);
    }
  }
  for (int64_t q = 0; b != nullptr && q < rank; ++q) {
    Float factors[V];
    for (int v = 0; v < V; ++v) {
      const Element* source = b + q * width + v * W;
      factors[v] = v + 1 < V || count == W ? load<W>(source) : load_part<W>(source, count);
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sums[r][v] += factors[v] * down[r * rank + q];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      const Float value = arguments.call.gelu ? gelu<W>(sums[r][v]) : sums[r][v];
      store<W>(arguments.output + (row + r) * columns + column + v * W, value, v + 1 < V ? W : count);
    }
  }
}

// All rows of a block for one strip of columns, so that the strip of B stays in the first-level cache.
template <int W, int R, int V, typename Element>
EMBEDMUX_INLINE void expand_strip(const EpilogueArguments<Element>& arguments, int64_t block, int64_t rows,
                                  int64_t column, int64_t count, const Element* b, int64_t width, int64_t rank) {
  const float* down = arguments.down;
  int64_t row = 0;
  for (; row + R <= rows; row += R) {
    expand_tile<W, R, V>(arguments, block + row, column, count, b, width, rank, down + row * rank);
  }
  for (; row < rows; ++row) {
    expand_tile<W, 1, V>(arguments, block + row, column, count, b, width, rank, down + row * rank);
  }
}

// Rows [first, last) of one segment, or base rows where factors is null.
template <int W, int R, typename Element>
EMBEDMUX_INLINE void finish_rows(const EpilogueArguments<Element>& arguments, int64_t first, int64_t last,
                                 const LoraFactors* factors) {
  const LoraCall& call = arguments.call;
  const Element* arena = static_cast<const Element*>(call.arena);
  for (int64_t block = first; block < last; block += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, last - block);
    for (int64_t slice = 0; slice < call.num_slices(); ++slice) {
      const int64_t rank = factors == nullptr ? 0 : factors[slice].rank;
      const Element* b = nullptr;
      if (rank > 0) {
        const Element* a = arena + factors[slice].a;
        b = arena + factors[slice].b;
        shrink_block<W, R>(arguments.x + block * call.inner, rows, a, call.inner, rank, arguments.down);
      }
      const int64_t start = call.slices[slice], end = call.slices[slice + 1], width = end - start;
      int64_t column = start;
      for (; column + 4 * W <= end; column += 4 * W) {
        const Element* strip = b == nullptr ? nullptr : b + column - start;
        expand_strip<W, R, 4>(arguments, block, rows, column, W, strip, width, rank);
      }
      for (; column < end; column += W) {
        const Element* strip = b == nullptr ? nullptr : b + column - start;
        expand_strip<W, R, 1>(arguments, block, rows, column, std::min<int64_t>(W, end - column), strip, width, rank);
      }
    }
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
    finish_rows<W, R>(arguments, std::max(row, segment.first_row), end, segment.factors);
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
void run(const LoraCall& call, const float* x, const float* base, Element* output) {
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
      highest_rank = std::max(highest_rank, segment.factors[slice].rank);
    }
  }
  at::parallel_for(0, call.rows, 16, [&](int64_t first, int64_t last) {
    std::vector<float> down(kBlockRows * highest_rank);
    kernel(EpilogueArguments<Element>{call, x, base, output, down.data()}, first, last);
  });
}

}  // namespace

void lora_epilogue(const LoraCall& call, const at::Tensor& x, const at::Tensor& base, const at::Tensor& output) {
  const float* rows = x.const_data_ptr<float>();
  const float* products = base.const_data_ptr<float>();
  if (output.scalar_type() == at::kFloat) {
    run(call, rows, products, output.mutable_data_ptr<float>());
  } else {
    run(call, rows, products, reinterpret_cast<BFloat16Bits*>(output.mutable_data_ptr<at::BFloat16>()));
  }
}

}  // namespace embedmux
