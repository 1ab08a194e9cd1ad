// One probe for the instruction sets the kernels know. Wide code stands in functions with their own target attribute,
// so the library itself is built for the baseline and runs on any x86-64 (and, by its baseline code, elsewhere).
#pragma once

#include <cstdint>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12 takes the undefined operands inside its own intrinsics for uninitialised variables, wherever they are inlined.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define EMBEDMUX_X86 1
#define EMBEDMUX_AVX2 __attribute__((target("avx2,fma,f16c")))
#define EMBEDMUX_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define EMBEDMUX_AVX512_BF16 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")))
#define EMBEDMUX_AVX512_VNNI \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vpopcntdq,avx2,fma,f16c,popcnt")))
#define EMBEDMUX_AMX_INT8 __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define EMBEDMUX_AMX \
  __attribute__((    \
      target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512bf16,avx2,fma,f16c")))
#endif

namespace embedmux {

// Each level holds all levels below it; avx512_bf16 also stands for VNNI and amx for int8 tiles, which come with them.
enum class Isa { baseline = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };

// The widest set this processor and operating system give, or the cap of set_max_isa if that is lower.
Isa isa();

// Features beside the levels; none counts below the level it belongs to, avx512 for the first two and amx for the
// third.
bool has_vnni();       // AVX-512 VNNI: sums of products of bytes
bool has_vpopcntdq();  // AVX-512 VPOPCNTDQ: counts of set bits
bool has_amx_int8();

// Caps isa(), for tests that run one case per instruction set: "baseline", "avx2", "avx512", "avx512_bf16", "amx".
void set_max_isa(const std::string& name);

const char* isa_name(Isa level);

}  // namespace embedmux
