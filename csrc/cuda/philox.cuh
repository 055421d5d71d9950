// Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller.
// The stream is specified once, in genmod/reference/philox.py; this file only has to agree with it.
#pragma once
#include "math.cuh"

namespace genmod {
namespace cuda {

struct Words { uint32_t v[4]; };

__device__ __forceinline__ Words philox(Words c, uint64_t key) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t a = (uint64_t)c.v[0] * 0xD2511F53u, b = (uint64_t)c.v[2] * 0xCD9E8D57u;
    c = {{(uint32_t)(b >> 32) ^ c.v[1] ^ k0, (uint32_t)b, (uint32_t)(a >> 32) ^ c.v[3] ^ k1, (uint32_t)a}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Two standard normals from two uniform words.
__device__ __forceinline__ void box_muller(uint32_t x, uint32_t y, float& first, float& second) {
  const float u = (float)x * 2.3283064365386963e-10f + 1.1641532182693481e-10f;  // in (0, 1]
  const float r = sqrtf(-2.f * log_positive(u));
  float s, c;
  sincos_turn(y, s, c);
  first = r * c;
  second = r * s;
}

// The four standard normals of one counter.
__device__ __forceinline__ void philox_normals(uint64_t key, uint64_t counter, float (&normal)[4]) {
  const Words w = philox({{(uint32_t)counter, (uint32_t)(counter >> 32), 0, 0}}, key);
  box_muller(w.v[0], w.v[1], normal[0], normal[1]);
  box_muller(w.v[2], w.v[3], normal[2], normal[3]);
}

}  // namespace cuda
}  // namespace genmod
