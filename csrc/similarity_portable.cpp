// Similarity in plain C++, compiled for AVX2 and for the baseline. Sums of floats grow in 16 lanes, as with AVX-512;
// with fused multiply-add (AVX2) their bits are the same, too.
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "math_portable.h"
#include "similarity.h"

#ifdef EMBEDMUX_X86
#define SIMILARITY_AVX2 __attribute__((target("avx2,fma,f16c,popcnt")))
#endif

namespace embedmux::similarity {

void prepare_copies(const Preparation& preparation) {
  const int64_t bytes = std::min(preparation.stride, preparation.query_bytes);
  for (int q = 0; q < preparation.count; ++q) {
    std::memcpy(preparation.out + q * preparation.query_bytes, preparation.queries + q * preparation.stride, bytes);
  }
}

namespace {

typedef float Octet __attribute__((vector_size(32)));

EMBEDMUX_INLINE void float_sums_portable(const Group& group, const Block& block, int32_t* out) {
  constexpr int kTogether = 4;  // queries; rows and queries are whole cells, or masked below
  const int64_t width = group.row_bytes / 4;
  auto* sums = reinterpret_cast<float*>(out);
  for (int r = 0; r < block.count; ++r) {
    const uint8_t* row = block.rows + r * block.stride;
    float tail[kLanes] = {};
    std::memcpy(tail, row + width / kLanes * kCell, width % kLanes * 4);
    for (int first = 0; first < group.columns; first += kTogether) {
      Octet low[kTogether] = {}, high[kTogether] = {};
      for (int64_t j = 0; j < width; j += kLanes) {
        const void* source = j + kLanes <= width ? static_cast<const void*>(row + 4 * j) : tail;
        Octet values[2];
        std::memcpy(values, source, sizeof values);
        for (int q = 0; q < kTogether && first + q < group.columns; ++q) {
          Octet query[2];
          std::memcpy(query, group.queries + (first + q) * group.query_bytes + 4 * j, sizeof query);
          low[q] += query[0] * values[0];
          high[q] += query[1] * values[1];
        }
      }
      for (int q = 0; q < kTogether && first + q < group.columns; ++q) {
        float lanes[kLanes];
        std::memcpy(lanes, &low[q], sizeof low[q]);
        std::memcpy(lanes + 8, &high[q], sizeof high[q]);
        sums[r * group.columns + first + q] = sum_lanes(lanes);
      }
    }
  }
}

EMBEDMUX_INLINE void int8_sums_portable(const Group& group, const Block& block, int32_t* sums) {
  for (int r = 0; r < block.count; ++r) {
    const auto* row = reinterpret_cast<const int8_t*>(block.rows + r * block.stride);
    for (int c = 0; c < group.columns; ++c) {
      const auto* query = reinterpret_cast<const int8_t*>(group.queries + c * group.query_bytes);
      int32_t sum = 0;
      for (int64_t j = 0; j < group.row_bytes; ++j) {
        sum += static_cast<int16_t>(query[j]) * static_cast<int16_t>(row[j]);
      }
      sums[r * group.columns + c] = sum;
    }
  }
}

EMBEDMUX_INLINE void hamming_sums_portable(const Group& group, const Block& block, int32_t* sums) {
  for (int r = 0; r < block.count; ++r) {
    const uint8_t* row = block.rows + r * block.stride;
    for (int c = 0; c < group.columns; ++c) {
      const uint8_t* query = group.queries + c * group.query_bytes;
      int64_t at = 0;
      int32_t sum = 0;
      for (; at < group.row_bytes; at += 8) {
        const int64_t bytes = std::min<int64_t>(8, group.row_bytes - at);
        uint64_t left = 0, right = 0;
        std::memcpy(&left, query + at, bytes);
        std::memcpy(&right, row + at, bytes);
        sum += __builtin_popcountll(left ^ right);
      }
      sums[r * group.columns + c] = sum;
    }
  }
}

EMBEDMUX_INLINE void decode_bfloat16_portable(const uint8_t* row, int64_t width, float* out) {
  const auto* values = reinterpret_cast<const uint16_t*>(row);
  for (int64_t j = 0; j < width; ++j) out[j] = widen(values[j]);
}

EMBEDMUX_INLINE void decode_float16_portable(const uint8_t* row, int64_t width, float* out) {
  const auto* values = reinterpret_cast<const uint16_t*>(row);
  for (int64_t j = 0; j < width; ++j) out[j] = c10::detail::fp16_ieee_to_fp32_value(values[j]);
}

EMBEDMUX_INLINE void decode_int8_portable(const uint8_t* row, int64_t width, float* out) {
  for (int64_t j = 0; j < width; ++j) out[j] = static_cast<float>(static_cast<int8_t>(row[j]));
}

EMBEDMUX_INLINE void decode_binary_portable(const uint8_t* row, int64_t width, float* out) {
  for (int64_t j = 0; j < width; ++j) out[j] = row[j / 8] >> (7 - j % 8) & 1 ? 1.0F : -1.0F;
}

EMBEDMUX_INLINE float score_of(const Sums& sums, int row, int column) {
  const int32_t* at = sums.values + row * sums.columns + column;
  float value;
  std::memcpy(&value, at, sizeof value);
  return std::fma(sums.are_integers ? static_cast<float>(*at) : value, sums.scale[column], sums.offset[column]);
}

EMBEDMUX_INLINE void emit_portable(const Sums& sums, int used, float* out, int64_t stride) {
  for (int c = 0; c < used; ++c) {
    for (int r = 0; r < sums.count; ++r) out[c * stride + r] = score_of(sums, r, c);
  }
}

EMBEDMUX_INLINE int filter_portable(const Sums& sums, const float* limits, Hit* hits) {
  int count = 0;
  for (int r = 0; r < sums.count; ++r) {
    for (int c = 0; c < sums.columns; ++c) {
      const float score = score_of(sums, r, c);
      if (!(score <= limits[c])) hits[count++] = {r, c, score};
    }
  }
  return count;
}

// One function of each kind for an instruction set, from the portable ones above.
#define SIMILARITY_FUNCTIONS(isa, attribute)                                                                        \
  attribute void float_sums_##isa(const Group& g, const Block& b, int32_t* s) { float_sums_portable(g, b, s); }     \
  attribute void int8_sums_##isa(const Group& g, const Block& b, int32_t* s) { int8_sums_portable(g, b, s); }       \
  attribute void hamming_sums_##isa(const Group& g, const Block& b, int32_t* s) { hamming_sums_portable(g, b, s); } \
  attribute void decode_bfloat16_##isa(const uint8_t* row, int64_t width, uint8_t* out) {                           \
    decode_bfloat16_portable(row, width, reinterpret_cast<float*>(out));                                            \
  }                                                                                                                 \
  attribute void decode_float16_##isa(const uint8_t* row, int64_t width, uint8_t* out) {                            \
    decode_float16_portable(row, width, reinterpret_cast<float*>(out));                                             \
  }                                                                                                                 \
  attribute void decode_int8_##isa(const uint8_t* row, int64_t width, uint8_t* out) {                               \
    decode_int8_portable(row, width, reinterpret_cast<float*>(out));                                                \
  }                                                                                                                 \
  attribute void decode_binary_##isa(const uint8_t* row, int64_t width, uint8_t* out) {                             \
    decode_binary_portable(row, width, reinterpret_cast<float*>(out));                                              \
  }                                                                                                                 \
  attribute void emit_##isa(const Sums& sums, int used, float* out, int64_t stride) {                               \
    emit_portable(sums, used, out, stride);                                                                         \
  }                                                                                                                 \
  attribute int filter_##isa(const Sums& sums, const float* limits, Hit* hits) {                                    \
    return filter_portable(sums, limits, hits);                                                                     \
  }

