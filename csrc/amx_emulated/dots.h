// The lanes of AVX2 and tiles in plain C++: the tile kernels of amx/ can be tested wherever AVX2 is. Never chosen unless named.
#pragma once
#include "../avx2/dots.h"
#include "tiles.h"

namespace octavo::amx_emulated {

using namespace octavo::avx2;

// 64 bytes of Codes4 as 64 low and 64 high codes, minus 8 when Centered
template <bool Centered> static inline void tile_bytes(const uint8_t* packed, uint8_t* low, uint8_t* high) {
  for (int i = 0; i < 64; i++) {
    low[i] = uint8_t((packed[i] & 15) - (Centered ? 8 : 0));
    high[i] = uint8_t((packed[i] >> 4) - (Centered ? 8 : 0));
  }
}

// Sixteen floats as the nearest bfloat16 and, again as the nearest bfloat16, what that leaves. A quiet NaN stays one.
static inline void split16(f32x16 x, uint16_t* high, uint16_t* low) {
  float value[16];
  store(value, x);
  for (int i = 0; i < 16; i++) {
    uint32_t top, rest;
    float nearest;
    std::memcpy(&top, value + i, 4);
    top = (top + 0x8000u) & 0xffff0000u;
    std::memcpy(&nearest, &top, 4);
    const float left = value[i] - nearest;
    std::memcpy(&rest, &left, 4);
    high[i] = uint16_t(top >> 16);
    low[i] = uint16_t((rest + 0x8000u) >> 16);
  }
}
// out[i] = a[i] and, in the upper half, b[i], as bfloat16; integers of 8 bits are exact
static inline void pair16(const uint16_t* a, const uint16_t* b, uint32_t* out) {
  for (int i = 0; i < 16; i++) out[i] = uint32_t(a[i]) | uint32_t(b[i]) << 16;
}
static inline void pair16(const int8_t* a, const int8_t* b, uint32_t* out) {
  float x[16], y[16];
  store(x, load_i8(a));
  store(y, load_i8(b));
  for (int i = 0; i < 16; i++) {
    uint32_t low, high;
    std::memcpy(&low, x + i, 4);
    std::memcpy(&high, y + i, 4);
    out[i] = low >> 16 | (high & 0xffff0000u);
  }
}

}  // namespace octavo::amx_emulated
