// embedmux::add_layer_norm on the CPU. A row is read once into a float32 buffer, its mean and variance are summed in
// an order that its width alone fixes, then it is written: the same steps for every row, whatever stands beside it.
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "math_avx512.h"
#include "math_portable.h"
#include "tensors.h"

namespace embedmux {
namespace {

constexpr int kLanes = 16;
constexpr int kChains = 4;                     // sums that grow side by side: vector k of a row belongs to sum k % 4
constexpr int64_t kElementsPerThread = 16384;  // below this the work is done before a second thread has woken up

template <typename T>
struct Rows {
  const T* x;
  const T* residual;  // may be null
  const float* weight;
  const float* bias;
  T* out;
  int64_t x_stride, residual_stride, width;
  float eps;
};

// `buffer` holds width rounded up to 16 floats; its tail is the mean where the variance is summed, so that it adds 0.
template <typename T>
EMBEDMUX_INLINE void normalize_portable(const Rows<T>& rows, int64_t index, float* buffer) {
  const int64_t width = rows.width;
  const int64_t padded = (width + kLanes - 1) / kLanes * kLanes;
  const T* x = rows.x + index * rows.x_stride;
  for (int64_t j = 0; j < width; ++j) buffer[j] = widen(x[j]);
  if (rows.residual != nullptr) {
    const T* residual = rows.residual + index * rows.residual_stride;
    for (int64_t j = 0; j < width; ++j) buffer[j] += widen(residual[j]);
  }
  for (int64_t j = width; j < padded; ++j) buffer[j] = 0.0F;

  float sums[kLanes] = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += buffer[j + lane];
  }
  const float mean = sum_lanes(sums) / static_cast<float>(width);
  for (int64_t j = width; j < padded; ++j) buffer[j] = mean;
  float squares[kLanes] = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float distance = buffer[j + lane] - mean;
      squares[lane] += distance * distance;
    }
  }
  const float scale = 1.0F / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + rows.eps);
  T* out = rows.out + index * width;
  for (int64_t j = 0; j < width; ++j) narrow((buffer[j] - mean) * scale * rows.weight[j] + rows.bias[j], out + j);
}

template <typename T>
void rows_baseline(const Rows<T>& rows, int64_t begin, int64_t end, float* buffer) {
  for (int64_t i = begin; i < end; ++i) normalize_portable(rows, i, buffer);
}

#ifdef EMBEDMUX_X86
template <typename T>
EMBEDMUX_AVX2 void rows_avx2(const Rows<T>& rows, int64_t begin, int64_t end, float* buffer) {
  for (int64_t i = begin; i < end; ++i) normalize_portable(rows, i, buffer);
}

EMBEDMUX_AVX512 inline float total(const __m512 (&sums)[kChains]) {
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

template <typename T>
EMBEDMUX_AVX512 void rows_avx512(const Rows<T>& rows, int64_t begin, int64_t end, float* buffer) {
  const int64_t width = rows.width;
  for (int64_t i = begin; i < end; ++i) {
    const T* x = rows.x + i * rows.x_stride;
    const T* residual = rows.residual == nullptr ? nullptr : rows.residual + i * rows.residual_stride;
    __m512 sums[kChains] = {};
    for (int64_t start = 0; start < width; start += kChains * kLanes) {
      for (int chain = 0; chain < kChains; ++chain) {
        const int64_t j = start + chain * kLanes;
        const __mmask16 lanes = first_lanes(width - j);
        __m512 values = load_lanes(x + j, lanes);
        if (residual != nullptr) values = _mm512_add_ps(values, load_lanes(residual + j, lanes));
        _mm512_storeu_ps(buffer + j, values);
        sums[chain] = _mm512_add_ps(sums[chain], values);
      }
    }
    const __m512 mean = _mm512_set1_ps(total(sums) / static_cast<float>(width));
    __m512 squares[kChains] = {};
    for (int64_t start = 0; start < width; start += kChains * kLanes) {
      for (int chain = 0; chain < kChains; ++chain) {
        const int64_t j = start + chain * kLanes;
        const __m512 distance = _mm512_maskz_sub_ps(first_lanes(width - j), _mm512_loadu_ps(buffer + j), mean);
        squares[chain] = _mm512_fmadd_ps(distance, distance, squares[chain]);
      }
    }
    const float variance = total(squares) / static_cast<float>(width);
    const __m512 scale = _mm512_set1_ps(1.0F / std::sqrt(variance + rows.eps));
    for (int64_t j = 0; j < width; j += kLanes) {
      const __mmask16 lanes = first_lanes(width - j);
      const __m512 unit = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(buffer + j), mean), scale);
      const __m512 weight = load_lanes(rows.weight + j, lanes);
      store_lanes(rows.out + i * width + j, lanes, _mm512_fmadd_ps(unit, weight, load_lanes(rows.bias + j, lanes)));
    }
  }
}
#endif

