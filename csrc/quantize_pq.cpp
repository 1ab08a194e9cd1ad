// embedmux::quantize_pq and embedmux::pack_pq on the CPU: nearest centroids, 16 at a time, and the codes in blocks.
#include <limits>

#include "math_portable.h"
#include "pq.h"
#include "tensors.h"

namespace embedmux::pq {
namespace {

constexpr int64_t kValuesPerThread = 8192;

// The nearest of 16 centroids, written dimension by dimension: [width][16]. A NaN distance is never the nearest.
EMBEDMUX_INLINE int nearest(const float* values, const float* centroids, int64_t width) {
  float distances[kCentroids] = {};
  for (int64_t j = 0; j < width; ++j) {
    const float value = values[j];
    for (int c = 0; c < kCentroids; ++c) {
      const float difference = value - centroids[j * kCentroids + c];
      distances[c] += difference * difference;
    }
  }
  int best = 0;
  float smallest = std::numeric_limits<float>::infinity();
  for (int c = 0; c < kCentroids; ++c) {
    if (distances[c] < smallest) {
      smallest = distances[c];
      best = c;
    }
  }
  return best;
}

// One row: D = 2 * columns * width values to `columns` bytes.
EMBEDMUX_INLINE void encode_portable(const float* row, const float* centroids, int64_t width, int64_t columns,
                                     uint8_t* out) {
  for (int64_t column = 0; column < columns; ++column) {
    const float* values = row + column * 2 * width;
    const float* pair = centroids + column * 2 * width * kCentroids;
    const int low = nearest(values, pair, width);
    const int high = nearest(values + width, pair + width * kCentroids, width);
    out[column] = static_cast<uint8_t>(low | high << 4);
  }
}

void encode_baseline(const float* row, const float* centroids, int64_t width, int64_t columns, uint8_t* out) {
  encode_portable(row, centroids, width, columns, out);
}

#ifdef EMBEDMUX_X86
EMBEDMUX_AVX2 void encode_avx2(const float* row, const float* centroids, int64_t width, int64_t columns, uint8_t* out) {
  encode_portable(row, centroids, width, columns, out);
}

EMBEDMUX_AVX512 inline int nearest_avx512(const float* values, const float* centroids, int64_t width) {
  __m512 distances = _mm512_setzero_ps();
  for (int64_t j = 0; j < width; ++j) {
    const __m512 difference = _mm512_sub_ps(_mm512_set1_ps(values[j]), _mm512_loadu_ps(centroids + j * kCentroids));
    distances = _mm512_fmadd_ps(difference, difference, distances);
  }
  const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  distances = _mm512_min_ps(distances, infinity);  // of a NaN and another, min takes the second
  const __m512 smallest = _mm512_set1_ps(_mm512_reduce_min_ps(distances));
  return __builtin_ctz(_mm512_cmp_ps_mask(distances, smallest, _CMP_EQ_OQ));
}

EMBEDMUX_AVX512 void encode_avx512(const float* row, const float* centroids, int64_t width, int64_t columns,
                                   uint8_t* out) {
  for (int64_t column = 0; column < columns; ++column) {
    const float* values = row + column * 2 * width;
    const float* pair = centroids + column * 2 * width * kCentroids;
    const int low = nearest_avx512(values, pair, width);
    const int high = nearest_avx512(values + width, pair + width * kCentroids, width);
    out[column] = static_cast<uint8_t>(low | high << 4);
  }
}
#endif

void encode(const float* row, const float* centroids, int64_t width, int64_t columns, uint8_t* out) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return encode_avx512(row, centroids, width, columns, out);
  if (isa() >= Isa::avx2) return encode_avx2(row, centroids, width, columns, out);
#endif
  encode_baseline(row, centroids, width, columns, out);
}

at::Tensor quantize_pq_cpu(const at::Tensor& rows, const at::Tensor& codebooks) {
  check_rank(rows, "rows", 2);
  check_dtype(rows, "rows", at::kFloat);
  check_rank(codebooks, "codebooks", 3);
  check_dtype(codebooks, "codebooks", at::kFloat);
  check_size(codebooks, "codebooks", 1, kCentroids);
  const int64_t parts = codebooks.size(0), width = codebooks.size(2), dimensions = rows.size(1);
  TORCH_CHECK(parts > 0 && parts % 2 == 0,
              "codebooks must have an even M of at least 2, since a byte holds two codes, ", "got shape ",
              codebooks.sizes());
  TORCH_CHECK(width > 0 && parts * width == dimensions, "codebooks must be [M, 16, D / M] with D = ", dimensions,
              ", got shape ", codebooks.sizes());
  const at::Tensor plain = rows.contiguous();
  const at::Tensor centroids = codebooks.transpose(1, 2).contiguous();
  at::Tensor codes = at::empty({rows.size(0), parts / 2}, rows.options().dtype(at::kByte));
  const auto* source = plain.const_data_ptr<float>();
  const auto* books = centroids.const_data_ptr<float>();
  auto* target = codes.mutable_data_ptr<uint8_t>();
  parallel_for(0, rows.size(0), std::max<int64_t>(1, kValuesPerThread / dimensions), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      encode(source + i * dimensions, books, width, parts / 2, target + i * (parts / 2));
    }
  });
  return codes;
}

at::Tensor pack_pq(const at::Tensor& codes) {
  check_rank(codes, "codes", 2);
  check_dtype(codes, "codes", at::kByte);
  const at::Tensor plain = codes.contiguous();
  const int64_t rows = codes.size(0), columns = codes.size(1), blocks = divide_up(rows, kBlockRows);
  at::Tensor packed = at::empty({blocks, columns, kBlockRows}, codes.options());
  const Codes source{plain.const_data_ptr<uint8_t>(), columns};
  auto* target = packed.mutable_data_ptr<uint8_t>();
  parallel_for(0, blocks, 64, [&](int64_t begin, int64_t end) {
    pack_rows(source, begin * kBlockRows, std::min(rows, end * kBlockRows) - begin * kBlockRows,
              target + begin * kBlockRows * columns);
  });
  return packed;
}

}  // namespace
}  // namespace embedmux::pq

TORCH_LIBRARY_IMPL(embedmux, CPU, library) {
  library.impl("quantize_pq", &embedmux::pq::quantize_pq_cpu);
  library.impl("pack_pq", &embedmux::pq::pack_pq);
}
