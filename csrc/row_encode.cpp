// A division, not a product with the inverse: codes must equal those that sentence-transformers computes in float32,
// also at the edges of the steps.
#include "row_encode.h"

#include <algorithm>
#include <cstring>

#include "half.h"

namespace embedmux {
namespace {

constexpr int kLanes = 16;

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

template <typename T>
EMBEDMUX_INLINE void rounded_portable(const float* row, int64_t width, T* out) {
  for (int64_t j = 0; j < width; ++j) narrow(row[j], out + j);
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
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 lanes = first_lanes(width - j);
    const __m512 above = _mm512_sub_ps(load_lanes(row + j, lanes), load_lanes(starts + j, lanes));
    const __m512 level = _mm512_maskz_div_ps(lanes, above, load_lanes(steps + j, lanes));
    // Both give their second operand where the first is NaN.
    const __m512 clipped = _mm512_min_ps(_mm512_max_ps(level, _mm512_setzero_ps()), _mm512_set1_ps(255.0F));
    const __m512i codes = _mm512_add_epi32(_mm512_cvttps_epi32(clipped), _mm512_set1_epi32(bias));
    _mm512_mask_cvtepi32_storeu_epi8(out + j, lanes, codes);
  }
}

template <typename T>
EMBEDMUX_AVX2 void rounded_avx2(const float* row, int64_t width, T* out) {
  rounded_portable(row, width, out);
}

template <typename T>
EMBEDMUX_AVX512 void rounded_avx512(const float* row, int64_t width, T* out) {
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 lanes = first_lanes(width - j);
    store_lanes(out + j, lanes, load_lanes(row + j, lanes));
  }
}
#endif

void scalar_codes(const float* row, const float* starts, const float* steps, int64_t width, int bias, uint8_t* out) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return scalar_codes_avx512(row, starts, steps, width, bias, out);
  if (isa() >= Isa::avx2) return scalar_codes_avx2(row, starts, steps, width, bias, out);
#endif
  scalar_codes_baseline(row, starts, steps, width, bias, out);
}

template <typename T>
void rounded(const float* row, int64_t width, T* out) {
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) return rounded_avx512(row, width, out);
  if (isa() >= Isa::avx2) return rounded_avx2(row, width, out);
#endif
  rounded_portable(row, width, out);
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

}  // namespace

RowEncoder::RowEncoder(const std::string& encoding, const std::optional<at::Tensor>& ranges, int64_t dimensions)
    : dimensions_(dimensions), width_(dimensions) {
  if (encoding == "float32") {
    kind_ = Kind::copy, dtype_ = at::kFloat;
  } else if (encoding == "float16") {
    kind_ = Kind::half, dtype_ = at::kHalf;
  } else if (encoding == "bfloat16") {
    kind_ = Kind::bfloat, dtype_ = at::kBFloat16;
  } else if (encoding == "binary" || encoding == "ubinary") {
    kind_ = Kind::bits, dtype_ = encoding == "binary" ? at::kChar : at::kByte;
    width_ = (dimensions + 7) / 8;
  } else {
    TORCH_CHECK(encoding == "int8" || encoding == "uint8",
                "encoding must be float32, float16, bfloat16, int8, uint8, binary or ubinary, got '", encoding, "'");
    TORCH_CHECK(ranges.has_value(), "ranges must be given for ", encoding,
                ": calibrate first, [2, D] with the smallest and the largest value of each dimension");
    kind_ = Kind::scalar, dtype_ = encoding == "int8" ? at::kChar : at::kByte;
    take_ranges(*ranges);
  }
}

void RowEncoder::take_ranges(const at::Tensor& ranges) {
  check_rank(ranges, "ranges", 2);
  check_dtype(ranges, "ranges", at::kFloat);
  check_size(ranges, "ranges", 0, 2);
  check_size(ranges, "ranges", 1, dimensions_);
  ranges_ = ranges.contiguous();
  const float* starts = ranges_.const_data_ptr<float>();
  steps_.resize(dimensions_);
  for (int64_t j = 0; j < dimensions_; ++j) {
    const float step = (starts[dimensions_ + j] - starts[j]) / 255.0F;
    steps_[j] = step == 0.0F ? 1.0F : step;
  }
}

void RowEncoder::encode(const float* row, void* codes) const {
  auto* bytes = static_cast<uint8_t*>(codes);
  const bool is_signed = dtype_ == at::kChar;
  switch (kind_) {
    case Kind::copy:
      std::memcpy(codes, row, dimensions_ * sizeof(float));
      break;
    case Kind::half:
      rounded(row, dimensions_, static_cast<Float16*>(codes));
      break;
    case Kind::bfloat:
      rounded(row, dimensions_, static_cast<uint16_t*>(codes));
      break;
    case Kind::scalar:
      scalar_codes(row, ranges_.const_data_ptr<float>(), steps_.data(), dimensions_, is_signed ? -128 : 0, bytes);
      break;
    case Kind::bits:
      // Minus 128 in two's complement is the highest bit flipped.
      sign_bits(row, dimensions_, is_signed ? 0x80 : 0, bytes);
      break;
  }
}

}  // namespace embedmux
