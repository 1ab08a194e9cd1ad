// maxsim in bfloat16 and int8 with AVX-512 BF16 and VNNI.
#define EMBEDMUX_MAXSIM_TARGET EMBEDMUX_AVX512_BF16
#include "maxsim_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux::maxsim {
namespace {

struct Pairs {
  EMBEDMUX_AVX512_BF16 static inline __m512i start(const uint32_t*) { return _mm512_setzero_si512(); }
  EMBEDMUX_AVX512_BF16 static inline __m512i meet(__m512i token) { return token; }
  EMBEDMUX_AVX512_BF16 static inline __m512i add(__m512i sums, __m512i token, __m512i query) {
    return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sums), (__m512bh)token, (__m512bh)query));
  }
  EMBEDMUX_AVX512_BF16 static inline __m512 finish(__m512i sums) { return _mm512_castsi512_ps(sums); }
};

// The instruction multiplies unsigned by signed: tokens are raised by 128, and sums start lower by what that adds.
struct Quads {
  EMBEDMUX_AVX512_BF16 static inline __m512i start(const uint32_t* correction) {
    return _mm512_loadu_si512(correction);
  }
  EMBEDMUX_AVX512_BF16 static inline __m512i meet(__m512i token) {
    return _mm512_xor_si512(token, _mm512_set1_epi8(-128));
  }
  EMBEDMUX_AVX512_BF16 static inline __m512i add(__m512i sums, __m512i token, __m512i query) {
    return _mm512_dpbusd_epi32(sums, token, query);
  }
  EMBEDMUX_AVX512_BF16 static inline __m512 finish(__m512i sums) { return _mm512_cvtepi32_ps(sums); }
};

}  // namespace

const Kernels pairs_avx512 = {Form::pairs, 1, kTokens, raise<Pairs>, nothing, nothing};
const Kernels quads_avx512 = {Form::quads, 1, kTokens, raise<Quads>, nothing, nothing};

}  // namespace embedmux::maxsim

#endif
