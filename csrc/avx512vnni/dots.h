// Integer dot products with vpdpbusd. It takes unsigned by signed: signed weights are moved up by 128 once they are loaded, and 128 times
// the sum of the activations, which is known, is taken off again; codes 0..15 are unsigned already.
#pragma once
#include "vec.h"

namespace octavo::avx512vnni {

constexpr int kTile = 8;
constexpr int kSignedOffset = 128;  // what dot_signed adds to every weight
struct Signed { __m512i w; };
struct Unsigned { __m512i w; };
struct Ints { __m512i v; };
struct Shorts { __m512i v; };      // int32 as well: nothing to widen

static inline Ints no_ints() { return {_mm512_setzero_si512()}; }
static inline Shorts no_shorts() { return {_mm512_setzero_si512()}; }
static inline Signed load_signed(const int8_t* p) { return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))}; }
static inline Unsigned load_unsigned(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void dot_signed(Ints& acc, const Signed& w, int32_t a) { acc.v = _mm512_dpbusd_epi32(acc.v, w.w, _mm512_set1_epi32(a)); }
static inline void dot_unsigned(Shorts& acc, const Unsigned& w, int32_t a) { acc.v = _mm512_dpbusd_epi32(acc.v, w.w, _mm512_set1_epi32(a)); }
static inline void split_nibbles(const uint8_t* p, uint8_t* low, uint8_t* high) {
  const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
  _mm512_storeu_si512(low, _mm512_and_si512(v, mask));
  _mm512_storeu_si512(high, _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
}
static inline void dot_nibbles(Shorts& low, Shorts& high, const uint8_t* p, int32_t a_low, int32_t a_high) {
  const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
  dot_unsigned(low, {_mm512_and_si512(v, mask)}, a_low);
  dot_unsigned(high, {_mm512_and_si512(_mm512_srli_epi16(v, 4), mask)}, a_high);
}
static inline void widen_shorts(Ints& acc, const Shorts& s) { acc.v = _mm512_add_epi32(acc.v, s.v); }
// Of a block of kSumBlock = 32
static inline int32_t sum_block(const int8_t* p) {
  const __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_unpackhi_epi64(t, t));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 1)));
}
static inline Ints minus(Ints a, int32_t x) { return {_mm512_sub_epi32(a.v, _mm512_set1_epi32(x))}; }
static inline f32x16 to_float(const Ints& a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline void look_up(const int8_t* table, uint8_t* codes, int count) {
  const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  for (int i = 0; i < count; i += 64) _mm512_storeu_si512(codes + i, _mm512_shuffle_epi8(t, _mm512_loadu_si512(codes + i)));
}
// The four K values of sixteen rows (64 bytes, [16][4]) as floats by k.
static inline void signed_lanes(const uint8_t* p, f32x16* out) {
  const __m512i v = _mm512_loadu_si512(p);
  out[0] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24))};
  out[1] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 16), 24))};
  out[2] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, 8), 24))};
  out[3] = {_mm512_cvtepi32_ps(_mm512_srai_epi32(v, 24))};
}
static inline void table_lanes(const float* table, const uint8_t* p, f32x16* out) {
  const __m512i v = _mm512_loadu_si512(p);
  const __m512 t = _mm512_loadu_ps(table);  // the low four bits of each lane choose
  out[0] = {_mm512_permutexvar_ps(v, t)};
  out[1] = {_mm512_permutexvar_ps(_mm512_srli_epi32(v, 8), t)};
  out[2] = {_mm512_permutexvar_ps(_mm512_srli_epi32(v, 16), t)};
  out[3] = {_mm512_permutexvar_ps(_mm512_srli_epi32(v, 24), t)};
}
// The same of small floats: their bits are moved to where float32 has them, and the exponents' difference made good by a product, which is exact for
// numbers below the smallest normal one as well.
template <bool E5M2> static inline void float8_lanes(const uint8_t* p, f32x16* out) {
  const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi32(int(E5M2 ? 0x8fe00000 : 0x87f00000));
  const __m512 power = _mm512_set1_ps(E5M2 ? 0x1p112f : 0x1p120f);  // 2^(127 - 15), 2^(127 - 7)
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512i top = _mm512_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * i));
    out[i] = {_mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(_mm512_srai_epi32(top, E5M2 ? 3 : 4), mask)), power)};
  }
}
// Always inline: gcc takes a function that only prefetches for one without effects, and drops the call.
static inline __attribute__((always_inline)) void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
static inline __attribute__((always_inline)) void prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace octavo::avx512vnni
