// Floats as pairs of bfloat16, laid out for tdpbf16ps. Same names as amx_emulated/halves.h, which says what each does.
#pragma once
#include "../avx512vnni/vec.h"

namespace octavo::amx {

using avx512vnni::f32x16;
using avx512vnni::lane_mask;

static inline f32x16 keep_lanes(f32x16 x, int low, int high, float other) {
  const __mmask16 kept = __mmask16(lane_mask(high) & ~lane_mask(low));
  return {_mm512_mask_blend_ps(kept, _mm512_set1_ps(other), x.v)};
}

static inline __m512i upper_halves() { return _mm512_set1_epi32(int(0xffff0000)); }
static inline void split_lanes(f32x16 first, f32x16 second, void* high, void* low) {
  const __m512i upper = upper_halves(), round = _mm512_set1_epi32(0x8000);
  const __m512i a = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(first.v), round), upper);
  const __m512i b = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(second.v), round), upper);
  const __m512i c = _mm512_castps_si512(_mm512_sub_ps(first.v, _mm512_castsi512_ps(a)));
  const __m512i d = _mm512_castps_si512(_mm512_sub_ps(second.v, _mm512_castsi512_ps(b)));
  _mm512_storeu_si512(high, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
  // 0xf8: what the first two have in common, or the third
  _mm512_storeu_si512(low, _mm512_ternarylogic_epi32(_mm512_add_epi32(d, round), upper, _mm512_srli_epi32(_mm512_add_epi32(c, round), 16), 0xf8));
}

// What a cache holds as bfloat16 in the upper halves of sixteen lanes, the lower halves zero
static inline __m512i upper_of(const uint16_t* p, int count) {
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32(count >= 16 ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskz_loadu_epi16(lane_mask(count), p)), 16);
}
static inline __m512i upper_of(const int8_t* p, int count) {
  const __m128i codes = count >= 16 ? _mm_loadu_si128((const __m128i*)p) : _mm_maskz_loadu_epi8(lane_mask(count), p);
  return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
}
template <class T> static inline void pair_lanes(const T* first, const T* second, int count, void* out) {
  const __m512i a = first ? upper_of(first, count) : _mm512_setzero_si512(), b = second ? upper_of(second, count) : _mm512_setzero_si512();
  _mm512_storeu_si512(out, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
}
template <class T> static inline void pair_lanes(const T* first, const T* second, void* out) {
  _mm512_storeu_si512(out, _mm512_or_si512(_mm512_srli_epi32(upper_of(first, 16), 16), upper_of(second, 16)));
}

}  // namespace octavo::amx
