// Similarity of int8 codes with AVX-512 VNNI, and of packed bits with VPOPCNTDQ.
#define EMBEDMUX_LANES EMBEDMUX_AVX512_VNNI
#include "similarity_lanes.h"

#ifdef EMBEDMUX_X86

namespace embedmux::similarity {
namespace {

struct Integers {
  EMBEDMUX_AVX512_VNNI static __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
};

// The instruction multiplies unsigned by signed bytes: rows are raised by 128, and `bias` takes that back.
struct Products : Integers {
  EMBEDMUX_AVX512_VNNI static __m512i row(__m512i row) { return _mm512_xor_si512(row, _mm512_set1_epi8(-128)); }
  EMBEDMUX_AVX512_VNNI static __m512i step(__m512i sum, __m512i query, __m512i row) {
    return _mm512_dpbusd_epi32(sum, row, query);
  }
};

struct Differences : Integers {
  EMBEDMUX_AVX512_VNNI static __m512i row(__m512i row) { return row; }
  EMBEDMUX_AVX512_VNNI static __m512i step(__m512i sum, __m512i query, __m512i row) {
    return _mm512_add_epi32(sum, _mm512_popcnt_epi32(_mm512_xor_si512(query, row)));
  }
};

void prepare_products(const Preparation& preparation) {
  prepare_copies(preparation);
  for (int q = 0; q < preparation.count; ++q) {
    const auto* codes = reinterpret_cast<const int8_t*>(preparation.queries + q * preparation.stride);
    int32_t sum = 0;
    for (int64_t j = 0; j < preparation.width; ++j) sum += codes[j];
    preparation.bias[q] = -128 * sum;
  }
}

}  // namespace

const Kernel int8_vnni = {true, false, 1, nullptr, prepare_products, score_lanes<Products>, nullptr, nullptr};
const Kernel hamming_vpopcntdq = {true, false, 1, nullptr, prepare_copies, score_lanes<Differences>, nullptr, nullptr};

}  // namespace embedmux::similarity

#endif
