// A row is read once into a float32 buffer, where its mean and variance are summed in an order that its width alone
// fixes. Weight and bias act on each column alone, so they are applied once, to the mean of the normalised rows.
#include "row_norm.h"

#include <cmath>

namespace embedmux {
namespace {

constexpr int kLanes = 16;
constexpr int kChains = 4;  // sums that grow side by side: vector k of a row belongs to sum k % 4

// A row becomes (row - mean) * scale.
struct Statistics {
  float mean, scale;
};

EMBEDMUX_INLINE float inverse_root(float squares, const FinalNorm& norm) {
  return 1.0F / std::sqrt(squares / static_cast<float>(norm.width) + norm.eps);
}

// Fills buffer with x + residual. Behind the row stand zeros for the sum, then the mean, so that the variance gets 0.
template <typename T>
EMBEDMUX_INLINE Statistics statistics_portable(const T* x, const T* residual, const FinalNorm& norm, float* buffer) {
  const int64_t width = norm.width;
  const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
  for (int64_t j = 0; j < width; ++j) buffer[j] = widen(x[j]);
  if (residual != nullptr) {
    for (int64_t j = 0; j < width; ++j) buffer[j] += widen(residual[j]);
  }
  for (int64_t j = width; j < padded; ++j) buffer[j] = 0.0F;
  float mean = 0.0F;
  if (!norm.is_rms) {
    float sums[kLanes] = {};
    for (int64_t j = 0; j < padded; j += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] += buffer[j + lane];
    }
    mean = sum_lanes(sums) / static_cast<float>(width);
    for (int64_t j = width; j < padded; ++j) buffer[j] = mean;
  }
  float squares[kLanes] = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float distance = buffer[j + lane] - mean;
      squares[lane] += distance * distance;
    }
  }
  return {mean, inverse_root(sum_lanes(squares), norm)};
}

template <typename T>
EMBEDMUX_INLINE void mean_portable(const SequenceRows<T>& rows, const FinalNorm& norm, int64_t width, float* buffer,
                                   float* out) {
  for (int64_t j = 0; j < width; ++j) out[j] = 0.0F;
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* residual = rows.residual == nullptr ? nullptr : rows.residual + i * rows.residual_stride;
    const Statistics found = statistics_portable(rows.first + i * rows.stride, residual, norm, buffer);
    for (int64_t j = 0; j < width; ++j) out[j] += (buffer[j] - found.mean) * found.scale;
  }
  const float count = static_cast<float>(rows.count);
  for (int64_t j = 0; j < width; ++j) out[j] /= count;
  if (norm.weight != nullptr) {
    for (int64_t j = 0; j < width; ++j) out[j] *= norm.weight[j];
  }
  if (norm.bias != nullptr) {
    for (int64_t j = 0; j < width; ++j) out[j] += norm.bias[j];
  }
}

template <typename T>
void mean_baseline(const SequenceRows<T>& rows, const FinalNorm& norm, int64_t width, float* buffer, float* out) {
  mean_portable(rows, norm, width, buffer, out);
}

#ifdef EMBEDMUX_X86
template <typename T>
EMBEDMUX_AVX2 void mean_avx2(const SequenceRows<T>& rows, const FinalNorm& norm, int64_t width, float* buffer,
                             float* out) {
  mean_portable(rows, norm, width, buffer, out);
}

EMBEDMUX_AVX512 inline float total(const __m512 (&sums)[kChains]) {
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

template <typename T>
EMBEDMUX_AVX512 inline Statistics statistics_avx512(const T* x, const T* residual, const FinalNorm& norm,
                                                    float* buffer) {
  const int64_t width = norm.width;
  __m512 sums[kChains] = {};
  for (int64_t start = 0; start < width; start += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) {
      const int64_t j = start + chain * kLanes;
      const __mmask16 lanes = first_lanes(width - j);
      __m512 values = load_lanes(x + j, lanes);
      if (residual != nullptr) values = _mm512_add_ps(values, load_lanes(residual + j, lanes));
      _mm512_storeu_ps(buffer + j, values);
      sums[chain] = norm.is_rms ? _mm512_fmadd_ps(values, values, sums[chain]) : _mm512_add_ps(sums[chain], values);
    }
  }
  if (norm.is_rms) return {0.0F, inverse_root(total(sums), norm)};
  const float mean = total(sums) / static_cast<float>(width);
  const __m512 centre = _mm512_set1_ps(mean);
  __m512 squares[kChains] = {};
  for (int64_t start = 0; start < width; start += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) {
      const int64_t j = start + chain * kLanes;
      const __m512 distance = _mm512_maskz_sub_ps(first_lanes(width - j), _mm512_loadu_ps(buffer + j), centre);
      squares[chain] = _mm512_fmadd_ps(distance, distance, squares[chain]);
    }
  }
  return {mean, inverse_root(total(squares), norm)};
}

template <typename T>
EMBEDMUX_AVX512 void mean_avx512(const SequenceRows<T>& rows, const FinalNorm& norm, int64_t width, float* buffer,
                                 float* out) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* residual = rows.residual == nullptr ? nullptr : rows.residual + i * rows.residual_stride;
    const Statistics found = statistics_avx512(rows.first + i * rows.stride, residual, norm, buffer);
    const __m512 centre = _mm512_set1_ps(found.mean);
    const __m512 scale = _mm512_set1_ps(found.scale);
    for (int64_t j = 0; j < width; j += kLanes) {
      const __mmask16 lanes = first_lanes(width - j);
      const __m512 distance = _mm512_sub_ps(_mm512_loadu_ps(buffer + j), centre);
      const __m512 before = i == 0 ? _mm512_setzero_ps() : load_lanes(out + j, lanes);
      store_lanes(out + j, lanes, _mm512_fmadd_ps(distance, scale, before));
    }
  }
  const __m512 count = _mm512_set1_ps(static_cast<float>(rows.count));
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 lanes = first_lanes(width - j);
    __m512 values = _mm512_div_ps(load_lanes(out + j, lanes), count);
    if (norm.weight != nullptr) values = _mm512_mul_ps(values, load_lanes(norm.weight + j, lanes));
    if (norm.bias != nullptr) values = _mm512_add_ps(values, load_lanes(norm.bias + j, lanes));
    store_lanes(out + j, lanes, values);
  }
}
#endif

}  // namespace

template <typename T>
void pool_normed_rows(const SequenceRows<T>& rows, const FinalNorm& norm, int64_t width, bool normalize, float* buffer,
                      float* out) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) {
    mean_avx512(rows, norm, width, buffer, out);
  } else if (isa() >= Isa::avx2) {
    mean_avx2(rows, norm, width, buffer, out);
  } else {
    mean_baseline(rows, norm, width, buffer, out);
  }
#else
  mean_baseline(rows, norm, width, buffer, out);
#endif
  if (normalize) to_unit_length(out, width);
}

template void pool_normed_rows(const SequenceRows<float>&, const FinalNorm&, int64_t, bool, float*, float*);
template void pool_normed_rows(const SequenceRows<uint16_t>&, const FinalNorm&, int64_t, bool, float*, float*);
template void pool_normed_rows(const SequenceRows<Float16>&, const FinalNorm&, int64_t, bool, float*, float*);

}  // namespace embedmux
