// float16 on vectors of W floats, beside the bfloat16 of lora_vector.h. In whole numbers, so that one source serves
// every instruction set; half.h does the same for one value.
#pragma once

#include "half.h"
#include "lora_vector.h"

namespace embedmux {

// Exact, also for subnormal numbers: the exponent is corrected by a product with 2^112.
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float load(const Float16* source) {
  typedef typename Lanes<W>::Float Float;
  typedef typename Lanes<W>::Word Word;
  typename Lanes<W>::Half half;
  std::memcpy(&half, source, sizeof(half));
  const Word word = __builtin_convertvector(half, Word);
  const Word magnitude = (word & 0x7fff) << 13, sign = (word & 0x8000) << 16;
  const Word finite = reinterpret_cast<Word>(reinterpret_cast<Float>(magnitude) * 0x1p112f);
  return reinterpret_cast<Float>(((word & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : finite) | sign);
}

// Rounds to nearest even; beyond 65519 the result is infinite, a NaN becomes 0x7e00 with its sign.
template <int W>
EMBEDMUX_INLINE void store(Float16* target, const typename Lanes<W>::Float& value, int64_t count) {
  typedef typename Lanes<W>::Float Float;
  typedef typename Lanes<W>::Word Word;
  const Word bits = reinterpret_cast<Word>(value), magnitude = bits & 0x7fffffff;
  // Adding 0.5 rounds at the last bit of a subnormal float16.
  const Word small = reinterpret_cast<Word>(reinterpret_cast<Float>(magnitude) + 0.5f) - 0x3f000000;
  const Word normal = (magnitude - 0x37fff001 + (magnitude >> 13 & 1)) >> 13;
  Word result = magnitude < 0x38800000 ? small : normal;
  result = magnitude >= 0x47800000 ? Word{} + 0x7c00 : result;
  result = magnitude > 0x7f800000 ? Word{} + 0x7e00 : result;
  const typename Lanes<W>::Half half = __builtin_convertvector(result | (bits >> 16 & 0x8000), typename Lanes<W>::Half);
  std::memcpy(target, &half, count * sizeof(Float16));
}

}  // namespace embedmux
