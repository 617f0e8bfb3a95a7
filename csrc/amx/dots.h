// AVX-512 VNNI, and with it: tiles, and nibbles to signed bytes in one instruction (GFNI).
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

}  // namespace octavo::amx
