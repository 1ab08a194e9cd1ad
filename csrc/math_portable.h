// Plain-C++ pieces for kernels whose loops the compiler widens. They must be inlined: a function with a target
// attribute then compiles them for its own instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

#define EMBEDMUX_INLINE __attribute__((always_inline)) inline

namespace embedmux {

EMBEDMUX_INLINE float widen(float value) { return value; }

// bfloat16 is the upper half of a float32.
EMBEDMUX_INLINE float widen(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

EMBEDMUX_INLINE void narrow(float value, float* out) { *out = value; }

// Rounds to nearest even as torch does; a NaN becomes the quiet NaN 0x7FC0.
EMBEDMUX_INLINE void narrow(float value, uint16_t* out) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  *out = static_cast<uint16_t>(value == value ? rounded : 0x7FC0);
}

// The sum of 16 lanes as a balanced tree, so that its order is the same wherever it is compiled.
EMBEDMUX_INLINE float sum_lanes(const float (&lanes)[16]) {
  float partial[8];
  for (int i = 0; i < 8; ++i) partial[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; ++i) partial[i] += partial[i + 4];
  return (partial[0] + partial[2]) + (partial[1] + partial[3]);
}

// 2^x with a relative error below 3e-7, or 0 below 2^-126 (and for -inf); NaN stays NaN. For x up to 126.
EMBEDMUX_INLINE float exp2_portable(float x) {
  constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
  const float inside = x > -126.0F ? x : -126.0F;
  const float shifted = inside + kRounder;
  const float rest = inside - (shifted - kRounder);
  float value = 0.0013264591F;
  value = value * rest + 0.0096716192F;
  value = value * rest + 0.0555073507F;
  value = value * rest + 0.2402224094F;
  value = value * rest + 0.6931470037F;
  value = value * rest + 1.0F;
  uint32_t whole, bits;
  std::memcpy(&whole, &shifted, sizeof whole);
  std::memcpy(&bits, &value, sizeof bits);
  bits += whole << 23;
  std::memcpy(&value, &bits, sizeof value);
  value = x < -126.0F ? 0.0F : value;
  return x == x ? value : x;
}

}  // namespace embedmux
