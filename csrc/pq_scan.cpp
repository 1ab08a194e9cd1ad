#include <cstring>
#include <limits>

#include "math_portable.h"
#include "pq.h"

namespace embedmux::pq {
namespace {

EMBEDMUX_INLINE float without_nan(float score) {
  return score == score ? score : -std::numeric_limits<float>::infinity();
}

void exact_portable(const Codes& codes, const int64_t* ids, int count, const float* table, float* scores) {
  for (int i = 0; i < count; ++i) {
    const uint8_t* row = codes.rows + ids[i] * codes.columns;
    float score = 0.0F;
    for (int64_t column = 0; column < codes.columns; ++column) {
      const float* pair = table + column * 2 * kCentroids;
      score += pair[row[column] & 15];
      score += pair[kCentroids + (row[column] >> 4)];
    }
    scores[i] = without_nan(score);
  }
}

#ifdef EMBEDMUX_X86

// Blocks side by side: each table load serves them all.
template <int Queries, int Blocks>
EMBEDMUX_AVX512 inline void scan_avx512(const uint8_t* blocks, int64_t columns, const uint8_t* const* tables,
                                        const uint8_t* limits, uint64_t* masks, int64_t num_blocks) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const uint8_t* table[Queries];
  __m512i sums[Queries][Blocks];
  for (int query = 0; query < Queries; ++query) {
    table[query] = tables[query];
    for (int block = 0; block < Blocks; ++block) sums[query][block] = _mm512_setzero_si512();
  }
  for (int64_t column = 0; column < columns; ++column) {
    __m512i low[Blocks], high[Blocks];
    for (int block = 0; block < Blocks; ++block) {
      const __m512i both = _mm512_loadu_si512(blocks + (block * columns + column) * kBlockRows);
      low[block] = _mm512_and_si512(both, nibble);
      high[block] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
    }
    for (int query = 0; query < Queries; ++query) {
      const auto* pair = reinterpret_cast<const __m128i*>(table[query] + column * 2 * kCentroids);
      const __m512i first = _mm512_broadcast_i32x4(_mm_loadu_si128(pair));
      const __m512i second = _mm512_broadcast_i32x4(_mm_loadu_si128(pair + 1));
      for (int block = 0; block < Blocks; ++block) {
        __m512i& sum = sums[query][block];
        sum = _mm512_adds_epu8(sum, _mm512_shuffle_epi8(first, low[block]));
        sum = _mm512_adds_epu8(sum, _mm512_shuffle_epi8(second, high[block]));
      }
    }
  }
  for (int query = 0; query < Queries; ++query) {
    const __m512i limit = _mm512_set1_epi8(static_cast<char>(limits[query]));
    for (int block = 0; block < Blocks; ++block) {
      masks[query * num_blocks + block] = _mm512_cmple_epu8_mask(sums[query][block], limit);
    }
  }
}

template <int Queries, int Blocks>
EMBEDMUX_AVX2 inline void scan_avx2(const uint8_t* blocks, int64_t columns, const uint8_t* const* tables,
                                    const uint8_t* limits, uint64_t* masks, int64_t num_blocks) {
  static_assert(Blocks == 1);
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i sums[Queries][2];
  for (auto& pair : sums) pair[0] = pair[1] = _mm256_setzero_si256();
  for (int64_t column = 0; column < columns; ++column) {
    __m256i low[2], high[2];
    for (int half = 0; half < 2; ++half) {
      const uint8_t* source = blocks + column * kBlockRows + half * 32;
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
      low[half] = _mm256_and_si256(both, nibble);
      high[half] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
    }
    for (int query = 0; query < Queries; ++query) {
      const auto* pair = reinterpret_cast<const __m128i*>(tables[query] + column * 2 * kCentroids);
      const __m256i first = _mm256_broadcastsi128_si256(_mm_loadu_si128(pair));
      const __m256i second = _mm256_broadcastsi128_si256(_mm_loadu_si128(pair + 1));
      for (int half = 0; half < 2; ++half) {
        __m256i& sum = sums[query][half];
        sum = _mm256_adds_epu8(sum, _mm256_shuffle_epi8(first, low[half]));
        sum = _mm256_adds_epu8(sum, _mm256_shuffle_epi8(second, high[half]));
      }
    }
  }
  for (int query = 0; query < Queries; ++query) {
    const __m256i limit = _mm256_set1_epi8(static_cast<char>(limits[query]));
    uint64_t mask = 0;
    for (int half = 0; half < 2; ++half) {
      const __m256i passes = _mm256_cmpeq_epi8(_mm256_min_epu8(sums[query][half], limit), sums[query][half]);
      mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(passes))) << (32 * half);
    }
    masks[query * num_blocks] = mask;
  }
}

// 16 tables of a subquantizer are one register here: a permutation looks up all lanes.
EMBEDMUX_AVX512 inline void look_up(__m512& sum, __m512i codes, const float* table) {
  sum = _mm512_add_ps(sum, _mm512_permutexvar_ps(codes, _mm512_loadu_ps(table)));
}

