// Floats as pairs of bfloat16, laid out for tdpbf16ps, in plain C++. A dword of a tile holds two numbers: `first` in its lower half.
#pragma once
#include <cstdint>
#include <cstring>

#include "../avx2/vec.h"

namespace octavo::amx_emulated {

using avx2::f32x16;

// Lanes [low, high) of x, `other` in the rest
static inline f32x16 keep_lanes(f32x16 x, int low, int high, float other) {
  float lanes[16];
  avx2::store(lanes, x);
  for (int i = 0; i < 16; i++) if (i < low || i >= high) lanes[i] = other;
  return avx2::load(lanes);
}

static inline uint32_t float_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
// Sixteen pairs of floats, each as the nearest bfloat16 (`high`) and the bfloat16 nearest to what is left (`low`): within 2^-17 of the float
static inline void split_lanes(f32x16 first, f32x16 second, void* high, void* low) {
  float x[2][16];
  avx2::store(x[0], first);
  avx2::store(x[1], second);
  uint32_t halves[2][16] = {};
  for (int side = 0; side < 2; side++)
    for (int i = 0; i < 16; i++) {
      const uint32_t bits = (float_bits(x[side][i]) + 0x8000u) & 0xffff0000u;
      float nearest;
      std::memcpy(&nearest, &bits, 4);
      const uint32_t rest = (float_bits(x[side][i] - nearest) + 0x8000u) & 0xffff0000u;
      halves[0][i] |= side ? bits : bits >> 16;
      halves[1][i] |= side ? rest : rest >> 16;
    }
  std::memcpy(high, halves[0], 64);
  std::memcpy(low, halves[1], 64);
}

static inline uint32_t bfloat16_of(uint16_t x) { return x; }
static inline uint32_t bfloat16_of(int8_t x) { return float_bits(float(x)) >> 16; }  // integers up to 256 are exact
// `count` (at most 16) pairs of numbers of a cache as bfloat16, zeros behind them and for what is null
template <class T> static inline void pair_lanes(const T* first, const T* second, int count, void* out) {
  uint32_t pairs[16] = {};
  for (int i = 0; i < (count < 16 ? count : 16); i++) pairs[i] = (first ? bfloat16_of(first[i]) : 0) | (second ? bfloat16_of(second[i]) << 16 : 0);
  std::memcpy(out, pairs, 64);
}
template <class T> static inline void pair_lanes(const T* first, const T* second, void* out) { pair_lanes(first, second, 16, out); }  // all sixteen, of both

}  // namespace octavo::amx_emulated
