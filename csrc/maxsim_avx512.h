// Dot products by broadcasting: a cell of a document's token meets a vector of the same cell of 16 query tokens. Every
// sum runs through D in order in one lane. To be included with EMBEDMUX_MAXSIM_TARGET naming the instruction set that
// the includer's kinds of sums need: what is inlined into each other must be compiled for one and the same.
#pragma once

#include "maxsim.h"

#ifdef EMBEDMUX_X86

namespace embedmux::maxsim {
namespace {

constexpr int64_t kTokens = 8;  // with two panels 16 sums in 32 registers

template <typename Kind, int Panels>
EMBEDMUX_MAXSIM_TARGET void raise_panels(const Product& product, int64_t panel) {
  const int64_t panel_cells = (product.cells + 1) * kLanes;
  const uint32_t* panels = product.panels + panel * panel_cells;
  float* best = product.best + panel * kLanes;
  __m512 greatest[Panels];
  for (int p = 0; p < Panels; ++p) greatest[p] = _mm512_loadu_ps(best + p * kLanes);
  for (int64_t start = 0; start < product.count; start += kTokens) {
    // The last tokens may be some that were seen: a maximum taken twice is the same.
    const uint32_t* tokens = product.tokens + std::min(start, product.count - kTokens) * product.stride;
    __m512i sums[kTokens][Panels];
    for (int i = 0; i < kTokens; ++i) {
      for (int p = 0; p < Panels; ++p) sums[i][p] = Kind::start(panels + p * panel_cells + product.cells * kLanes);
    }
    for (int64_t cell = 0; cell < product.cells; ++cell) {
      __m512i query[Panels];
      for (int p = 0; p < Panels; ++p) query[p] = _mm512_loadu_si512(panels + p * panel_cells + cell * kLanes);
      for (int i = 0; i < kTokens; ++i) {
        const __m512i token = Kind::meet(_mm512_set1_epi32(static_cast<int>(tokens[i * product.stride + cell])));
        for (int p = 0; p < Panels; ++p) sums[i][p] = Kind::add(sums[i][p], token, query[p]);
      }
    }
    for (int i = 0; i < kTokens; ++i) {
      // Of a NaN and another, max takes the second.
      for (int p = 0; p < Panels; ++p) greatest[p] = _mm512_max_ps(Kind::finish(sums[i][p]), greatest[p]);
    }
  }
  for (int p = 0; p < Panels; ++p) _mm512_storeu_ps(best + p * kLanes, greatest[p]);
}

template <typename Kind>
void raise(const Product& product) {
  int64_t panel = 0;
  for (; panel + 2 <= product.num_panels; panel += 2) raise_panels<Kind, 2>(product, panel);
  if (panel < product.num_panels) raise_panels<Kind, 1>(product, panel);
}

void nothing() {}

}  // namespace
}  // namespace embedmux::maxsim

#endif
