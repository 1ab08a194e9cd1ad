// The rows of a norm: a row is read once into a float32 buffer, its moments are summed in an order that its width
// alone fixes, then it is written: the same steps for every row, whatever stands beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "elements.h"
#include "half.h"
#include "math_avx512.h"
#include "math_portable.h"
#include "norm.h"
#include "norm_pairs.h"

namespace embedmux {

constexpr int kNormLanes = 16;
constexpr int kNormChains = 4;  // sums that grow side by side: vector k of a row belongs to sum k % 4

template <typename T>
struct NormRows {
  const T* x;
  const T* residual;  // may be null
  const float* weight;
  const float* bias;  // may be null
  T* out;
  T* sum;  // may be null: x + residual, rounded
  int64_t x_stride, residual_stride, width;
  float eps;
  const int64_t *x_rows, *residual_rows;  // may be null: see NormTensors

  const T* x_row(int64_t index) const { return x + (x_rows == nullptr ? index : x_rows[index]) * x_stride; }
  const T* residual_row(int64_t index) const {
    return residual + (residual_rows == nullptr ? index : residual_rows[index]) * residual_stride;
  }
};

EMBEDMUX_INLINE float widen(BFloat16Bits value) { return widen(value.bits); }
EMBEDMUX_INLINE void narrow(float value, BFloat16Bits* out) { narrow(value, &out->bits); }

// `buffer` holds width rounded up to 16 floats; its tail is the mean where the squares are summed, so that it adds 0.
template <NormKind Kind, typename T>
EMBEDMUX_INLINE void normalize_portable(const NormRows<T>& rows, int64_t index, float* buffer) {
  const int64_t width = rows.width;
  const int64_t padded = (width + kNormLanes - 1) / kNormLanes * kNormLanes;
  const T* x = rows.x_row(index);
  for (int64_t j = 0; j < width; ++j) buffer[j] = widen(x[j]);
  if (rows.residual != nullptr) {
    const T* residual = rows.residual_row(index);
    for (int64_t j = 0; j < width; ++j) buffer[j] += widen(residual[j]);
  }
  if (rows.sum != nullptr) {
    for (int64_t j = 0; j < width; ++j) narrow(buffer[j], rows.sum + index * width + j);
  }
  for (int64_t j = width; j < padded; ++j) buffer[j] = 0.0F;

  float mean = 0.0F;
  if constexpr (Kind == NormKind::layer) {
    float sums[kNormLanes] = {};
    for (int64_t j = 0; j < padded; j += kNormLanes) {
      for (int lane = 0; lane < kNormLanes; ++lane) sums[lane] += buffer[j + lane];
    }
    mean = sum_lanes(sums) / static_cast<float>(width);
    for (int64_t j = width; j < padded; ++j) buffer[j] = mean;
  }
  float squares[kNormLanes] = {};
  for (int64_t j = 0; j < padded; j += kNormLanes) {
    for (int lane = 0; lane < kNormLanes; ++lane) {
      const float distance = buffer[j + lane] - mean;
      squares[lane] += distance * distance;
    }
  }
  const float scale = 1.0F / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + rows.eps);
  T* out = rows.out + index * width;
  if (rows.bias == nullptr) {
    for (int64_t j = 0; j < width; ++j) narrow((buffer[j] - mean) * scale * rows.weight[j], out + j);
  } else {
    for (int64_t j = 0; j < width; ++j) narrow((buffer[j] - mean) * scale * rows.weight[j] + rows.bias[j], out + j);
  }
}

template <NormKind Kind, typename T>
void norm_baseline(const NormRows<T>& rows, int64_t begin, int64_t end, float* buffer) {
  for (int64_t i = begin; i < end; ++i) normalize_portable<Kind>(rows, i, buffer);
}

#ifdef EMBEDMUX_X86
template <NormKind Kind, typename T>
EMBEDMUX_AVX2 void norm_avx2(const NormRows<T>& rows, int64_t begin, int64_t end, float* buffer) {
  for (int64_t i = begin; i < end; ++i) normalize_portable<Kind>(rows, i, buffer);
}

