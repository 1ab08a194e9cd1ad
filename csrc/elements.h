// Which code serves a dtype on this processor. For AVX-512, 16-bit elements have types of their own, whose load and
// store (lora_vector.h) are the instructions that it has for them: the loops of a kernel stay as they are.
#pragma once

#include <ATen/ATen.h>

#include <type_traits>

#include "float16_lanes.h"
#include "half.h"
#include "lora_vector.h"
#include "math_avx512.h"
#include "simd.h"

namespace embedmux {

#ifdef EMBEDMUX_X86
// Native: with AVX512_BF16, beyond AVX-512. The bits are the same.
template <bool Native>
struct WideBFloat16 {
  uint16_t bits;
};

struct WideFloat16 {
  Float16 value;
};

template <bool Native>
EMBEDMUX_AVX512 inline __m512 load_lanes(const WideBFloat16<Native>* source, __mmask16 lanes) {
  return load_lanes(&source->bits, lanes);
}

EMBEDMUX_AVX512 inline __m512 load_lanes(const WideFloat16* source, __mmask16 lanes) {
  return load_lanes(&source->value, lanes);
}

// The instruction takes subnormal numbers for zero and keeps what a NaN carries: these rare values go the other way.
// Written out, it can stand in functions for plain AVX-512, whose callers have asked for it.
template <bool Native>
EMBEDMUX_AVX512 inline void store_lanes(WideBFloat16<Native>* target, __mmask16 lanes, __m512 values) {
  constexpr int kQuietNan = 0x01, kSubnormal = 0x20, kSignallingNan = 0x80;
  if constexpr (Native) {
    if (_mm512_fpclass_ps_mask(values, kQuietNan | kSubnormal | kSignallingNan) == 0) [[likely]] {
      __m256i rounded;
      __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(values));
      _mm256_mask_storeu_epi16(target, lanes, rounded);
      return;
    }
  }
  store_lanes(&target->bits, lanes, values);
}

EMBEDMUX_AVX512 inline void store_lanes(WideFloat16* target, __mmask16 lanes, __m512 values) {
  store_lanes(&target->value, lanes, values);
}

template <typename T>
concept WideElement =
    std::is_same_v<T, WideFloat16> || std::is_same_v<T, WideBFloat16<false>> || std::is_same_v<T, WideBFloat16<true>>;

template <int W, WideElement T>
EMBEDMUX_AVX512 inline typename Lanes<W>::Float load(const T* source) {
  static_assert(W == 16);
  return load_lanes(source, first_lanes(W));
}

template <int W, WideElement T>
EMBEDMUX_AVX512 inline typename Lanes<W>::Float load_part(const T* source, int64_t count) {
  static_assert(W == 16);
  return load_lanes(source, first_lanes(count));
}

template <int W, WideElement T>
EMBEDMUX_AVX512 inline void store(T* target, const typename Lanes<W>::Float& value, int64_t count) {
  static_assert(W == 16);
  store_lanes(target, first_lanes(count), value);
}
#endif

// Runs run.operator()<T, Level>() with the widest level the processor has of baseline, avx2 and avx512, and with the
// element type that serves dtype (float32, bfloat16 or float16) best there.
template <typename Run>
void choose_kernel(at::ScalarType dtype, const Run& run) {
  const auto plain = [&]<Isa Level>() {
    if (dtype == at::kFloat) return run.template operator()<float, Level>();
    if (dtype == at::kHalf) return run.template operator()<Float16, Level>();
    run.template operator()<BFloat16Bits, Level>();
  };
#ifdef EMBEDMUX_X86
  if (isa() >= Isa::avx512) {
    if (dtype == at::kFloat) return run.template operator()<float, Isa::avx512>();
    if (dtype == at::kHalf) return run.template operator()<WideFloat16, Isa::avx512>();
    if (isa() >= Isa::avx512_bf16) return run.template operator()<WideBFloat16<true>, Isa::avx512>();
    return run.template operator()<WideBFloat16<false>, Isa::avx512>();
  }
  if (isa() >= Isa::avx2) return plain.template operator()<Isa::avx2>();
#endif
  plain.template operator()<Isa::baseline>();
}

}  // namespace embedmux
