// embedmux::quantize_rows on the CPU. A division, not a product with the inverse: codes must equal those that
// sentence-transformers computes in float32, also at the edges of the steps.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "math_portable.h"
#include "tensors.h"

namespace embedmux {
namespace {

constexpr int64_t kElementsPerThread = 16384;

// row -> code + bias, code = clip(floor((x - start) / step), 0, 255); NaN becomes code 0.
EMBEDMUX_INLINE void scalar_codes_portable(const float* row, const float* starts, const float* steps, int64_t width,
                                           int bias, uint8_t* out) {
  for (int64_t j = 0; j < width; ++j) {
    const float level = (row[j] - starts[j]) / steps[j];
    const float low = level > 0.0F ? level : 0.0F;
    const float clipped = low < 255.0F ? low : 255.0F;
    // From 0 to 255 the conversion, which cuts towards zero, is floor.
    out[j] = static_cast<uint8_t>(static_cast<int>(clipped) + bias);
  }
}

void scalar_codes_baseline(const float* row, const float* starts, const float* steps, int64_t width, int bias,
                           uint8_t* out) {
  scalar_codes_portable(row, starts, steps, width, bias, out);
}

#ifdef EMBEDMUX_X86
EMBEDMUX_AVX2 void scalar_codes_avx2(const float* row, const float* starts, const float* steps, int64_t width, int bias,
                                     uint8_t* out) {
  scalar_codes_portable(row, starts, steps, width, bias, out);
}

EMBEDMUX_AVX512 void scalar_codes_avx512(const float* row, const float* starts, const float* steps, int64_t width,
                                         int bias, uint8_t* out) {
  scalar_codes_portable(row, starts, steps, width, bias, out);
}
#endif

void scalar_codes(const float* row, const float* starts, const float* steps, int64_t width, int bias, uint8_t* out) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return scalar_codes_avx512(row, starts, steps, width, bias, out);
  if (isa() >= Isa::avx2) return scalar_codes_avx2(row, starts, steps, width, bias, out);
#endif
  scalar_codes_baseline(row, starts, steps, width, bias, out);
}

// Eight signs, the first in the highest bit; NaN counts as not above zero.
uint8_t sign_byte(const float* values) {
#ifdef EMBEDMUX_X86
  const __m128 zero = _mm_setzero_ps();
  const __m128 first = _mm_loadu_ps(values);
  const __m128 second = _mm_loadu_ps(values + 4);
  const int high = _mm_movemask_ps(_mm_cmpgt_ps(_mm_shuffle_ps(first, first, _MM_SHUFFLE(0, 1, 2, 3)), zero));
  const int low = _mm_movemask_ps(_mm_cmpgt_ps(_mm_shuffle_ps(second, second, _MM_SHUFFLE(0, 1, 2, 3)), zero));
  return static_cast<uint8_t>(high << 4 | low);
#else
  int byte = 0;
  for (int bit = 0; bit < 8; ++bit) byte |= (values[bit] > 0.0F) << (7 - bit);
  return static_cast<uint8_t>(byte);
#endif
}

void sign_bits(const float* row, int64_t width, uint8_t flip, uint8_t* out) {
  const int64_t whole = width / 8;
  for (int64_t i = 0; i < whole; ++i) out[i] = sign_byte(row + 8 * i) ^ flip;
  if (width % 8 == 0) return;
  float tail[8] = {};
  std::copy(row + 8 * whole, row + width, tail);
  out[whole] = sign_byte(tail) ^ flip;
}

at::Tensor to_signs(const at::Tensor& rows, bool is_signed) {
  const int64_t width = rows.size(1);
  const int64_t bytes = (width + 7) / 8;
  at::Tensor out = at::empty({rows.size(0), bytes}, rows.options().dtype(is_signed ? at::kChar : at::kByte));
  const float* source = rows.const_data_ptr<float>();
  auto* target = static_cast<uint8_t*>(out.mutable_data_ptr());
  // Minus 128 in two's complement is the highest bit flipped.
  const uint8_t flip = is_signed ? 0x80 : 0;
  at::parallel_for(0, rows.size(0), std::max<int64_t>(1, 8 * kElementsPerThread / width),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i)
                       sign_bits(source + i * width, width, flip, target + i * bytes);
                   });
  return out;
}

at::Tensor to_codes(const at::Tensor& rows, const at::Tensor& ranges, bool is_signed) {
  const int64_t width = rows.size(1);
  check_rank(ranges, "ranges", 2);
  check_dtype(ranges, "ranges", at::kFloat);
  check_size(ranges, "ranges", 0, 2);
  check_size(ranges, "ranges", 1, width);
  const at::Tensor plain = ranges.contiguous();
  const float* starts = plain.const_data_ptr<float>();
  std::vector<float> steps(width);
  for (int64_t j = 0; j < width; ++j) {
    const float step = (starts[width + j] - starts[j]) / 255.0F;
    steps[j] = step == 0.0F ? 1.0F : step;
  }
  at::Tensor out = at::empty(rows.sizes(), rows.options().dtype(is_signed ? at::kChar : at::kByte));
  const float* source = rows.const_data_ptr<float>();
  auto* target = static_cast<uint8_t*>(out.mutable_data_ptr());
  at::parallel_for(0, rows.size(0), std::max<int64_t>(1, kElementsPerThread / width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      scalar_codes(source + i * width, starts, steps.data(), width, is_signed ? -128 : 0, target + i * width);
    }
  });
  return out;
}

at::Tensor quantize_rows_cpu(const at::Tensor& rows, c10::string_view encoding_name,
                             const std::optional<at::Tensor>& ranges) {
  const std::string encoding(encoding_name);
  check_rank(rows, "rows", 2);
  check_dtype(rows, "rows", at::kFloat);
  TORCH_CHECK(rows.size(1) > 0, "rows must have at least one column, got shape ", rows.sizes());
  if (encoding == "float32") return rows.clone(at::MemoryFormat::Contiguous);
  if (encoding == "float16") return rows.to(at::kHalf).contiguous();
  if (encoding == "bfloat16") return rows.to(at::kBFloat16).contiguous();
  const at::Tensor plain = rows.contiguous();
  if (encoding == "ubinary" || encoding == "binary") return to_signs(plain, encoding == "binary");
  TORCH_CHECK(encoding == "int8" || encoding == "uint8",
              "encoding must be float32, float16, bfloat16, int8, uint8, binary or ubinary, got '", encoding, "'");
  TORCH_CHECK(ranges.has_value(), "ranges must be given for ", encoding,
              ": calibrate first, [2, D] with the smallest and the largest value of each dimension");
  return to_codes(plain, *ranges, encoding == "int8");
}

}  // namespace
}  // namespace embedmux

TORCH_LIBRARY_IMPL(embedmux, CPU, library) { library.impl("quantize_rows", &embedmux::quantize_rows_cpu); }
