// Activations on vectors of W floats, in the style of lora_vector.h, where the exact GELU stands: straight-line code in
// which a value's bits do not depend on its lane, its neighbours or the place in its row.
#pragma once

#include "lora_vector.h"

namespace embedmux {

// e^x with a relative error below 2e-7: x = n ln 2 + r, ln 2 in two parts of which the first times n is exact; e^r by a
// polynomial fitted on |r| <= ln 2 / 2 (Lawson's iteration, relative). x is held between -87 and
// 87, which x / (1 + e^-x) cannot tell from its limits; it forgives, too, that the result for a NaN is not defined.
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float exp_lanes(const typename Lanes<W>::Float& x) {
  typedef typename Lanes<W>::Float Float;
  typedef typename Lanes<W>::Word Word;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
  constexpr float kPowers[] = {1.38145406e-03f, 8.36874545e-03f, 4.16683890e-02f, 1.66665211e-01f, 4.99999940e-01f};
  const Float zero = {};
  const Float low = x < -87.0f ? zero - 87.0f : x;
  const Float inside = low > 87.0f ? zero + 87.0f : low;
  const Float shifted = inside * 1.44269504f + kRounder;
  const Float whole = shifted - kRounder;
  const Float rest = inside - whole * 0.693359375f - whole * -2.12194440e-4f;
  Float value = zero + kPowers[0];
  for (int power = 1; power < 5; ++power) value = value * rest + kPowers[power];
  value = (value * rest + 1.0f) * rest + 1.0f;
  return reinterpret_cast<Float>(reinterpret_cast<Word>(value) + (reinterpret_cast<Word>(shifted) << 23));
}

// x σ(steepness · x) for silu, where both arguments are x; gelu_tanh has another second argument.
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float times_sigmoid(const typename Lanes<W>::Float& x,
                                                       const typename Lanes<W>::Float& logit) {
  return x / (exp_lanes<W>(-logit) + 1.0f);
}

// x σ(x).
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float silu(const typename Lanes<W>::Float& x) {
  return times_sigmoid<W>(x, x);
}

// x (1 + tanh(u)) / 2 with u = √(2/π) (x + 0.044715 x³), which is x σ(2u): without tanh's loss where it nears -1.
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float gelu_tanh(const typename Lanes<W>::Float& x) {
  constexpr float kTwice = 1.59576912f;  // 2 √(2/π)
  return times_sigmoid<W>(x, x * (x * x * (kTwice * 0.044715f) + kTwice));
}

}  // namespace embedmux
