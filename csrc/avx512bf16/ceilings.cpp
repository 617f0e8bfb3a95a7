// As on avx512vnni, but floats are multiplied in pairs of bfloat16.
#include <immintrin.h>

#include "../ceilings.h"

namespace octavo {
namespace avx512bf16 {

static volatile float sink;

static double float_rounds(int64_t rounds) {
  constexpr int kTile = 12;
  __m512i x = _mm512_set1_epi32(0x3f003f00), y = x;  // halves
  __m512 sums[kTile];
  for (auto& s : sums) s = _mm512_setzero_ps();
  for (int64_t i = 0; i < rounds; i++)
    for (auto& s : sums) {
      __asm__ volatile("" : "+v"(x));
      s = _mm512_dpbf16_ps(s, (__m512bh)x, (__m512bh)y);
    }
  __m512 total = _mm512_setzero_ps();
  for (auto& s : sums) total = _mm512_add_ps(total, s);
  sink = _mm512_cvtss_f32(total);
  return double(rounds) * kTile * 32 * 2;
}

}  // namespace avx512bf16

const CeilingKernels* avx512bf16_ceilings() {
  static const CeilingKernels table = {"avx512bf16", avx512vnni_ceilings()->read, avx512vnni_ceilings()->int8, avx512bf16::float_rounds};
  return &table;
}

}  // namespace octavo
