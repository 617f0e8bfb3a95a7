// Sixteen float32 lanes in one zmm register (AVX-512 F, BW, DQ, VL, VNNI).
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

namespace octavo::avx512vnni {

constexpr bool kManyRegisters = true;  // 32 of them, not 16
struct f32x16 { __m512 v; };

static inline f32x16 zero() { return {_mm512_setzero_ps()}; }
static inline f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
static inline f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, f32x16 x) { _mm512_storeu_ps(p, x.v); }
static inline __mmask16 lane_mask(int n) { return n <= 0 ? __mmask16(0) : n >= 16 ? __mmask16(0xffff) : __mmask16((1u << n) - 1); }
// The first n (0..16) lanes; the others read as zero and are not written.
static inline f32x16 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(lane_mask(n), p)}; }
static inline void store_n(float* p, f32x16 x, int n) { _mm512_mask_storeu_ps(p, lane_mask(n), x.v); }
static inline f32x16 add(f32x16 x, f32x16 y) { return {_mm512_add_ps(x.v, y.v)}; }
static inline f32x16 sub(f32x16 x, f32x16 y) { return {_mm512_sub_ps(x.v, y.v)}; }
static inline f32x16 mul(f32x16 x, f32x16 y) { return {_mm512_mul_ps(x.v, y.v)}; }
static inline f32x16 div(f32x16 x, f32x16 y) { return {_mm512_div_ps(x.v, y.v)}; }
static inline f32x16 max(f32x16 x, f32x16 y) { return {_mm512_max_ps(x.v, y.v)}; }
static inline f32x16 min(f32x16 x, f32x16 y) { return {_mm512_min_ps(x.v, y.v)}; }
static inline f32x16 abs(f32x16 x) { return {_mm512_abs_ps(x.v)}; }
static inline f32x16 sqrt(f32x16 x) { return {_mm512_sqrt_ps(x.v)}; }
static inline f32x16 round(f32x16 x) { return {_mm512_roundscale_ps(x.v, 8)}; }  // to nearest even
static inline f32x16 fmadd(f32x16 x, f32x16 y, f32x16 z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
// Lanes [from, to) of x; the others are `rest`
static inline f32x16 between(f32x16 x, int from, int to, float rest) { return {_mm512_mask_mov_ps(_mm512_set1_ps(rest), lane_mask(to) & ~lane_mask(from), x.v)}; }
static inline uint32_t unequal(f32x16 x, f32x16 y) { return _mm512_cmp_ps_mask(x.v, y.v, _CMP_NEQ_OQ); }  // a bit for each lane: where x and y are different numbers
// x * 2^n for n integral lanes in [-126, 127]
static inline f32x16 scale2(f32x16 x, f32x16 n) {
  const __m512i p = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return {_mm512_mul_ps(x.v, _mm512_castsi512_ps(p))};
}
// p times two to the power of the integer in the low bits of t's mantissa, by adding to p's exponent
static inline f32x16 add_exponent(f32x16 p, f32x16 t) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), _mm512_slli_epi32(_mm512_castps_si512(t.v), 23)))};
}
static inline float reduce_add(f32x16 x) {  // the tree of avx2/vec.h: 8+8, 4+4, 2+2, 1+1
  const __m256 s = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline float reduce_max(f32x16 x) { return _mm512_reduce_max_ps(x.v); }
static inline f32x16 load_bf16(const uint16_t* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))}; }
// Round to nearest even; NaN stays NaN.
static inline void store_bf16(uint16_t* p, f32x16 x) {
  const __m512i b = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(b, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, _mm512_srli_epi32(b, 16), _mm512_set1_epi32(0x40));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(r));
}
static inline f32x16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline f32x16 load_i8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
// Sixteen codes of FP8 E4M3: their bits are moved to where float32 has them, and the exponents' difference made good by a product, which is exact
static inline f32x16 load_e4m3(const uint8_t* p) {
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)), 20);
  return {_mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0x87f00000)))), _mm512_set1_ps(0x1p120f))};
}
// The low, or the high, four bits of sixteen bytes
template <bool High> static inline f32x16 load_u4(const uint8_t* p) {
  const __m512i b = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
  return {_mm512_cvtepi32_ps(High ? _mm512_srli_epi32(b, 4) : _mm512_and_si512(b, _mm512_set1_epi32(15)))};
}
// The upper, or the lower, sixteen bits of each word as a bfloat16
template <bool Upper> static inline f32x16 half_words(f32x16 x) {
  const __m512i b = _mm512_castps_si512(x.v);
  return {_mm512_castsi512_ps(Upper ? _mm512_and_si512(b, _mm512_set1_epi32(int(0xffff0000))) : _mm512_slli_epi32(b, 16))};
}
static inline f32x16 load_i32(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
// Round to nearest even, saturate to [-128, 127]
static inline void store_i8(int8_t* p, f32x16 x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v))); }

}  // namespace octavo::avx512vnni
