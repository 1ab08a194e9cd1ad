#include "simd.h"

#include <atomic>

#include "tensors.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace embedmux {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

// Linux hands out the 8 KiB of tile registers only to a process that asks (arch_prctl ARCH_REQ_XCOMP_PERM).
bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// CPUID leaf 7; the compiler's probe does not know all of its bits everywhere.
struct Features {
  unsigned ecx = 0, edx = 0;
};

Features features() {
  Features found;
#ifdef EMBEDMUX_X86
  unsigned eax = 7, ebx = 0;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(found.ecx), "=d"(found.edx));
#endif
  return found;
}

Isa probe() {
#ifdef EMBEDMUX_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return Isa::avx512;
  const unsigned edx = features().edx;
  const bool has_amx = __builtin_cpu_supports("avx512vbmi") && (edx >> 22 & 1) && (edx >> 24 & 1) &&
                       (edx >> 25 & 1);  // amx-bf16, amx-tile, amx-int8
  return has_amx && request_tiles() ? Isa::amx : Isa::avx512_bf16;
#else
  return Isa::baseline;
#endif
}

std::atomic<int> cap{static_cast<int>(Isa::amx)};

}  // namespace

Isa isa() {
  static const Isa found = probe();
  const int limit = cap.load(std::memory_order_relaxed);
  return static_cast<int>(found) < limit ? found : static_cast<Isa>(limit);
}

bool has_vnni() {
  static const bool found = features().ecx >> 11 & 1;
  return found && isa() >= Isa::avx512;
}

bool has_vpopcntdq() {
  static const bool found = features().ecx >> 14 & 1;
  return found && isa() >= Isa::avx512;
}

bool has_amx_int8() {
  static const bool found = features().edx >> 25 & 1;
  return found && isa() >= Isa::amx;
}

void set_max_isa(const std::string& name) {
  for (int level = 0; level < 5; ++level) {
    if (name == kNames[level]) {
      cap.store(level, std::memory_order_relaxed);
      return;
    }
  }
  TORCH_CHECK(false, "unknown instruction set '", name, "': one of baseline, avx2, avx512, avx512_bf16, amx");
}

const char* isa_name(Isa level) { return kNames[static_cast<int>(level)]; }

}  // namespace embedmux