// Four bytes of each row at a time; the last four overlap those before where M / 2 is no multiple of four.
EMBEDMUX_AVX512 void exact_avx512(const Codes& codes, const int64_t* ids, int count, const float* table,
                                  float* scores) {
  int64_t padded[kExactRows];
  for (int i = 0; i < kExactRows; ++i) padded[i] = ids[i < count ? i : 0] * codes.columns;
  const __m512i left = _mm512_loadu_si512(padded);
  const __m512i right = _mm512_loadu_si512(padded + 8);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t column = 0; column < codes.columns; column += 4) {
    const int64_t start = std::min(column, codes.columns - 4);
    const __m256i first = _mm512_i64gather_epi32(left, codes.rows + start, 1);
    const __m256i second = _mm512_i64gather_epi32(right, codes.rows + start, 1);
    __m512i bytes = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
    bytes = _mm512_srlv_epi32(bytes, _mm512_set1_epi32(static_cast<int>(8 * (column - start))));
    const int64_t last = std::min<int64_t>(column + 4, codes.columns);
    for (int64_t c = column; c < last; ++c) {
      look_up(sum, bytes, table + c * 2 * kCentroids);  // the permutation reads the low four bits only
      bytes = _mm512_srli_epi32(bytes, 4);
      look_up(sum, bytes, table + c * 2 * kCentroids + kCentroids);
      bytes = _mm512_srli_epi32(bytes, 4);
    }
  }
  const __mmask16 is_number = _mm512_cmp_ps_mask(sum, sum, _CMP_ORD_Q);
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  _mm512_mask_storeu_ps(scores, static_cast<__mmask16>((1U << count) - 1), _mm512_mask_mov_ps(lowest, is_number, sum));
}

using Scan = void(const uint8_t* blocks, int64_t columns, const uint8_t* const* tables, const uint8_t* limits,
                  uint64_t* masks, int64_t num_blocks);

struct Scans {
  Scan* pairs;    // two blocks; may be missing
  Scan* singles;  // one block
};

template <int Queries>
constexpr Scans kAvx512 = {scan_avx512<Queries, 2>, scan_avx512<Queries, 1>};
template <int Queries>
constexpr Scans kAvx2 = {nullptr, scan_avx2<Queries, 1>};

void scan_part(const Scans& scans, const uint8_t* blocks, int64_t num_blocks, int64_t columns,
               const uint8_t* const* tables, const uint8_t* limits, uint64_t* masks) {
  int64_t block = 0;
  const int64_t bytes = columns * kBlockRows;
  if (scans.pairs != nullptr) {
    for (; block + 2 <= num_blocks; block += 2) {
      scans.pairs(blocks + block * bytes, columns, tables, limits, masks + block, num_blocks);
    }
  }
  for (; block < num_blocks; ++block) {
    scans.singles(blocks + block * bytes, columns, tables, limits, masks + block, num_blocks);
  }
}

#endif

}  // namespace

void pack_rows(const Codes& codes, int64_t first, int64_t count, uint8_t* blocks) {
  const int64_t columns = codes.columns;
  for (int64_t start = 0; start < count; start += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, count - start);
    uint8_t* block = blocks + start * columns;
    if (rows < kBlockRows) std::memset(block, 0, columns * kBlockRows);
    const uint8_t* source = codes.rows + (first + start) * columns;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) block[column * kBlockRows + row] = source[column];
      source += columns;
    }
  }
}

void scan([[maybe_unused]] const uint8_t* blocks, [[maybe_unused]] int64_t num_blocks, [[maybe_unused]] int64_t columns,
          [[maybe_unused]] const std::vector<const uint8_t*>& tables, [[maybe_unused]] const uint8_t* limits,
          [[maybe_unused]] uint64_t* masks) {
#ifdef EMBEDMUX_X86
  const bool wide = isa() >= Isa::avx512;
  const int64_t queries = static_cast<int64_t>(tables.size());
  for (int64_t query = 0; query < queries;) {
    const int64_t left = queries - query;
    const int step = wide && left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const Scans& scans = step == 8   ? kAvx512<8>
                         : step == 4 ? (wide ? kAvx512<4> : kAvx2<4>)
                         : step == 2 ? (wide ? kAvx512<2> : kAvx2<2>)
                                     : (wide ? kAvx512<1> : kAvx2<1>);
    scan_part(scans, blocks, num_blocks, columns, tables.data() + query, limits + query, masks + query * num_blocks);
    query += step;
  }
#endif
}

void exact_scores(const Codes& codes, const int64_t* ids, int count, const float* table, float* scores) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512 && codes.columns >= 4) return exact_avx512(codes, ids, count, table, scores);
#endif
  exact_portable(codes, ids, count, table, scores);
}

}  // namespace embedmux::pq
