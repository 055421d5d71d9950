// Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller, sixteen counters at a time.
// The stream is specified once, in genmod/reference/philox.py; this file only has to agree with it.
#pragma once
#include "vecmath.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef uint32_t u32x16 __attribute__((vector_size(64)));

// High and low words of a[i] * m. The 32x32->64 product is the one thing compilers do not vectorise well by themselves.
#if defined(__AVX512F__)
GENMOD_INLINE void mul_wide(u32x16 a, uint32_t m, u32x16& high, u32x16& low) {
  const __m512i va = (__m512i)a, vm = _mm512_set1_epi32((int)m);
  const __m512i even = _mm512_mul_epu32(va, vm), odd = _mm512_mul_epu32(_mm512_srli_epi64(va, 32), vm);
  low = (u32x16)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
  high = (u32x16)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}
#elif defined(__AVX2__)
GENMOD_INLINE void mul_wide(u32x16 a, uint32_t m, u32x16& high, u32x16& low) {
  __m256i va[2], vl[2], vh[2];
  memcpy(va, &a, 64);
  const __m256i vm = _mm256_set1_epi32((int)m);
  for (int i = 0; i < 2; i++) {
    const __m256i even = _mm256_mul_epu32(va[i], vm), odd = _mm256_mul_epu32(_mm256_srli_epi64(va[i], 32), vm);
    vl[i] = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    vh[i] = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  }
  memcpy(&low, vl, 64);
  memcpy(&high, vh, 64);
}
#else
GENMOD_INLINE void mul_wide(u32x16 a, uint32_t m, u32x16& high, u32x16& low) {
  for (int l = 0; l < 16; l++) {
    const uint64_t p = (uint64_t)a[l] * m;
    low[l] = (uint32_t)p;
    high[l] = (uint32_t)(p >> 32);
  }
}
#endif

// The 64 standard normals of block `block`: element 16 * word + lane comes from word `word` of counter 16 * block + lane.
static void philox_normal_block(uint64_t key, uint64_t block, float* __restrict out) {
  const uint64_t counter = block * 16;  // a multiple of 16, so no lane carries into the high word
  const u32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, zero = {};
  u32x16 c0 = lane + (uint32_t)counter, c1 = zero + (uint32_t)(counter >> 32), c2 = zero, c3 = zero;
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    u32x16 h0, l0, h1, l1;
    mul_wide(c0, 0xD2511F53u, h0, l0);
    mul_wide(c2, 0xCD9E8D57u, h1, l1);
    c0 = h1 ^ c1 ^ k0;
    c2 = h0 ^ c3 ^ k1;
    c1 = l1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  uint32_t words[4][16];
  memcpy(words[0], &c0, 64);
  memcpy(words[1], &c1, 64);
  memcpy(words[2], &c2, 64);
  memcpy(words[3], &c3, 64);
  for (int pair = 0; pair < 2; pair++) {
    for (int l = 0; l < 16; l++) {
      const float u = (float)words[2 * pair][l] * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
      const float r = __builtin_sqrtf(-2.f * log_positive(u));
      float s, c;
      sincos_turn(words[2 * pair + 1][l], s, c);
      out[32 * pair + l] = r * c;
      out[32 * pair + 16 + l] = r * s;
    }
  }
}
