// Columns are summed token by token, each on its own, so it does not matter how many are summed side by side: the wide
// code keeps a block of columns in registers and walks down the rows. The norm is summed over 16 lanes.
#include "row_pool.h"

#include <algorithm>
#include <cmath>

namespace embedmux {
namespace {

constexpr int kLanes = 16;

// A norm this small is that of a zero vector: torch.nn.functional.normalize divides by at least as much.
constexpr float kSmallestNorm = 1e-12F;

EMBEDMUX_INLINE void to_unit_length_portable(float* out, int64_t width) {
  float squares[kLanes] = {};
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) squares[lane] += out[j + lane] * out[j + lane];
  }
  for (int64_t j = whole; j < width; ++j) squares[j - whole] += out[j] * out[j];
  const float norm = std::max(std::sqrt(sum_lanes(squares)), kSmallestNorm);
  for (int64_t j = 0; j < width; ++j) out[j] /= norm;
}

template <typename T>
EMBEDMUX_INLINE void mean_portable(const SequenceRows<T>& rows, int64_t width, float* out) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* row = rows.first + i * rows.stride;
    const T* residual = rows.residual == nullptr ? nullptr : rows.residual + i * rows.residual_stride;
    if (i == 0 && residual == nullptr) {
      for (int64_t j = 0; j < width; ++j) out[j] = widen(row[j]);
    } else if (i == 0) {
      for (int64_t j = 0; j < width; ++j) out[j] = widen(row[j]) + widen(residual[j]);
    } else if (residual == nullptr) {
      for (int64_t j = 0; j < width; ++j) out[j] += widen(row[j]);
    } else {
      for (int64_t j = 0; j < width; ++j) out[j] += widen(row[j]) + widen(residual[j]);
    }
  }
  if (rows.count == 1) return;
  const float count = static_cast<float>(rows.count);
  for (int64_t j = 0; j < width; ++j) out[j] /= count;
}

EMBEDMUX_INLINE bool is_finite_portable(const float* row, int64_t width) {
  uint32_t bad = 0;
  for (int64_t j = 0; j < width; ++j) {
    uint32_t bits;
    std::memcpy(&bits, row + j, sizeof bits);
    bad |= (bits & 0x7F800000) == 0x7F800000 ? 1U : 0U;
  }
  return bad == 0;
}

void to_unit_length_baseline(float* out, int64_t width) { to_unit_length_portable(out, width); }

template <typename T>
void mean_baseline(const SequenceRows<T>& rows, int64_t width, float* out) {
  mean_portable(rows, width, out);
}

#ifdef EMBEDMUX_X86
EMBEDMUX_AVX2 void to_unit_length_avx2(float* out, int64_t width) { to_unit_length_portable(out, width); }

EMBEDMUX_AVX512 void to_unit_length_avx512(float* out, int64_t width) { to_unit_length_portable(out, width); }

EMBEDMUX_AVX2 bool is_finite_avx2(const float* row, int64_t width) { return is_finite_portable(row, width); }

template <typename T>
EMBEDMUX_AVX2 void mean_avx2(const SequenceRows<T>& rows, int64_t width, float* out) {
  mean_portable(rows, width, out);
}

// Vectors of columns [j, j + 16 Vectors) that are summed side by side; `last` masks the last of them.
template <int Vectors, typename T>
EMBEDMUX_AVX512 inline void mean_block(const SequenceRows<T>& rows, int64_t j, __mmask16 last, float* out) {
  const auto lanes = [last](int v) -> __mmask16 { return v == Vectors - 1 ? last : 0xFFFF; };
  __m512 sums[Vectors];
  const T* row = rows.first + j;
  for (int v = 0; v < Vectors; ++v) sums[v] = load_lanes(row + v * kLanes, lanes(v));
  if (rows.residual == nullptr) {
    for (int64_t i = 1; i < rows.count; ++i) {
      row += rows.stride;
      for (int v = 0; v < Vectors; ++v) sums[v] = _mm512_add_ps(sums[v], load_lanes(row + v * kLanes, lanes(v)));
    }
  } else {
    const T* residual = rows.residual + j;
    for (int v = 0; v < Vectors; ++v) sums[v] = _mm512_add_ps(sums[v], load_lanes(residual + v * kLanes, lanes(v)));
    for (int64_t i = 1; i < rows.count; ++i) {
      row += rows.stride;
      residual += rows.residual_stride;
      for (int v = 0; v < Vectors; ++v) {
        const __m512 sum =
            _mm512_add_ps(load_lanes(row + v * kLanes, lanes(v)), load_lanes(residual + v * kLanes, lanes(v)));
        sums[v] = _mm512_add_ps(sums[v], sum);
      }
    }
  }
  const __m512 count = _mm512_set1_ps(static_cast<float>(rows.count));
  for (int v = 0; v < Vectors; ++v) {
    store_lanes(out + j + v * kLanes, lanes(v), rows.count == 1 ? sums[v] : _mm512_div_ps(sums[v], count));
  }
}

template <typename T>
EMBEDMUX_AVX512 void mean_avx512(const SequenceRows<T>& rows, int64_t width, float* out) {
  int64_t j = 0;
  for (; j + 8 * kLanes <= width; j += 8 * kLanes) mean_block<8>(rows, j, 0xFFFF, out);
  for (; j < width; j += kLanes) mean_block<1>(rows, j, first_lanes(width - j), out);
}
#endif

template <typename T>
void mean(const SequenceRows<T>& rows, int64_t width, float* out) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return mean_avx512(rows, width, out);
  if (isa() >= Isa::avx2) return mean_avx2(rows, width, out);
#endif
  mean_baseline(rows, width, out);
}

}  // namespace

void to_unit_length(float* out, int64_t width) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return to_unit_length_avx512(out, width);
  if (isa() >= Isa::avx2) return to_unit_length_avx2(out, width);
#endif
  to_unit_length_baseline(out, width);
}

bool is_finite_row(const float* row, int64_t width) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx2) return is_finite_avx2(row, width);
#endif
  return is_finite_portable(row, width);
}

template <typename T>
void pool_rows(const SequenceRows<T>& rows, int64_t width, bool normalize, float* out) {
  mean(rows, width, out);
  if (normalize) to_unit_length(out, width);
}

template void pool_rows(const SequenceRows<float>&, int64_t, bool, float*);
template void pool_rows(const SequenceRows<uint16_t>&, int64_t, bool, float*);
template void pool_rows(const SequenceRows<Float16>&, int64_t, bool, float*);

}  // namespace embedmux
