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

Isa probe() {
#ifdef EMBEDMUX_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return Isa::avx512;
  // CPUID leaf 7: EDX bit 22 is amx-bf16, bit 24 amx-tile, bit 25 amx-int8. The compiler's probe does not know them everywhere.
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  const bool has_amx = (edx >> 22 & 1) && (edx >> 24 & 1) && (edx >> 25 & 1);
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
