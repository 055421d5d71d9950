// Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller, sixteen counters at a time.
// The stream is specified once, in genmod/reference/philox.py; this file only has to agree with it.
#pragma once
#include "vecmath.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// The four words of counters counter + l at words[.][l]. The product of 32-bit numbers is the one thing compilers do not
// vectorise well by themselves. It is taken of the low halves of 64-bit lanes, and leaves its own low word there: with the
// counters kept in such lanes, whatever their high halves hold, a round is two products, two moves and two xors.
#if defined(__AVX2__)
#if defined(__AVX512F__)
typedef __m512i Lanes64;
GENMOD_INLINE Lanes64 lanes(uint32_t x) { return _mm512_set1_epi64(x); }
GENMOD_INLINE Lanes64 even_numbers() { return _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0); }
GENMOD_INLINE Lanes64 product(Lanes64 a, Lanes64 b) { return _mm512_mul_epu32(a, b); }
GENMOD_INLINE Lanes64 high_word(Lanes64 a) { return _mm512_shuffle_epi32(a, _MM_PERM_DDBB); }
GENMOD_INLINE Lanes64 interleave(Lanes64 even, Lanes64 odd) { return _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA); }
#else
typedef __m256i Lanes64;
GENMOD_INLINE Lanes64 lanes(uint32_t x) { return _mm256_set1_epi64x(x); }
GENMOD_INLINE Lanes64 even_numbers() { return _mm256_set_epi64x(6, 4, 2, 0); }
GENMOD_INLINE Lanes64 product(Lanes64 a, Lanes64 b) { return _mm256_mul_epu32(a, b); }
GENMOD_INLINE Lanes64 high_word(Lanes64 a) { return _mm256_shuffle_epi32(a, 0xF5); }
GENMOD_INLINE Lanes64 interleave(Lanes64 even, Lanes64 odd) { return _mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xA0), 0xAA); }
#endif
GENMOD_INLINE void philox_words(uint64_t key, uint64_t counter, uint32_t (*words)[16]) {
  constexpr int kAtOnce = sizeof(Lanes64) / 4;
  for (int first = 0; first < 16; first += kAtOnce) {
    Lanes64 c[2][4];  // of the even and the odd counters
    for (int odd = 0; odd < 2; odd++) {
      c[odd][0] = even_numbers() | lanes((uint32_t)counter + (uint32_t)(first + odd));
      c[odd][1] = lanes((uint32_t)(counter >> 32));
      c[odd][2] = c[odd][3] = lanes(0);
    }
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      for (auto& w : c) {
        const Lanes64 p0 = product(w[0], lanes(0xD2511F53u)), p1 = product(w[2], lanes(0xCD9E8D57u));
        w[0] = high_word(p1) ^ w[1] ^ lanes(k0);
        w[2] = high_word(p0) ^ w[3] ^ lanes(k1);
        w[1] = p1;
        w[3] = p0;
      }
    }
    for (int word = 0; word < 4; word++) {
      const Lanes64 both = interleave(c[0][word], c[1][word]);
      memcpy(words[word] + first, &both, sizeof(both));
    }
  }
}
#else
GENMOD_INLINE void philox_words(uint64_t key, uint64_t counter, uint32_t (*words)[16]) {
  for (uint32_t l = 0; l < 16; l++) {
    uint32_t c[4] = {(uint32_t)counter + l, (uint32_t)(counter >> 32), 0, 0};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const uint64_t p0 = (uint64_t)c[0] * 0xD2511F53u, p1 = (uint64_t)c[2] * 0xCD9E8D57u;
      c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
      c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
      c[1] = (uint32_t)p1;
      c[3] = (uint32_t)p0;
    }
    for (int word = 0; word < 4; word++) words[word][l] = c[word];
  }
}
#endif

// The 64 standard normals of block `block`: element 16 * word + lane comes from word `word` of counter 16 * block + lane.
static void philox_normal_block(uint64_t key, uint64_t block, float* __restrict out) {
  uint32_t words[4][16];
  philox_words(key, block * 16, words);  // a multiple of 16, so no lane carries into the high word
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
