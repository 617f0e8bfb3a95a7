// Integer dot products without any vector instruction set.
#pragma once
#include "vec.h"

namespace octavo::portable {

constexpr int kTile = 4;
constexpr int kSignedOffset = 0;  // what dot_signed adds to every weight
struct Signed { int8_t v[64]; };
struct Unsigned { uint8_t v[64]; };
struct Ints { int32_t v[16]; };
struct Shorts { int32_t v[16]; };

static inline Ints no_ints() { return {}; }
static inline Shorts no_shorts() { return {}; }
static inline Signed load_signed(const int8_t* p) { Signed s; std::memcpy(s.v, p, 64); return s; }
static inline Unsigned load_unsigned(const uint8_t* p) { Unsigned u; std::memcpy(u.v, p, 64); return u; }
static inline void dot_signed(Ints& acc, const Signed& w, int32_t a) {
  int8_t b[4];
  std::memcpy(b, &a, 4);
  for (int r = 0; r < 16; r++) acc.v[r] += w.v[4 * r] * b[0] + w.v[4 * r + 1] * b[1] + w.v[4 * r + 2] * b[2] + w.v[4 * r + 3] * b[3];
}
static inline void dot_unsigned(Shorts& acc, const Unsigned& w, int32_t a) {
  int8_t b[4];
  std::memcpy(b, &a, 4);
  for (int r = 0; r < 16; r++) acc.v[r] += w.v[4 * r] * b[0] + w.v[4 * r + 1] * b[1] + w.v[4 * r + 2] * b[2] + w.v[4 * r + 3] * b[3];
}
static inline void split_nibbles(const uint8_t* p, uint8_t* low, uint8_t* high) {
  for (int i = 0; i < 64; i++) { low[i] = p[i] & 15; high[i] = p[i] >> 4; }
}
static inline void dot_nibbles(Shorts& low, Shorts& high, const uint8_t* p, int32_t a_low, int32_t a_high) {
  Unsigned l, h;
  split_nibbles(p, l.v, h.v);
  dot_unsigned(low, l, a_low);
  dot_unsigned(high, h, a_high);
}
static inline void widen_shorts(Ints& acc, const Shorts& s) { for (int r = 0; r < 16; r++) acc.v[r] += s.v[r]; }
// Of a block of kSumBlock = 32
static inline int32_t sum_block(const int8_t* p) {
  int32_t s = 0;
  for (int i = 0; i < 32; i++) s += p[i];
  return s;
}
static inline Ints minus(Ints a, int32_t x) { for (int r = 0; r < 16; r++) a.v[r] -= x; return a; }
static inline f32x16 to_float(const Ints& a) { return load_i32(a.v); }
static inline void look_up(const int8_t* table, uint8_t* codes, int count) { for (int i = 0; i < count; i++) codes[i] = uint8_t(table[codes[i]]); }
// The four K values of sixteen rows (64 bytes, [16][4]) as floats by k.
static inline void signed_lanes(const uint8_t* p, f32x16* out) {
  for (int i = 0; i < 4; i++) {
    float lane[16];
    for (int r = 0; r < 16; r++) lane[r] = float(int8_t(p[4 * r + i]));
    out[i] = load(lane);
  }
}
static inline void table_lanes(const float* table, const uint8_t* p, f32x16* out) {
  for (int i = 0; i < 4; i++) {
    float lane[16];
    for (int r = 0; r < 16; r++) lane[r] = table[p[4 * r + i] & 15];
    out[i] = load(lane);
  }
}
// The same of small floats: their bits are moved to where float32 has them, and the exponents' difference made good by a product, which is exact for
// numbers below the smallest normal one as well.
template <bool E5M2> static inline void float8_lanes(const uint8_t* p, f32x16* out) {
  for (int i = 0; i < 4; i++) {
    float lane[16];
    for (int r = 0; r < 16; r++) {
      const uint32_t code = p[4 * r + i], bits = (code & 0x80u) << 24 | (code & 0x7fu) << (E5M2 ? 21 : 20);
      std::memcpy(&lane[r], &bits, 4);
      lane[r] *= E5M2 ? 0x1p112f : 0x1p120f;  // 2^(127 - 15), 2^(127 - 7)
    }
    out[i] = load(lane);
  }
}
static inline void prefetch(const void*) {}
static inline void prefetch_l2(const void*) {}

}  // namespace octavo::portable
