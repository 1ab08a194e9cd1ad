// maxsim in float32 by the compiler's vectors, for the instruction sets below AVX-512.
#include <cstring>

#include "math_portable.h"
#include "maxsim.h"

namespace embedmux::maxsim {
namespace {

typedef float Vector __attribute__((vector_size(64)));
typedef float Value __attribute__((may_alias));

// Vectors of the compiler: four, two or one register wide, as the instruction set has it.
template <int Tokens>
EMBEDMUX_INLINE void raise_portable(const Product& product) {
  for (int64_t panel = 0; panel < product.num_panels; ++panel) {
    const uint32_t* cells = product.panels + panel * (product.cells + 1) * kLanes;
    float* best = product.best + panel * kLanes;
    Vector greatest;
    std::memcpy(&greatest, best, sizeof greatest);
    for (int64_t start = 0; start < product.count; start += Tokens) {
      const int64_t token = std::min<int64_t>(start, product.count - Tokens);
      const auto* values = reinterpret_cast<const Value*>(product.tokens + token * product.stride);
      Vector sums[Tokens] = {};
      for (int64_t cell = 0; cell < product.cells; ++cell) {
        Vector query;
        std::memcpy(&query, cells + cell * kLanes, sizeof query);
        for (int i = 0; i < Tokens; ++i) sums[i] += query * values[i * product.stride + cell];
      }
      for (int i = 0; i < Tokens; ++i) greatest = sums[i] > greatest ? sums[i] : greatest;
    }
    std::memcpy(best, &greatest, sizeof greatest);
  }
}

constexpr int kBaselineTokens = 2;  // 8 of 16 registers
constexpr int kAvx2Tokens = 4;      // 8 of 16 registers

void raise_baseline(const Product& product) { raise_portable<kBaselineTokens>(product); }

#ifdef EMBEDMUX_X86

EMBEDMUX_AVX2 void raise_avx2(const Product& product) { raise_portable<kAvx2Tokens>(product); }
#endif

void nothing() {}

}  // namespace

const Kernels floats_baseline = {Form::floats, 1, kBaselineTokens, raise_baseline, nothing, nothing};
#ifdef EMBEDMUX_X86
const Kernels floats_avx2 = {Form::floats, 1, kAvx2Tokens, raise_avx2, nothing, nothing};
#endif

}  // namespace embedmux::maxsim
