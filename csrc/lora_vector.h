// Vectors of W floats in the compiler's own vector type: one source for every instruction set, since a function with a
// target attribute lowers them to the registers it has. Everything is forced inline, because only an inlined body takes
// the caller's target. Nothing here depends on where a value stands in its row, so neither do its bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "lora_segments.h"

#define EMBEDMUX_INLINE __attribute__((always_inline)) inline

namespace embedmux {

// Passing wide vectors by value has no settled calling convention without AVX-512; inlined functions do not call.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

template <int W>
struct Lanes {
  typedef float Float __attribute__((vector_size(4 * W)));
  typedef uint32_t Word __attribute__((vector_size(4 * W)));
  typedef uint16_t Half __attribute__((vector_size(2 * W)));
};

struct BFloat16Bits {
  uint16_t bits;
};

struct Float16Bits {
  uint16_t bits;
};

template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float load(const float* source) {
  typename Lanes<W>::Float value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float load(const BFloat16Bits* source) {
  typename Lanes<W>::Half half;
  std::memcpy(&half, source, sizeof(half));
  return reinterpret_cast<typename Lanes<W>::Float>(__builtin_convertvector(half, typename Lanes<W>::Word) << 16);
}

// Exact: the exponent is moved to float32's place and set right by a power of two, which subnormals need as well.
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float load(const Float16Bits* source) {
  typedef typename Lanes<W>::Word Word;
  typedef typename Lanes<W>::Float Float;
  typename Lanes<W>::Half half;
  std::memcpy(&half, source, sizeof(half));
  const Word word = __builtin_convertvector(half, Word), magnitude = (word & 0x7fff) << 13;
  Word bits = reinterpret_cast<Word>(reinterpret_cast<Float>(magnitude) * 0x1p112f);
  bits = magnitude >= 0x0f800000 ? bits | 0x7f800000 : bits;  // infinity and NaN
  return reinterpret_cast<Float>(bits | (word & 0x8000) << 16);
}

// The first `count` lanes; the others are zero.
template <int W, typename Element>
EMBEDMUX_INLINE typename Lanes<W>::Float load_part(const Element* source, int64_t count) {
  Element padded[W] = {};
  std::memcpy(padded, source, count * sizeof(Element));
  return load<W>(padded);
}

template <int W>
EMBEDMUX_INLINE void store(float* target, const typename Lanes<W>::Float& value, int64_t count) {
  std::memcpy(target, &value, count * sizeof(float));
}

// To nearest, ties to even; a NaN stays one.
template <int W>
EMBEDMUX_INLINE void store(BFloat16Bits* target, const typename Lanes<W>::Float& value, int64_t count) {
  typedef typename Lanes<W>::Word Word;
  const Word bits = reinterpret_cast<Word>(value);
  const Word rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const Word kept = (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16 | 0x40) : rounded;
  const typename Lanes<W>::Half half = __builtin_convertvector(kept, typename Lanes<W>::Half);
  std::memcpy(target, &half, count * sizeof(BFloat16Bits));
}

// To nearest, ties to even, as the processor's own conversion; a NaN stays one.
template <int W>
EMBEDMUX_INLINE void store(Float16Bits* target, const typename Lanes<W>::Float& value, int64_t count) {
  typedef typename Lanes<W>::Word Word;
  typedef typename Lanes<W>::Float Float;
  const Word bits = reinterpret_cast<Word>(value), magnitude = bits & 0x7fffffff;
  const Word normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Adding one half leaves a subnormal's bits, rounded, at the lower end.
  const Word subnormal = reinterpret_cast<Word>(reinterpret_cast<Float>(magnitude) + 0.5f) - 0x3f000000;
  Word rounded = magnitude < 0x38800000 ? subnormal : normal;
  rounded = magnitude >= 0x47800000 ? Word{} + 0x7c00 : rounded;
  rounded = magnitude > 0x7f800000 ? Word{} + 0x7e00 : rounded;
  const typename Lanes<W>::Half half =
      __builtin_convertvector(rounded | (bits >> 16 & 0x8000), typename Lanes<W>::Half);
  std::memcpy(target, &half, count * sizeof(Float16Bits));
}

// Lane l of a + b's neighbours: a[l] + a[l ^ S] where bit S of l is clear, b[l] + b[l ^ S] where it is set.
template <int W, int S, size_t... L>
EMBEDMUX_INLINE void fold(typename Lanes<W>::Float& a, const typename Lanes<W>::Float& b, std::index_sequence<L...>) {
  a = __builtin_shufflevector(a, b, (L & S ? W + L : L)...) +
      __builtin_shufflevector(a, b, (L & S ? W + (L ^ S) : L ^ S)...);
}

// Turns W vectors into one of their sums, lane l for vector l. Every sum has the same tree: neighbours at distance 1,
// 2, 4 and on, so it does not depend on l.
template <int W, int S = 1>
EMBEDMUX_INLINE void sum_lanes(typename Lanes<W>::Float* vectors) {
  if constexpr (S < W) {
    for (int i = 0; i < W; i += 2 * S) fold<W, S>(vectors[i], vectors[i + S], std::make_index_sequence<W>());
    sum_lanes<W, 2 * S>(vectors);
  }
}

// x Φ(x) by a polynomial for erf(x / √2) / x in x², fitted on |x| <= 5.5 to 8e-8 (Lawson's iteration; Chebyshev, then
// powers of x² scaled to [-1, 1]); beyond, erf is ±1 in float32. No division, no exponential, no table.
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float gelu(const typename Lanes<W>::Float& x) {
  typedef typename Lanes<W>::Float Float;
  constexpr float kLimit = 5.5f;
  constexpr float kPowers[] = {1.076135407e-03f, -2.737650928e-03f, 2.047757798e-03f, -2.458825292e-03f,
                               8.472666189e-03f, -1.534931438e-02f, 2.093730354e-02f, -2.934274578e-02f,
                               4.057594249e-02f, -5.222493358e-02f, 6.416348564e-02f, -7.757453408e-02f,
                               9.547397928e-02f, -1.283449501e-01f, 2.571038732e-01f};
  const Float scaled = x * x * (2.0f / (kLimit * kLimit)) - 1.0f;
  Float ratio = scaled * 0.0f + kPowers[0];
  for (int power = 1; power < 15; ++power) ratio = ratio * scaled + kPowers[power];
  Float erf = ratio * x;
  erf = x > kLimit ? Float{} + 1.0f : erf;
  erf = x < -kLimit ? Float{} - 1.0f : erf;
  return x * 0.5f * (erf + 1.0f);
}

// The same for results that are rounded to 8 bits: |error| < 5e-5. Φ(x) - 1/2 = x P(x²), x² held at the square of the
// limit, fitted by the error of x Φ(x); beyond, x P grows on, and Φ is held in 0 .. 1.
constexpr float kFineGelu[] = {4.546960519e-11f,  -4.515220011e-09f, 1.986133184e-07f,
                               -5.147471537e-06f, 8.848874141e-05f,  -1.079075799e-03f,
                               9.718772294e-03f,  -6.619027176e-02f, 3.988192146e-01f};
constexpr float kFineGeluLimit = 4.25f;

template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float gelu_of_8_bits(const typename Lanes<W>::Float& x) {
  typedef typename Lanes<W>::Float Float;
  Float square = x * x;
  square = square < kFineGeluLimit * kFineGeluLimit ? square : Float{} + kFineGeluLimit * kFineGeluLimit;
  Float slope = square * kFineGelu[0] + kFineGelu[1];
  for (int power = 2; power < 9; ++power) slope = slope * square + kFineGelu[power];
  Float phi = x * slope + 0.5f;
  phi = phi < 0.0f ? Float{} : phi;
  phi = phi > 1.0f ? Float{} + 1.0f : phi;
  return x * phi;
}

// The same for sums of int8 codes, where a step is ten times the error: |error| < 1.1e-3 for |x| < 8, below 1.4e-4 |x|
// beyond. Here x itself is held in Φ.
constexpr float kCoarseGelu[] = {1.055655967e-05f, -4.151407020e-04f, 6.711921966e-03f, -5.980766427e-02f,
                                 3.942793744e-01f};
constexpr float kCoarseGeluLimit = 3.4f;

template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float gelu_of_codes(const typename Lanes<W>::Float& x) {
  typedef typename Lanes<W>::Float Float;
  Float held = x < kCoarseGeluLimit ? x : Float{} + kCoarseGeluLimit;
  held = held > -kCoarseGeluLimit ? held : Float{} - kCoarseGeluLimit;
  const Float square = held * held;
  Float slope = square * kCoarseGelu[0] + kCoarseGelu[1];
  for (int power = 2; power < 5; ++power) slope = slope * square + kCoarseGelu[power];
  return x * (held * slope + 0.5f);
}

// How exact an activation is wanted: of float32, of results with 8 bits, of sums of int8 codes.
enum class Exactness { whole, bits_8, codes };

template <int W, Exactness E>
EMBEDMUX_INLINE typename Lanes<W>::Float gelu_as(const typename Lanes<W>::Float& x) {
  if constexpr (E == Exactness::whole) return gelu<W>(x);
  if constexpr (E == Exactness::bits_8) return gelu_of_8_bits<W>(x);
  return gelu_of_codes<W>(x);
}

// 1 / (1 + e^-x). 2^y with a relative error below 3e-7 by a minimax polynomial on [-1/2, 1/2]; y is held where 2^y is a
// normal number, beyond which the result is 0 or 1 in float32.
template <int W>
EMBEDMUX_INLINE typename Lanes<W>::Float sigmoid(const typename Lanes<W>::Float& x) {
  typedef typename Lanes<W>::Float Float;
  typedef typename Lanes<W>::Word Word;
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
  Float power = x * -1.44269504f;
  power = power > 126.0f ? Float{} + 126.0f : power;
  power = power < -126.0f ? Float{} - 126.0f : power;
  const Float shifted = power + kRounder, rest = power - (shifted - kRounder);
  Float value = rest * 0.0013264591f + 0.0096716192f;
  value = value * rest + 0.0555073507f;
  value = value * rest + 0.2402224094f;
  value = value * rest + 0.6931470037f;
  value = value * rest + 1.0f;
  value = reinterpret_cast<Float>(reinterpret_cast<Word>(value) + (reinterpret_cast<Word>(shifted) << 23));
  return 1.0f / (value + 1.0f);
}

// gelu_tanh is x (1 + tanh(u)) / 2 = x sigmoid(2u) with u = √(2/π) (x + 0.044715 x³).
template <int W, Activation A, Exactness E = Exactness::whole>
EMBEDMUX_INLINE typename Lanes<W>::Float activate(const typename Lanes<W>::Float& x) {
  if constexpr (A == Activation::gelu) return gelu_as<W, E>(x);
  if constexpr (A == Activation::gelu_tanh) return x * sigmoid<W>(x * (x * x * 0.0713548163f + 1.5957691216f));
  if constexpr (A == Activation::silu) return x * sigmoid<W>(x);
  if constexpr (A == Activation::relu) return x < 0.0f ? typename Lanes<W>::Float{} : x;
  return x;
}

}  // namespace embedmux
