// Numbers as pairs of bfloat16, which vdpbf16ps multiplies two at a time. Included inside a namespace that has vec.h's names.

static inline __m512i two_rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// One row of k numbers as `pairs` pairs; a number that is missing is 0
static inline void pair_row(const float* x, int64_t k, int64_t pairs, uint32_t* out) {
  for (int64_t i = 0; i < pairs; i += 16) {
    const int64_t left = k - 2 * i;
    const __m512 low = load_n(x + 2 * i, int(std::min<int64_t>(left, 16))).v;
    const __m512 high = left > 16 ? load_n(x + 2 * i + 16, int(std::min<int64_t>(left - 16, 16))).v : _mm512_setzero_ps();
    _mm512_mask_storeu_epi32(out + i, lane_mask(int(std::min<int64_t>(pairs - i, 16))), two_rounded(low, high));
  }
}
// The sum of the numbers of `pairs` pairs
static inline float pair_sum(const uint32_t* x, int pairs) {
  f32x16 sum = zero();
  for (int i = 0; i < pairs; i += 16) {
    const __m512i two = _mm512_maskz_loadu_epi32(lane_mask(pairs - i), x + i);
    sum = add(sum, add({_mm512_castsi512_ps(_mm512_slli_epi32(two, 16))}, {_mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32(int(0xffff0000))))}));
  }
  return reduce_add(sum);
}
