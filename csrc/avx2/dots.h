// Integer dot products with AVX2: |w| times a with the sign of w (vpmaddubsw takes unsigned by signed), codes 0..15 directly.
#pragma once
#include "vec.h"

namespace octavo::avx2 {

constexpr int kTile = 4;
constexpr int kSignedOffset = 0;  // what dot_signed adds to every weight
struct Signed { __m256i w0, w1, m0, m1; };      // the weights and their magnitudes
struct Unsigned { __m256i w0, w1; };
struct Ints { __m256i a, b; };                  // int32: rows 0-7, rows 8-15
struct Shorts { __m256i a, b; };                // int16 pairs: 8 steps of 15 * 127 * 2 = 3,810 stay below 32,768

static inline Ints no_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline Shorts no_shorts() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline __m256i bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline Signed load_signed(const int8_t* p) {
  const __m256i a = bytes(p), b = bytes(p + 32);
  return {a, b, _mm256_abs_epi8(a), _mm256_abs_epi8(b)};
}
static inline Unsigned load_unsigned(const uint8_t* p) { return {bytes(p), bytes(p + 32)}; }
// |w| <= 128 and |a| <= 127: a pair is at most 32,512
static inline void dot_signed(Ints& acc, const Signed& w, int32_t a) {
  const __m256i v = _mm256_set1_epi32(a), one = _mm256_set1_epi16(1);
  acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w.m0, _mm256_sign_epi8(v, w.w0)), one));
  acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w.m1, _mm256_sign_epi8(v, w.w1)), one));
}
static inline void dot_unsigned(Shorts& acc, const Unsigned& w, int32_t a) {
  const __m256i v = _mm256_set1_epi32(a);
  acc.a = _mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.w0, v));
  acc.b = _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.w1, v));
}
static inline Unsigned low_nibbles(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(bytes(p), mask), _mm256_and_si256(bytes(p + 32), mask)};
}
static inline Unsigned high_nibbles(const uint8_t* p) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(bytes(p), 4), mask), _mm256_and_si256(_mm256_srli_epi16(bytes(p + 32), 4), mask)};
}
static inline void split_nibbles(const uint8_t* p, uint8_t* low, uint8_t* high) {
  const Unsigned l = low_nibbles(p), h = high_nibbles(p);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), l.w0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + 32), l.w1);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), h.w0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + 32), h.w1);
}
static inline void dot_nibbles(Shorts& low, Shorts& high, const uint8_t* p, int32_t a_low, int32_t a_high) {
  dot_unsigned(low, low_nibbles(p), a_low);
  dot_unsigned(high, high_nibbles(p), a_high);
}
static inline void widen_shorts(Ints& acc, const Shorts& s) {
  const __m256i one = _mm256_set1_epi16(1);
  acc.a = _mm256_add_epi32(acc.a, _mm256_madd_epi16(s.a, one));
  acc.b = _mm256_add_epi32(acc.b, _mm256_madd_epi16(s.b, one));
}
// Of a block of kSumBlock = 32
static inline int32_t sum_block(const int8_t* p) {
  const __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes(p)), _mm256_set1_epi16(1));
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_unpackhi_epi64(t, t));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 1)));
}
static inline Ints minus(Ints a, int32_t x) { const __m256i v = _mm256_set1_epi32(x); return {_mm256_sub_epi32(a.a, v), _mm256_sub_epi32(a.b, v)}; }
static inline f32x16 to_float(const Ints& a) { return {_mm256_cvtepi32_ps(a.a), _mm256_cvtepi32_ps(a.b)}; }
static inline void look_up(const int8_t* table, uint8_t* codes, int count) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  for (int i = 0; i < count; i += 32) {
    __m256i* p = reinterpret_cast<__m256i*>(codes + i);
    _mm256_storeu_si256(p, _mm256_shuffle_epi8(t, _mm256_loadu_si256(p)));
  }
}
// The four K values of sixteen rows (64 bytes, [16][4]) as floats by k.
static inline void signed_lanes(const uint8_t* p, f32x16* out) {
  const __m256i a = bytes(p), b = bytes(p + 32);
  out[0] = {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a, 24), 24)), _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(b, 24), 24))};
  out[1] = {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a, 16), 24)), _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(b, 16), 24))};
  out[2] = {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(a, 8), 24)), _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(b, 8), 24))};
  out[3] = {_mm256_cvtepi32_ps(_mm256_srai_epi32(a, 24)), _mm256_cvtepi32_ps(_mm256_srai_epi32(b, 24))};
}
static inline __m256 choose(const float* table, __m256i code) {  // the low four bits of each lane choose
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), code), high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), code);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}
static inline void table_lanes(const float* table, const uint8_t* p, f32x16* out) {
  const __m256i a = bytes(p), b = bytes(p + 32);
  out[0] = {choose(table, a), choose(table, b)};
  out[1] = {choose(table, _mm256_srli_epi32(a, 8)), choose(table, _mm256_srli_epi32(b, 8))};
  out[2] = {choose(table, _mm256_srli_epi32(a, 16)), choose(table, _mm256_srli_epi32(b, 16))};
  out[3] = {choose(table, _mm256_srli_epi32(a, 24)), choose(table, _mm256_srli_epi32(b, 24))};
}
// The same of small floats: their bits are moved to where float32 has them, and the exponents' difference made good by a product, which is exact for
// numbers below the smallest normal one as well.
static inline __m256 small_float(__m256i top_byte, int shift, int mask, float power) {
  const __m256i bits = _mm256_and_si256(_mm256_sra_epi32(top_byte, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(mask));
  return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(power));
}
template <bool E5M2> static inline void float8_lanes(const uint8_t* p, f32x16* out) {
  const __m256i a = bytes(p), b = bytes(p + 32);
  constexpr int shift = E5M2 ? 3 : 4, mask = int(E5M2 ? 0x8fe00000 : 0x87f00000);
  constexpr float power = E5M2 ? 0x1p112f : 0x1p120f;  // 2^(127 - 15), 2^(127 - 7)
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m128i by = _mm_cvtsi32_si128(24 - 8 * i);
    out[i] = {small_float(_mm256_sll_epi32(a, by), shift, mask, power), small_float(_mm256_sll_epi32(b, by), shift, mask, power)};
  }
}
// Always inline: gcc takes a function that only prefetches for one without effects, and drops the call.
static inline __attribute__((always_inline)) void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
static inline __attribute__((always_inline)) void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace octavo::avx2
