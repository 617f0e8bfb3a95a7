// Sixteen float32 lanes without any vector instruction set. Same names as avx2/vec.h and avx512vnni/vec.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace octavo::portable {

constexpr bool kManyRegisters = false;  // 32 of them, not 16
struct f32x16 { float v[16]; };

#define LANES for (int i = 0; i < 16; i++)
static inline f32x16 zero() { f32x16 r; LANES r.v[i] = 0.f; return r; }
static inline f32x16 set1(float x) { f32x16 r; LANES r.v[i] = x; return r; }
static inline f32x16 load(const float* p) { f32x16 r; std::memcpy(r.v, p, 64); return r; }
static inline void store(float* p, f32x16 x) { std::memcpy(p, x.v, 64); }
// The first n (0..16) lanes; the others read as zero and are not written.
static inline f32x16 load_n(const float* p, int n) { f32x16 r; LANES r.v[i] = i < n ? p[i] : 0.f; return r; }
static inline void store_n(float* p, f32x16 x, int n) { for (int i = 0; i < n; i++) p[i] = x.v[i]; }
static inline f32x16 add(f32x16 a, f32x16 b) { LANES a.v[i] += b.v[i]; return a; }
static inline f32x16 sub(f32x16 a, f32x16 b) { LANES a.v[i] -= b.v[i]; return a; }
static inline f32x16 mul(f32x16 a, f32x16 b) { LANES a.v[i] *= b.v[i]; return a; }
static inline f32x16 div(f32x16 a, f32x16 b) { LANES a.v[i] /= b.v[i]; return a; }
static inline f32x16 max(f32x16 a, f32x16 b) { LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline f32x16 min(f32x16 a, f32x16 b) { LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline f32x16 abs(f32x16 a) { LANES a.v[i] = std::fabs(a.v[i]); return a; }
static inline f32x16 sqrt(f32x16 a) { LANES a.v[i] = std::sqrt(a.v[i]); return a; }
static inline f32x16 round(f32x16 a) { LANES a.v[i] = std::nearbyint(a.v[i]); return a; }  // to nearest even
static inline f32x16 fmadd(f32x16 a, f32x16 b, f32x16 c) { LANES c.v[i] += a.v[i] * b.v[i]; return c; }
// Lanes [from, to) of x; the others are `rest`
static inline f32x16 between(f32x16 x, int from, int to, float rest) { LANES x.v[i] = i >= from && i < to ? x.v[i] : rest; return x; }
static inline uint32_t unequal(f32x16 a, f32x16 b) { uint32_t m = 0; LANES m |= uint32_t(a.v[i] < b.v[i] || a.v[i] > b.v[i]) << i; return m; }  // a bit for each lane
// x * 2^n for n integral lanes in [-126, 127]; a NaN lane of n may become any power (x is NaN then)
static inline f32x16 scale2(f32x16 x, f32x16 n) {
  LANES { const uint32_t b = static_cast<uint32_t>(static_cast<int32_t>(n.v[i] == n.v[i] ? n.v[i] : 0.f) + 127) << 23; float s; std::memcpy(&s, &b, 4); x.v[i] *= s; }
  return x;
}
// p times two to the power of the integer in the low bits of t's mantissa, by adding to p's exponent
static inline f32x16 add_exponent(f32x16 p, f32x16 t) {
  LANES { uint32_t a, b; std::memcpy(&a, &p.v[i], 4); std::memcpy(&b, &t.v[i], 4); a += b << 23; std::memcpy(&p.v[i], &a, 4); }
  return p;
}
static inline float reduce_add(f32x16 a) {  // the tree of the vector versions: 8+8, 4+4, 2+2, 1+1
  for (int w = 8; w; w /= 2) for (int i = 0; i < w; i++) a.v[i] += a.v[i + w];
  return a.v[0];
}
static inline float reduce_max(f32x16 a) { float m = a.v[0]; for (int i = 1; i < 16; i++) m = a.v[i] > m ? a.v[i] : m; return m; }
static inline f32x16 load_bf16(const uint16_t* p) { f32x16 r; LANES { uint32_t b = uint32_t(p[i]) << 16; std::memcpy(&r.v[i], &b, 4); } return r; }
// Round to nearest even; NaN stays NaN.
static inline uint16_t to_bf16(float x) {
  uint32_t b; std::memcpy(&b, &x, 4);
  if ((b & 0x7fffffffu) > 0x7f800000u) return uint16_t((b >> 16) | 0x40);
  return uint16_t((b + 0x7fffu + ((b >> 16) & 1)) >> 16);
}
static inline void store_bf16(uint16_t* p, f32x16 x) { LANES p[i] = to_bf16(x.v[i]); }
static inline float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3ffu;
  uint32_t bits;
  if (exp == 31) bits = sign | 0x7f800000u | (man << 13);
  else if (exp) bits = sign | ((exp + 112u) << 23) | (man << 13);
  else { const float f = static_cast<float>(man) * 5.9604644775390625e-8f; std::memcpy(&bits, &f, 4); bits |= sign; }
  float r; std::memcpy(&r, &bits, 4); return r;
}
static inline f32x16 load_f16(const uint16_t* p) { f32x16 r; LANES r.v[i] = from_f16(p[i]); return r; }
static inline f32x16 load_i8(const int8_t* p) { f32x16 r; LANES r.v[i] = static_cast<float>(p[i]); return r; }
// Sixteen codes of FP8 E4M3: their bits are moved to where float32 has them, and the exponents' difference made good by a product, which is exact
static inline f32x16 load_e4m3(const uint8_t* p) {
  f32x16 r;
  LANES { const uint32_t c = p[i], bits = (c & 0x80u) << 24 | (c & 0x7fu) << 20; std::memcpy(&r.v[i], &bits, 4); r.v[i] *= 0x1p120f; }
  return r;
}
// The low, or the high, four bits of sixteen bytes
template <bool High> static inline f32x16 load_u4(const uint8_t* p) { f32x16 r; LANES r.v[i] = static_cast<float>(High ? p[i] >> 4 : p[i] & 15); return r; }
// The upper, or the lower, sixteen bits of each word as a bfloat16
template <bool Upper> static inline f32x16 half_words(f32x16 x) {
  LANES { uint32_t b; std::memcpy(&b, &x.v[i], 4); b = Upper ? b & 0xffff0000u : b << 16; std::memcpy(&x.v[i], &b, 4); }
  return x;
}
static inline f32x16 load_i32(const int32_t* p) { f32x16 r; LANES r.v[i] = static_cast<float>(p[i]); return r; }
// Round to nearest even, saturate to [-128, 127]
static inline void store_i8(int8_t* p, f32x16 x) { LANES { float f = std::nearbyint(x.v[i]); p[i] = int8_t(f > 127.f ? 127.f : f < -128.f ? -128.f : f); } }
#undef LANES

}  // namespace octavo::portable
