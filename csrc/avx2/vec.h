// Sixteen float32 lanes in two ymm registers (AVX2, FMA, F16C).
#pragma once
#include <immintrin.h>
#include <cstdint>
#include <cstring>

namespace octavo::avx2 {

constexpr bool kManyRegisters = false;  // 32 of them, not 16
struct f32x16 { __m256 a, b; };

static inline f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline f32x16 set1(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
static inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, f32x16 x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline __m256i lane_mask(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
// The first n (0..16) lanes; the others read as zero and are not written.
static inline f32x16 load_n(const float* p, int n) { return {_mm256_maskload_ps(p, lane_mask(n)), _mm256_maskload_ps(p + 8, lane_mask(n - 8))}; }
static inline void store_n(float* p, f32x16 x, int n) { _mm256_maskstore_ps(p, lane_mask(n), x.a); _mm256_maskstore_ps(p + 8, lane_mask(n - 8), x.b); }
static inline f32x16 add(f32x16 x, f32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline f32x16 sub(f32x16 x, f32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline f32x16 mul(f32x16 x, f32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline f32x16 div(f32x16 x, f32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline f32x16 max(f32x16 x, f32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline f32x16 min(f32x16 x, f32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline f32x16 abs(f32x16 x) { const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)); return {_mm256_and_ps(x.a, m), _mm256_and_ps(x.b, m)}; }
static inline f32x16 sqrt(f32x16 x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
static inline f32x16 round(f32x16 x) { return {_mm256_round_ps(x.a, 8), _mm256_round_ps(x.b, 8)}; }  // to nearest even
static inline f32x16 fmadd(f32x16 x, f32x16 y, f32x16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
// Lanes [from, to) of x; the others are `rest`
static inline f32x16 between(f32x16 x, int from, int to, float rest) {
  const auto half = [&](__m256 v, int start) {
    return _mm256_blendv_ps(_mm256_set1_ps(rest), v, _mm256_castsi256_ps(_mm256_andnot_si256(lane_mask(from - start), lane_mask(to - start))));
  };
  return {half(x.a, 0), half(x.b, 8)};
}
// A bit for each lane: where x and y are different numbers
static inline uint32_t unequal(f32x16 x, f32x16 y) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_NEQ_OQ))) | uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_NEQ_OQ))) << 8;
}
static inline __m256 pow2(__m256 n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)); }
// x * 2^n for n integral lanes in [-126, 127]
static inline f32x16 scale2(f32x16 x, f32x16 n) { return {_mm256_mul_ps(x.a, pow2(n.a)), _mm256_mul_ps(x.b, pow2(n.b))}; }
// p times two to the power of the integer in the low bits of t's mantissa, by adding to p's exponent
static inline __m256 add_exponent(__m256 p, __m256 t) { return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23))); }
static inline f32x16 add_exponent(f32x16 p, f32x16 t) { return {add_exponent(p.a, t.a), add_exponent(p.b, t.b)}; }
static inline float reduce_add(f32x16 x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_add_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_add_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline float reduce_max(f32x16 x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  t = _mm_max_ps(t, _mm_movehl_ps(t, t));
  return _mm_cvtss_f32(_mm_max_ss(t, _mm_shuffle_ps(t, t, 1)));
}
static inline __m256 bf16x8(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16)); }
static inline f32x16 load_bf16(const uint16_t* p) { return {bf16x8(p), bf16x8(p + 8)}; }
static inline __m256i round_bf16(__m256 x) {
  const __m256i b = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_srli_epi32(_mm256_add_epi32(b, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(r, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
// Round to nearest even; NaN stays NaN.
static inline void store_bf16(uint16_t* p, f32x16 x) {
  const __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b)), 0xd8);
  _mm256_storeu_si256((__m256i*)p, v);
}
static inline f32x16 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))}; }
static inline __m256 i8x8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
static inline f32x16 load_i8(const int8_t* p) { return {i8x8(p), i8x8(p + 8)}; }
// Sixteen codes of FP8 E4M3: their bits are moved to where float32 has them, and the exponents' difference made good by a product, which is exact
static inline __m256 e4m3x8(const uint8_t* p) {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)), 20);
  return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(int(0x87f00000)))), _mm256_set1_ps(0x1p120f));
}
static inline f32x16 load_e4m3(const uint8_t* p) { return {e4m3x8(p), e4m3x8(p + 8)}; }
// The low, or the high, four bits of sixteen bytes
template <bool High> static inline __m256 u4x8(const uint8_t* p) {
  const __m256i b = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  return _mm256_cvtepi32_ps(High ? _mm256_srli_epi32(b, 4) : _mm256_and_si256(b, _mm256_set1_epi32(15)));
}
template <bool High> static inline f32x16 load_u4(const uint8_t* p) { return {u4x8<High>(p), u4x8<High>(p + 8)}; }
// The upper, or the lower, sixteen bits of each word as a bfloat16
template <bool Upper> static inline f32x16 half_words(f32x16 x) {
  const auto half = [](__m256 v) {
    const __m256i b = _mm256_castps_si256(v);
    return _mm256_castsi256_ps(Upper ? _mm256_and_si256(b, _mm256_set1_epi32(int(0xffff0000))) : _mm256_slli_epi32(b, 16));
  };
  return {half(x.a), half(x.b)};
}
static inline f32x16 load_i32(const int32_t* p) { return {_mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)p)), _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)(p + 8)))}; }
// Round to nearest even, saturate to [-128, 127]
static inline void store_i8(int8_t* p, f32x16 x) {
  const __m256i w = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));  // lanes: a0-3 b0-3 | a4-7 b4-7
  const __m256i o = _mm256_permute4x64_epi64(w, 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(o), _mm256_extracti128_si256(o, 1)));
}

}  // namespace octavo::avx2
