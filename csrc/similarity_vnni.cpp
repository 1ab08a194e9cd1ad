// Similarity of int8 codes with AVX-512 VNNI, and of packed bits with VPOPCNTDQ.
#define EMBEDMUX_LANES EMBEDMUX_AVX512_VNNI
#include <algorithm>
#include <cstring>

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

// Rows of 48 bytes (384 bits) end to end, for one query: with one row a register, the folding of sums, and not the
// memory, would set the pace. Here four rows fill three registers; every 128-bit lane holds counts of one row alone.
constexpr int kBytes48 = 48;

struct Order48 {
  alignas(64) int64_t index[3][8] = {};
  __mmask8 from_third[3] = {};
};

// Where the three lane sums of each of eight rows stand, after two registers at a time have been added lane by lane.
constexpr Order48 order_48() {
  Order48 order;
  for (int part = 0; part < 3; ++part) {
    for (int row = 0; row < 8; ++row) {
      const int lane = 3 * row + part;
      order.index[part][row] = lane / 8 % 2 * 8 + lane % 4 * 2 + lane / 4 % 2;
      if (lane >= 16) order.from_third[part] |= 1 << row;
    }
  }
  return order;
}

constexpr Order48 kOrder48 = order_48();

// Differing bits of eight rows; query: three registers, its bytes repeated.
EMBEDMUX_AVX512_VNNI inline __m256i differences_48(const uint8_t* rows, const __m512i (&query)[3]) {
  __m512i lanes[3];
  for (int i = 0; i < 3; ++i) {
    __m512i counts[2];
    for (int j = 0; j < 2; ++j) {
      const __m512i bits = _mm512_xor_si512(_mm512_loadu_si512(rows + (2 * i + j) * kCell), query[(2 * i + j) % 3]);
      counts[j] = _mm512_popcnt_epi64(bits);
    }
    lanes[i] =
        _mm512_add_epi64(_mm512_unpacklo_epi64(counts[0], counts[1]), _mm512_unpackhi_epi64(counts[0], counts[1]));
  }
  __m512i sum = _mm512_setzero_si512();
  for (int part = 0; part < 3; ++part) {
    const __m512i index = _mm512_load_si512(kOrder48.index[part]);
    const __m512i first = _mm512_permutex2var_epi64(lanes[0], index, lanes[1]);
    sum = _mm512_add_epi64(sum, _mm512_mask_permutexvar_epi64(first, kOrder48.from_third[part], index, lanes[2]));
  }
  return _mm512_cvtepi64_epi32(sum);
}

EMBEDMUX_AVX512_VNNI void score_differences(const Group& group, const Block& block, int32_t* sums) {
  if (group.columns != 1 || group.row_bytes != kBytes48 || block.stride != kBytes48) {
    return score_lanes<Differences>(group, block, sums);
  }
  __m512i query[3];
  alignas(64) uint8_t repeated[3 * kCell];
  for (int i = 0; i < 4; ++i) std::memcpy(repeated + i * kBytes48, group.queries, kBytes48);
  for (int i = 0; i < 3; ++i) query[i] = _mm512_load_si512(repeated + i * kCell);
  const int whole = block.count / 8 * 8;
  for (int first = 0; first < whole; first += 8) {
    const int64_t at = first * kBytes48;
    for (int line = 0; block.ahead != nullptr && line < 6; ++line) {
      _mm_prefetch(block.ahead + at + line * kCell, _MM_HINT_T0);
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + first), differences_48(block.rows + at, query));
  }
  if (whole == block.count) return;
  const Block rest{block.rows + whole * block.stride, block.stride, block.count - whole, nullptr};
  int32_t rest_sums[16];  // score_lanes writes sixteen sums at a time
  score_lanes<Differences>(group, rest, rest_sums);
  std::copy_n(rest_sums, rest.count, sums + whole);
}

}  // namespace

const Kernel int8_vnni = {true, false, 1, nullptr, prepare_products, score_lanes<Products>, nullptr, nullptr};
const Kernel hamming_vpopcntdq = {true, false, 1, nullptr, prepare_copies, score_differences, nullptr, nullptr};

}  // namespace embedmux::similarity

#endif
