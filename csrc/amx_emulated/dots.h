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

}  // namespace octavo::amx_emulated
