// AVX-512 VNNI, and with it: tiles, what is brought into their form, and nibbles to signed bytes in one instruction (GFNI).
#pragma once
#include "../avx512vnni/dots.h"
#include "tiles.h"

namespace octavo::amx {

using namespace octavo::avx512vnni;

// 64 bytes of Codes4 as 64 low and 64 high codes. A byte times a matrix of bits: code - 8 is the code with its highest bit inverted and spread.
template <bool Centered> static inline void tile_bytes(const uint8_t* packed, uint8_t* low, uint8_t* high) {
  const __m512i v = _mm512_loadu_si512(packed);
  const __m512i from_low = _mm512_set1_epi64(Centered ? 0x0102040808080808 : 0x0102040800000000);
  const __m512i from_high = _mm512_set1_epi64(Centered ? 0x1020408080808080 : 0x1020408000000000);
  constexpr int flip = Centered ? 0xf8 : 0;
  _mm512_storeu_si512(low, _mm512_gf2p8affine_epi64_epi8(v, from_low, flip));
  _mm512_storeu_si512(high, _mm512_gf2p8affine_epi64_epi8(v, from_high, flip));
}

// Sixteen floats as the nearest bfloat16 and, again as the nearest bfloat16, what that leaves. A quiet NaN stays one.
static inline void split16(f32x16 x, uint16_t* high, uint16_t* low) {
  const __m512i half = _mm512_set1_epi32(0x8000), top = _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x.v), half), _mm512_set1_epi32(int(0xffff0000)));
  const __m512i rest = _mm512_add_epi32(_mm512_castps_si512(_mm512_sub_ps(x.v, _mm512_castsi512_ps(top))), half);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi32_epi16(_mm512_srli_epi32(top, 16)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rest, 16)));
}
// out[i] = a[i] and, in the upper half, b[i], as bfloat16; integers of 8 bits are exact
static inline void pair16(const uint16_t* a, const uint16_t* b, uint32_t* out) {
  const __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
  const __m512i y = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)));
  _mm512_storeu_si512(out, _mm512_or_si512(x, _mm512_slli_epi32(y, 16)));
}
static inline void pair16(const int8_t* a, const int8_t* b, uint32_t* out) {
  const __m512i x = _mm512_castps_si512(load_i8(a).v), y = _mm512_castps_si512(load_i8(b).v);
  _mm512_storeu_si512(out, _mm512_or_si512(_mm512_srli_epi32(x, 16), _mm512_and_si512(y, _mm512_set1_epi32(int(0xffff0000)))));
}

}  // namespace octavo::amx
