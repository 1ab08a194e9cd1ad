// Vectors of W floats in the compiler's own vector type: one source for every instruction set, since a function with a
// target attribute lowers them to the registers it has. Everything is forced inline, because only an inlined body takes
// the caller's target. Nothing here depends on where a value stands in its row, so neither do its bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

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

}  // namespace embedmux