EMBEDMUX_AVX512 inline float total(const __m512 (&sums)[kNormChains]) {
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// Whole: the width is a multiple of 64, as in models, and no vector needs a mask.
template <NormKind Kind, bool Whole, typename T>
EMBEDMUX_AVX512 inline void normalize_avx512(const NormRows<T>& rows, int64_t index, float* buffer) {
  constexpr int64_t kStep = kNormChains * kNormLanes;
  const int64_t width = rows.width;
  const auto lanes_at = [width](int64_t j) { return Whole ? first_lanes(kNormLanes) : first_lanes(width - j); };
  const T* x = rows.x_row(index);
  const T* residual = rows.residual == nullptr ? nullptr : rows.residual_row(index);
  T* sum = rows.sum == nullptr ? nullptr : rows.sum + index * width;
  T* out = rows.out + index * width;
  const float *weight = rows.weight, *bias = rows.bias;
  __m512 sums[kNormChains] = {};
  __m512 squares[kNormChains] = {};
  for (int64_t start = 0; start < width; start += kStep) {
    for (int chain = 0; chain < kNormChains; ++chain) {
      const int64_t j = start + chain * kNormLanes;
      const __mmask16 lanes = lanes_at(j);
      __m512 values = load_lanes(x + j, lanes);
      if (residual != nullptr) [[likely]]
        values = _mm512_add_ps(values, load_lanes(residual + j, lanes));
      if (sum != nullptr) store_lanes(sum + j, lanes, values);
      _mm512_storeu_ps(buffer + j, values);
      if constexpr (Kind == NormKind::layer) {
        sums[chain] = _mm512_add_ps(sums[chain], values);
      } else {
        squares[chain] = _mm512_fmadd_ps(values, values, squares[chain]);
      }
    }
  }
  const __m512 mean = _mm512_set1_ps(total(sums) / static_cast<float>(width));
  if constexpr (Kind == NormKind::layer) {
    for (int64_t start = 0; start < width; start += kStep) {
      for (int chain = 0; chain < kNormChains; ++chain) {
        const int64_t j = start + chain * kNormLanes;
        const __m512 distance = _mm512_maskz_sub_ps(lanes_at(j), _mm512_loadu_ps(buffer + j), mean);
        squares[chain] = _mm512_fmadd_ps(distance, distance, squares[chain]);
      }
    }
  }
  const float variance = total(squares) / static_cast<float>(width);
  const __m512 scale = _mm512_set1_ps(1.0F / std::sqrt(variance + rows.eps));
  for (int64_t j = 0; j < width; j += kNormLanes) {
    const __mmask16 lanes = lanes_at(j);
    __m512 unit = _mm512_loadu_ps(buffer + j);
    if constexpr (Kind == NormKind::layer) unit = _mm512_sub_ps(unit, mean);
    unit = _mm512_mul_ps(unit, scale);
    const __m512 factor = load_lanes(weight + j, lanes);
    unit = bias == nullptr ? _mm512_mul_ps(unit, factor) : _mm512_fmadd_ps(unit, factor, load_lanes(bias + j, lanes));
    store_lanes(out + j, lanes, unit);
  }
}

// Whether norm_pairs computes these rows; by the model's shape, never by the batch.
template <NormKind Kind, typename T>
bool go_in_pairs(const NormRows<T>& rows) {
  return Kind == NormKind::layer && std::is_same_v<T, WideBFloat16<true>> && rows.width % kPairWidth == 0 &&
         rows.bias != nullptr && rows.sum == nullptr;
}

template <NormKind Kind, typename T>
EMBEDMUX_AVX512 void norm_avx512(const NormRows<T>& rows, int64_t begin, int64_t end, float* buffer) {
  if (rows.width % (kNormChains * kNormLanes) == 0) {
    for (int64_t i = begin; i < end; ++i) normalize_avx512<Kind, true>(rows, i, buffer);
  } else {
    for (int64_t i = begin; i < end; ++i) normalize_avx512<Kind, false>(rows, i, buffer);
  }
}
#endif

template <NormKind Kind, typename T, Isa Level>
constexpr auto norm_kernel() {
#ifdef EMBEDMUX_X86
  if constexpr (Level == Isa::avx512) return norm_avx512<Kind, T>;
  if constexpr (Level == Isa::avx2) return norm_avx2<Kind, T>;
#endif
  if constexpr (Level == Isa::baseline) return norm_baseline<Kind, T>;
}

template <NormKind Kind, typename T, Isa Level>
void norm_rows(const NormRows<T>& rows, int64_t count) {
  constexpr int64_t kElementsPerThread = 16384;  // below this the work is done before a second thread has woken up
  constexpr auto kernel = norm_kernel<Kind, T, Level>();
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / rows.width);
#ifdef EMBEDMUX_X86
  if (go_in_pairs<Kind>(rows)) {
    std::vector<float> paired(2 * rows.width);
    pair_up(rows.weight, rows.width, paired.data());
    pair_up(rows.bias, rows.width, paired.data() + rows.width);
    const auto bits = [](const T* values) { return reinterpret_cast<const uint16_t*>(values); };
    const PairedRows work{bits(rows.x),
                          bits(rows.residual),
                          paired.data(),
                          paired.data() + rows.width,
                          reinterpret_cast<uint16_t*>(rows.out),
                          rows.x_stride,
                          rows.residual_stride,
                          rows.width,
                          rows.eps,
                          rows.x_rows,
                          rows.residual_rows};
    return parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      std::vector<float> buffer(kRowsAtOnce * rows.width);
      norm_pairs(work, begin, end, buffer.data());
    });
  }
#endif
  parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(rows.width + kNormChains * kNormLanes);
    kernel(rows, begin, end, buffer.data());
  });
}

}  // namespace embedmux
