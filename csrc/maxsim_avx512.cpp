// maxsim in float32 with AVX-512.
#define EMBEDMUX_MAXSIM_TARGET EMBEDMUX_AVX512
#include "maxsim_avx512.h"

#ifdef EMBEDMUX_X86

namespace embedmux::maxsim {
namespace {

struct Floats {
  EMBEDMUX_AVX512 static inline __m512i start(const uint32_t*) { return _mm512_setzero_si512(); }
  EMBEDMUX_AVX512 static inline __m512i meet(__m512i token) { return token; }
  EMBEDMUX_AVX512 static inline __m512i add(__m512i sums, __m512i token, __m512i query) {
    return _mm512_castps_si512(
        _mm512_fmadd_ps(_mm512_castsi512_ps(token), _mm512_castsi512_ps(query), _mm512_castsi512_ps(sums)));
  }
  EMBEDMUX_AVX512 static inline __m512 finish(__m512i sums) { return _mm512_castsi512_ps(sums); }
};

}  // namespace

const Kernels floats_avx512 = {Form::floats, 1, kTokens, raise<Floats>, nothing, nothing};

}  // namespace embedmux::maxsim

#endif
