// embedmux::pool_normalize on the CPU: one pass over a sequence's rows, float32 sums in token order.
#include <algorithm>
#include <cmath>
#include <string>

#include "math_portable.h"
#include "tensors.h"

namespace embedmux {
namespace {

constexpr int kLanes = 16;

// The rows [first, first + count) of `width` leading values, `stride` elements apart.
template <typename T>
struct Rows {
  const T* first;
  int64_t count, stride, width;
};

// The mean of the rows (of one row: the row itself), then its unit vector; the norm is summed over 16 lanes.
template <typename T>
EMBEDMUX_INLINE void pool_portable(const Rows<T>& rows, bool normalize, float* out) {
  for (int64_t j = 0; j < rows.width; ++j) out[j] = widen(rows.first[j]);
  for (int64_t i = 1; i < rows.count; ++i) {
    const T* row = rows.first + i * rows.stride;
    for (int64_t j = 0; j < rows.width; ++j) out[j] += widen(row[j]);
  }
  const float count = static_cast<float>(rows.count);
  for (int64_t j = 0; j < rows.width; ++j) out[j] /= count;
  if (!normalize) return;

  float squares[kLanes] = {};
  const int64_t whole = rows.width / kLanes * kLanes;
  for (int64_t j = 0; j < whole; j += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) squares[lane] += out[j + lane] * out[j + lane];
  }
  for (int64_t j = whole; j < rows.width; ++j) squares[j - whole] += out[j] * out[j];
  // A norm this small is that of a zero vector: torch.nn.functional.normalize divides by at least as much.
  const float norm = std::max(std::sqrt(sum_lanes(squares)), 1e-12F);
  for (int64_t j = 0; j < rows.width; ++j) out[j] /= norm;
}

template <typename T>
void pool_baseline(const Rows<T>& rows, bool normalize, float* out) {
  pool_portable(rows, normalize, out);
}

#ifdef EMBEDMUX_X86
template <typename T>
EMBEDMUX_AVX2 void pool_avx2(const Rows<T>& rows, bool normalize, float* out) {
  pool_portable(rows, normalize, out);
}

template <typename T>
EMBEDMUX_AVX512 void pool_avx512(const Rows<T>& rows, bool normalize, float* out) {
  pool_portable(rows, normalize, out);
}
#endif

template <typename T>
void pool_sequence(const Rows<T>& rows, bool normalize, float* out) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return pool_avx512(rows, normalize, out);
  if (isa() >= Isa::avx2) return pool_avx2(rows, normalize, out);
#endif
  pool_baseline(rows, normalize, out);
}

template <typename T>
void pool_all(const at::Tensor& hidden, const int32_t* offsets, const std::string& pooling, bool normalize,
              const at::Tensor& out) {
  const int64_t stride = hidden.stride(0);
  const T* source = static_cast<const T*>(hidden.const_data_ptr());
  float* target = out.mutable_data_ptr<float>();
  at::parallel_for(0, out.size(0), 8, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t first = pooling == "last" ? offsets[s + 1] - 1 : offsets[s];
      const int64_t count = pooling == "mean" ? offsets[s + 1] - offsets[s] : 1;
      pool_sequence<T>({source + first * stride, count, stride, out.size(1)}, normalize, target + s * out.size(1));
    }
  });
}

at::Tensor pool_normalize_cpu(const at::Tensor& hidden, const at::Tensor& offsets, c10::string_view pooling_name,
                              int64_t dimensions, bool normalize) {
  const std::string pooling(pooling_name);
  check_rank(hidden, "hidden", 2);
  TORCH_CHECK(hidden.scalar_type() == at::kFloat || hidden.scalar_type() == at::kBFloat16,
              "hidden must be float32 or bfloat16, got ", hidden.scalar_type());
  check_offsets(offsets, "offsets", hidden.size(0));
  TORCH_CHECK(pooling == "mean" || pooling == "cls" || pooling == "last", "pooling must be mean, cls or last, got '",
              pooling, "'");
  TORCH_CHECK(dimensions >= 1 && dimensions <= hidden.size(1), "dimensions must be from 1 to the hidden size ",
              hidden.size(1), ", got ", dimensions);
  const int32_t* values = offsets.const_data_ptr<int32_t>();
  const int64_t sequences = offsets.numel() - 1;
  for (int64_t s = 0; s < sequences; ++s) {
    TORCH_CHECK(values[s + 1] > values[s], "offsets must give every sequence a row to pool, sequence ", s, " has none");
  }
  const at::Tensor rows = hidden.stride(1) == 1 || hidden.size(1) == 1 ? hidden : hidden.contiguous();
  at::Tensor out = at::empty({sequences, dimensions}, hidden.options().dtype(at::kFloat));
  if (hidden.scalar_type() == at::kFloat) {
    pool_all<float>(rows, values, pooling, normalize, out);
  } else {
    pool_all<uint16_t>(rows, values, pooling, normalize, out);
  }
  return out;
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("pool_normalize", &embedmux::pool_normalize_cpu); }
