#include "isa.h"

#include <stdlib.h>
#include <string.h>

namespace genmod {

static Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const char* cap = getenv("ATEN_CPU_CAPABILITY");  // torch's own switch, so that one variable governs both
  if (cap && strcmp(cap, "default") == 0) return Isa::baseline;
  if (cap && strcmp(cap, "avx2") == 0) return avx2 ? Isa::avx2 : Isa::baseline;
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa selected_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

}  // namespace genmod