// The tables of an instruction set.
#define SIMILARITY_KERNELS(isa)                                                                                 \
  const Kernel float32_##isa = {false, false, 4, nullptr, prepare_copies, float_sums_##isa, nullptr, nullptr};  \
  const Kernel bfloat16_##isa = {false,   false,  4, decode_bfloat16_##isa, prepare_copies, float_sums_##isa,   \
                                 nullptr, nullptr};                                                             \
  const Kernel float16_##isa = {false,   false,  4, decode_float16_##isa, prepare_copies, float_sums_##isa,     \
                                nullptr, nullptr};                                                              \
  const Kernel float_int8_##isa = {false,   false,  4, decode_int8_##isa, prepare_copies, float_sums_##isa,     \
                                   nullptr, nullptr};                                                           \
  const Kernel float_binary_##isa = {false,   false,  4, decode_binary_##isa, prepare_copies, float_sums_##isa, \
                                     nullptr, nullptr};                                                         \
  const Kernel int8_##isa = {true, false, 1, nullptr, prepare_copies, int8_sums_##isa, nullptr, nullptr};       \
  const Kernel hamming_##isa = {true, false, 1, nullptr, prepare_copies, hamming_sums_##isa, nullptr, nullptr}; \
  const Finish finish_##isa = {emit_##isa, filter_##isa};

SIMILARITY_FUNCTIONS(baseline, )
#ifdef EMBEDMUX_X86
SIMILARITY_FUNCTIONS(avx2, SIMILARITY_AVX2)
#endif

}  // namespace

SIMILARITY_KERNELS(baseline)
#ifdef EMBEDMUX_X86
SIMILARITY_KERNELS(avx2)
#endif

}  // namespace embedmux::similarity