template <typename T>
void normalize_rows(const Rows<T>& rows, int64_t begin, int64_t end, float* buffer) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return rows_avx512(rows, begin, end, buffer);
  if (isa() >= Isa::avx2) return rows_avx2(rows, begin, end, buffer);
#endif
  rows_baseline(rows, begin, end, buffer);
}

template <typename T>
void normalize(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& bias,
               double eps, const at::Tensor& out) {
  const bool has_residual = residual.defined();
  const Rows<T> rows{static_cast<const T*>(x.const_data_ptr()),
                     has_residual ? static_cast<const T*>(residual.const_data_ptr()) : nullptr,
                     weight.const_data_ptr<float>(),
                     bias.const_data_ptr<float>(),
                     static_cast<T*>(out.mutable_data_ptr()),
                     x.stride(0),
                     has_residual ? residual.stride(0) : 0,
                     x.size(1),
                     static_cast<float>(eps)};
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / x.size(1));
  at::parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(x.size(1) + kChains * kLanes);
    normalize_rows(rows, begin, end, buffer.data());
  });
}

void check_vector(const at::Tensor& tensor, const char* name, const at::Tensor& x) {
  check_rank(tensor, name, 1);
  check_size(tensor, name, 0, x.size(1));
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == x.scalar_type(), name,
              " must be float32 or ", x.scalar_type(), " like x, got ", tensor.scalar_type());
}

at::Tensor add_layer_norm_cpu(const at::Tensor& x, const std::optional<at::Tensor>& residual, const at::Tensor& weight,
                              const at::Tensor& bias, double eps) {
  check_rank(x, "x", 2);
  TORCH_CHECK(x.size(1) > 0, "x must have at least one column, got shape ", x.sizes());
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "x must be float32 or bfloat16, got ",
              x.scalar_type());
  check_vector(weight, "weight", x);
  check_vector(bias, "bias", x);
  TORCH_CHECK(eps >= 0, "eps must be at least 0, got ", eps);
  const auto with_plain_rows = [](const at::Tensor& tensor) {
    return tensor.stride(1) == 1 || tensor.size(1) == 1 ? tensor : tensor.contiguous();
  };
  at::Tensor plain_residual;
  if (residual.has_value()) {
    check_rank(*residual, "residual", 2);
    check_dtype(*residual, "residual", x.scalar_type());
    check_size(*residual, "residual", 0, x.size(0));
    check_size(*residual, "residual", 1, x.size(1));
    plain_residual = with_plain_rows(*residual);
  }
  const at::Tensor out = at::empty(x.sizes(), x.options());
  const at::Tensor wide_weight = weight.to(at::kFloat).contiguous();
  const at::Tensor wide_bias = bias.to(at::kFloat).contiguous();
  if (x.scalar_type() == at::kFloat) {
    normalize<float>(with_plain_rows(x), plain_residual, wide_weight, wide_bias, eps, out);
  } else {
    normalize<uint16_t>(with_plain_rows(x), plain_residual, wide_weight, wide_bias, eps, out);
  }
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("add_layer_norm", &embedmux::add_layer_norm_cpu); }
