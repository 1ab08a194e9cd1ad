// A tile of the product in gemm_widening.cpp. Each instruction set includes this once, with its target attribute as
// EMBEDMUX_LANES: then the loads of its own 16-bit types are inlined before sums are given registers.
#pragma once

#include <algorithm>
#include <utility>

#include "gemm_widening_kernel.h"
#include "lora_vector.h"

#ifndef EMBEDMUX_LANES
#error "define EMBEDMUX_LANES as a target attribute, or as nothing"
#endif

namespace embedmux {
namespace {

// R rows by V vectors. All loops but that along K are unrolled, or the compiler keeps sums in memory.
template <int W, int R, int V, typename Element>
EMBEDMUX_LANES void multiply_tile(const WideningTile& tile) {
  typedef typename Lanes<W>::Float Float;
  Float sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sums[r][v] = load<W>(tile.before + r * tile.before_stride + v * W);
  }
  const float* x = tile.x;
  const float* end = x + tile.depth;
  const Element* weights = static_cast<const Element*>(tile.weights);
  float* widened = tile.widened;
#pragma GCC unroll 4
  for (; x < end; ++x, weights += kWideningColumns, widened += kWideningColumns) {
    Float factors[V];
    for (int v = 0; v < V; ++v) {
      factors[v] = load<W>(weights + v * W);
      if constexpr (sizeof(Element) < sizeof(float)) store<W>(widened + v * W, factors[v], W);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) sums[r][v] += factors[v] * x[r * kWideningDepth];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) store<W>(tile.sums + r * tile.stride + v * W, sums[r][v], W);
  }
}

template <int W, typename Element>
EMBEDMUX_LANES void gather_rows(const void* x, int64_t inner, int64_t rows, float* target) {
  const Element* source = static_cast<const Element*>(x);
  for (int64_t row = 0; row < rows; ++row, source += inner, target += kWideningDepth) {
    int64_t k = 0;
    for (; k + W <= inner; k += W) {
      store<W>(target + k / kWideningDepth * rows * kWideningDepth + k % kWideningDepth, load<W>(source + k), W);
    }
    if (k < inner) {
      store<W>(target + k / kWideningDepth * rows * kWideningDepth + k % kWideningDepth,
               load_part<W>(source + k, inner - k), inner - k);
    }
  }
}

// Tiles of up to R rows by V vectors of W lanes.
template <int W, int R, int V, typename Element>
WideningKernel kernel_of() {
  static_assert(R <= kWideningRows && kWideningColumns % (V * W) == 0 && kWideningDepth % W == 0);
  return [&]<int... Fewer>(std::integer_sequence<int, Fewer...>) {
    return WideningKernel{R,
                          V * W,
                          gather_rows<W, Element>,
                          {nullptr, multiply_tile<W, Fewer + 1, V, Element>...},
                          {nullptr, multiply_tile<W, Fewer + 1, V, float>...}};
  }(std::make_integer_sequence<int, R>());
}

}  // namespace
}  // namespace embedmux
