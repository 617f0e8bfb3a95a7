// ggml's blocks of one instruction set (blocks.h): plain loops that the compiler turns into vectors with that set's flags. Included by
// <isa>/blocks.cpp after its vec.h, with OCTAVO_ISA set. No loop sums floats in an order of its own: eight partial sums, always the same.
#include <cmath>
#include <cstring>

#include "../blocks.h"

namespace octavo::OCTAVO_ISA {
namespace blocks {

static inline uint32_t bits_of(float x) { uint32_t b; std::memcpy(&b, &x, 4); return b; }
static inline float from_bits(uint32_t b) { float x; std::memcpy(&x, &b, 4); return x; }
// To the nearest whole number, ties to even, for |x| < 2^22.
static inline float nearest(float x) { return (x + 12582912.f) - 12582912.f; }
static inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// float32 -> float16, ties to even; beyond 65504 infinity.
static inline uint16_t half_bits(float x) {
  const uint32_t b = bits_of(x), sign = (b >> 16) & 0x8000u;
  const uint32_t a = b & 0x7fffffffu;
  if (a >= 0x47800000u) return uint16_t(sign | (a > 0x7f800000u ? 0x7e00u : 0x7c00u));
  if (a < 0x38800000u) return uint16_t(sign | (bits_of(from_bits(a) + 0.5f) - 0x3f000000u));  // subnormal: adding 1/2 rounds to steps of 2^-24
  const uint32_t odd = (a >> 13) & 1;
  return uint16_t(sign | ((a - 0x38000000u + 0xfffu + odd) >> 13));
}
static inline float half_value(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
  if (exponent) return from_bits(sign | ((exponent + 112u) << 23) | (fraction << 13));
  return from_bits(bits_of(float(fraction) * 5.9604644775390625e-8f) | sign);
}
// Writes a scale; whether it is beyond float16.
static inline size_t put_half(uint8_t* out, float x) {
  const uint16_t h = half_bits(x);
  std::memcpy(out, &h, 2);
  return (h & 0x7c00u) == 0x7c00u;
}

template <int N> static inline float largest(const float* x) {
  uint32_t most = 0;
  for (int i = 0; i < N; i++) { const uint32_t a = bits_of(x[i]) & 0x7fffffffu; most = a > most ? a : most; }
  return from_bits(most);
}
// The first number of the largest magnitude
template <int N> static inline float extreme(const float* x) {
  const uint32_t most = bits_of(largest<N>(x));
  for (int i = 0; i < N; i++) if ((bits_of(x[i]) & 0x7fffffffu) == most) return x[i];
  return 0.f;
}
template <int N> static inline void ends(const float* x, float& low, float& high) {
  low = high = x[0];
  float lows[8], highs[8];
  for (int j = 0; j < 8; j++) lows[j] = highs[j] = x[j];
  for (int i = 8; i < N; i += 8)
    for (int j = 0; j < 8; j++) {
      lows[j] = x[i + j] < lows[j] ? x[i + j] : lows[j];
      highs[j] = x[i + j] > highs[j] ? x[i + j] : highs[j];
    }
  for (int j = 0; j < 8; j++) { low = lows[j] < low ? lows[j] : low; high = highs[j] > high ? highs[j] : high; }
}
static inline float total(const float (&s)[8]) { return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])); }
static inline float inverse(float d) {
  const float i = d != 0.f ? 1.f / d : 0.f;
  return std::isfinite(i) ? i : 0.f;  // a scale so small is zero in float16 anyway
}

// ---- types of 32 numbers, rounded as ggml's reference does ------------------------------------------------------------------------------

static size_t q8_0(const float* x, uint8_t* out) {
  const float d = largest<32>(x) / 127.f, by = inverse(d);
  int8_t q[32];
  for (int i = 0; i < 32; i++) {  // halves away from zero, as roundf: adding a half to the magnitude is exact below 2^22
    const float t = x[i] * by, a = std::fabs(t), whole = float(int32_t(a));
    const float r = whole + (a - whole >= 0.5f ? 1.f : 0.f);
    q[i] = int8_t(int32_t(t < 0.f ? -r : r));
  }
  std::memcpy(out + 2, q, 32);
  return put_half(out, d);
}

// Codes 0 .. top of x * by + middle + 1/2, cut off.
static inline void cut(const float* x, float shift, float by, float half, int top, uint8_t* q) {
  for (int i = 0; i < 32; i++) {
    const int32_t v = int32_t((x[i] - shift) * by + half);
    q[i] = uint8_t(v > top ? top : v < 0 ? 0 : v);
  }
}
static inline void put_nibbles(const uint8_t* q, uint8_t* out) { for (int i = 0; i < 16; i++) out[i] = uint8_t((q[i] & 15) | (q[i + 16] << 4)); }
static inline void put_fifth(const uint8_t* q, uint8_t* out) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; i++) bits |= uint32_t(q[i] >> 4) << i;
  std::memcpy(out, &bits, 4);
}

static size_t q4_0(const float* x, uint8_t* out) {
  uint8_t q[32];
  const float d = extreme<32>(x) / -8.f, by = inverse(d);
  for (int i = 0; i < 32; i++) {
    const int32_t v = int32_t(x[i] * by + 8.5f);
    q[i] = uint8_t(v > 15 ? 15 : v < 0 ? 0 : v);
  }
  put_nibbles(q, out + 2);
  return put_half(out, d);
}
static size_t q5_0(const float* x, uint8_t* out) {
  uint8_t q[32];
  const float d = extreme<32>(x) / -16.f, by = inverse(d);
  cut(x, 0.f, by, 16.5f, 31, q);
  put_fifth(q, out + 2);
  put_nibbles(q, out + 6);
  return put_half(out, d);
}
static size_t q4_1(const float* x, uint8_t* out) {
  uint8_t q[32];
  float low, high;
  ends<32>(x, low, high);
  const float d = (high - low) / 15.f;
  cut(x, low, inverse(d), 0.5f, 15, q);
  put_nibbles(q, out + 4);
  return put_half(out, d) | put_half(out + 2, low);
}
static size_t q5_1(const float* x, uint8_t* out) {
  uint8_t q[32];
  float low, high;
  ends<32>(x, low, high);
  const float d = (high - low) / 31.f;
  cut(x, low, inverse(d), 0.5f, 31, q);
  put_fifth(q, out + 4);
  put_nibbles(q, out + 8);
  return put_half(out, d) | put_half(out + 2, low);
}

static size_t mxfp4(const float* x, uint8_t* out) {
  const float most = largest<32>(x);
  const int e = most > 0.f ? int(std::floor(std::log2(most))) - 2 + 127 : 0;
  const int code = e < 0 ? 0 : e;
  const float d = code < 2 ? from_bits(0x00200000u << code) : from_bits(uint32_t(code - 1) << 23);  // half the scale: elements count in halves
  uint8_t q[32];
  for (int i = 0; i < 32; i++) {
    const float a = std::fabs(x[i]);
    const int m = (a > .5f * d) + (a > 1.5f * d) + (a > 2.5f * d) + (a > 3.5f * d) + (a > 5.f * d) + (a > 7.f * d) + (a > 10.f * d);
    q[i] = uint8_t(m | (x[i] < 0.f && m ? 8 : 0));
  }
  out[0] = uint8_t(code);
  put_nibbles(q, out + 1);
  return 0;
}

static const float kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float kIq4Middles[15] = {-115.5, -93.5, -74, -57, -42, -28.5, -16, -4.5, 7, 19, 31.5, 45.5, 61, 79, 101};

static inline void iq4_codes(const float* x, float by, float* values, uint8_t* q) {
  for (int i = 0; i < 32; i++) {
    const float t = x[i] * by;
    int32_t code = 0;
    for (int m = 0; m < 15; m++) code += t > kIq4Middles[m];
    q[i] = uint8_t(code);
  }
  for (int i = 0; i < 32; i++) values[i] = kIq4[q[i]];
}
static size_t iq4_nl(const float* x, uint8_t* out) {
  const float most = extreme<32>(x);
  float best = 0.f, d = 0.f;
  float values[32];
  uint8_t q[32];
  for (int side = 0; side < 2 && most != 0.f; side++)
    for (int step = -7; step <= 7; step++) {
      const float by = inverse(most / ((side ? 113.f : -127.f) + float(step)));
      iq4_codes(x, by, values, q);
      float xv[8] = {}, vv[8] = {};
      for (int i = 0; i < 32; i += 8)
        for (int j = 0; j < 8; j++) { xv[j] += x[i + j] * by * values[i + j]; vv[j] += values[i + j] * values[i + j]; }
      const float cross = total(xv), gain = cross * cross / total(vv) * (1.f / (by * by));
      if (gain > best) { best = gain; d = cross / total(vv) / by; }
    }
  const uint16_t h = half_bits(d);
  iq4_codes(x, inverse(half_value(h)), values, q);
  put_nibbles(q, out + 2);
  return put_half(out, d);
}

// ---- ternary, 256 numbers ----------------------------------------------------------------------------------------------------------------

static float ternary(const float* x, uint8_t* q) {
  const float d = largest<256>(x), by = inverse(d);
  for (int i = 0; i < 256; i++) { const float t = x[i] * by; q[i] = uint8_t(1 + (t >= .5f) - (t <= -.5f)); }
  return d;
}
static size_t tq1_0(const float* x, uint8_t* out) {
  uint8_t q[256];
  const float d = ternary(x, q);
  const auto pack = [&](int first, int width, int digits, uint8_t* to) {
    for (int i = 0; i < width; i++) {
      int v = 0;
      for (int j = 0; j < 5; j++) v = v * 3 + (j < digits ? q[first + j * width + i] : 0);
      to[i] = uint8_t((v * 256 + 242) / 243);  // the least byte whose fraction reaches v / 243
    }
  };
  pack(0, 32, 5, out);
  pack(160, 16, 5, out + 32);
  pack(240, 4, 4, out + 48);
  return put_half(out + 52, d);
}
// Runs of 32 bytes that hold four planes of 32 two-bit codes each
static inline void put_planes(const uint8_t* q, uint8_t* out) {
  for (int run = 0; run < 2; run++)
    for (int i = 0; i < 32; i++) {
      const uint8_t* p = q + run * 128 + i;
      out[run * 32 + i] = uint8_t((p[0] & 3) | ((p[32] & 3) << 2) | ((p[64] & 3) << 4) | ((p[96] & 3) << 6));
    }
}
static size_t tq2_0(const float* x, uint8_t* out) {
  uint8_t q[256];
  const float d = ternary(x, q);
  put_planes(q, out);
  return put_half(out + 64, d);
}

// ---- K types: 256 numbers in groups, whose scales are small integers times a float16 ---------------------------------------------------

// value = scale * code - minimum, codes 0 .. top: the scale and minimum (>= 0) of the least squared error among clipped and widened ranges.
template <int N> static float affine(const float* x, float top, float& minimum) {
  float low, high;
  ends<N>(x, low, high);
  if (low > 0.f) low = 0.f;
  const float range = high - low;
  minimum = -low;
  if (!(range > 0.f) || !std::isfinite(1.f / range)) return 0.f;
  float sx[8] = {};
  for (int i = 0; i < N; i += 8) for (int j = 0; j < 8; j++) sx[j] += x[i + j];
  const float sum = total(sx);
  float best = 3e38f, scale = range / top;
  for (int step = 0; step <= 20; step++) {
    const float by = (top - 1.f + 0.1f * float(step)) / range;
    float l1[8] = {}, l2[8] = {}, xl[8] = {};
    for (int i = 0; i < N; i += 8)
      for (int j = 0; j < 8; j++) {
        const float l = clamp(nearest(by * (x[i + j] - low)), 0.f, top);
        l1[j] += l; l2[j] += l * l; xl[j] += l * x[i + j];
      }
    const float sl = total(l1), sll = total(l2), sxl = total(xl), det = float(N) * sll - sl * sl;
    if (!(det > 0.f)) continue;
    float s = (float(N) * sxl - sum * sl) / det, m = (sll * sum - sl * sxl) / det;
    if (m > 0.f) { m = 0.f; s = sxl / sll; }
    const float inv = inverse(s);
    float err[8] = {};
    for (int i = 0; i < N; i += 8)
      for (int j = 0; j < 8; j++) {
        const float l = clamp(nearest((x[i + j] - m) * inv), 0.f, top), e = s * l + m - x[i + j];
        err[j] += e * e;
      }
    const float error = total(err);
    if (error < best) { best = error; scale = s; minimum = -m; }
  }
  return scale;
}

template <int N> static inline float affine_error(const float* x, float s, float m, float top) {
  const float inv = inverse(s);
  float err[8] = {};
  for (int i = 0; i < N; i += 8)
    for (int j = 0; j < 8; j++) {
      const float l = clamp(nearest((x[i + j] + m) * inv), 0.f, top), e = s * l - m - x[i + j];
      err[j] += e * e;
    }
  return total(err);
}

struct Affine { uint8_t scale[16], minimum[16], q[256]; uint16_t d, dmin; };

// Fits all groups, rounds their scales and minimums to 0 .. most times a float16, and tries the neighbours of each.
template <int N> static Affine affine_blocks(const float* x, float top, float most) {
  constexpr int kGroups = 256 / N;
  Affine a{};
  float scales[kGroups], minimums[kGroups], widest = 0.f, deepest = 0.f;
  for (int g = 0; g < kGroups; g++) {
    scales[g] = affine<N>(x + g * N, top, minimums[g]);
    if (scales[g] < 0.f) scales[g] = 0.f;
    widest = scales[g] > widest ? scales[g] : widest;
    deepest = minimums[g] > deepest ? minimums[g] : deepest;
  }
  a.d = half_bits(widest / most);
  a.dmin = half_bits(deepest / most);
  const float d = half_value(a.d), dmin = half_value(a.dmin), by = inverse(d), by_min = inverse(dmin);
  for (int g = 0; g < kGroups; g++) {
    const float s0 = clamp(nearest(scales[g] * by), 0.f, most), m0 = clamp(nearest(minimums[g] * by_min), 0.f, most);
    float best = 3e38f, s = s0, m = m0;
    for (int i = -1; i <= 1; i++)
      for (int j = -1; j <= 1; j++) {
        const float si = clamp(s0 + float(i), 0.f, most), mj = clamp(m0 + float(j), 0.f, most);
        const float error = affine_error<N>(x + g * N, d * si, dmin * mj, top);
        if (error < best) { best = error; s = si; m = mj; }
      }
    a.scale[g] = uint8_t(s);
    a.minimum[g] = uint8_t(m);
    const float inv = inverse(d * s), shift = dmin * m;
    for (int i = 0; i < N; i++) a.q[g * N + i] = uint8_t(int32_t(clamp(nearest((x[g * N + i] + shift) * inv), 0.f, top)));
  }
  return a;
}
static inline size_t put_factors(const Affine& a, uint8_t* d, uint8_t* dmin) {
  std::memcpy(d, &a.d, 2);
  std::memcpy(dmin, &a.dmin, 2);
  return (a.d & 0x7c00u) == 0x7c00u || (a.dmin & 0x7c00u) == 0x7c00u;
}
static size_t q2_k(const float* x, uint8_t* out) {
  const Affine a = affine_blocks<16>(x, 3.f, 15.f);
  for (int g = 0; g < 16; g++) out[g] = uint8_t(a.scale[g] | (a.minimum[g] << 4));
  put_planes(a.q, out + 16);
  return put_factors(a, out + 80, out + 82);
}
static inline void put_six_bits(const Affine& a, uint8_t* out) {
  for (int g = 0; g < 4; g++) {
    out[g] = uint8_t(a.scale[g] | ((a.scale[g + 4] >> 4) << 6));
    out[g + 4] = uint8_t(a.minimum[g] | ((a.minimum[g + 4] >> 4) << 6));
    out[g + 8] = uint8_t((a.scale[g + 4] & 15) | ((a.minimum[g + 4] & 15) << 4));
  }
}
static inline void put_low_nibbles(const uint8_t* q, uint8_t* out) {
  for (int run = 0; run < 4; run++) for (int i = 0; i < 32; i++) out[run * 32 + i] = uint8_t((q[run * 64 + i] & 15) | ((q[run * 64 + 32 + i] & 15) << 4));
}
static size_t q4_k(const float* x, uint8_t* out) {
  const Affine a = affine_blocks<32>(x, 15.f, 63.f);
  put_six_bits(a, out + 4);
  put_low_nibbles(a.q, out + 16);
  return put_factors(a, out, out + 2);
}
static size_t q5_k(const float* x, uint8_t* out) {
  const Affine a = affine_blocks<32>(x, 31.f, 63.f);
  put_six_bits(a, out + 4);
  for (int i = 0; i < 32; i++) {
    int bits = 0;
    for (int g = 0; g < 8; g++) bits |= (a.q[g * 32 + i] >> 4) << g;
    out[16 + i] = uint8_t(bits);
  }
  put_low_nibbles(a.q, out + 48);
  return put_factors(a, out, out + 2);
}

// value = scale * code, codes -low .. low - 1: the scale, of either sign, of the least squared error.
static float symmetric(const float* x, float low) {
  const float most = extreme<16>(x);
  if (most == 0.f || !std::isfinite(1.f / most)) return 0.f;
  float best = 0.f, scale = 0.f;
  const int stride = low > 16.f ? 3 : 1;  // with many codes a third of the candidates is as good
  for (int side = 0; side < 2; side++)
    for (int step = -9; step <= 9; step += stride) {
      const float by = (side ? low - 1.f + 0.1f * float(step) : -(low + 0.1f * float(step))) / most;
      float xl[8] = {}, ll[8] = {};
      for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 8; j++) {
          const float t = x[i + j] * by, l = clamp(nearest(t), -low, low - 1.f);
          xl[j] += t * l; ll[j] += l * l;
        }
      const float cross = total(xl), square = total(ll);
      if (!(square > 0.f)) continue;
      const float gain = cross * cross / square / (by * by);
      if (gain > best) { best = gain; scale = cross / square / by; }
    }
  return scale;
}
struct Symmetric { int8_t scale[16], q[256]; uint16_t d; };

static Symmetric symmetric_blocks(const float* x, float low, float most) {
  Symmetric b{};
  float scales[16];
  for (int g = 0; g < 16; g++) scales[g] = symmetric(x + g * 16, low);
  b.d = half_bits(extreme<16>(scales) / -most);
  const float d = half_value(b.d), by = inverse(d);
  for (int g = 0; g < 16; g++) {
    const float s0 = clamp(nearest(scales[g] * by), -most, most - 1.f);
    float best = 3e38f, s = s0;
    for (int i = -1; i <= 1; i++) {
      const float si = clamp(s0 + float(i), -most, most - 1.f), step = d * si, inv = inverse(step);
      float err[8] = {};
      for (int k = 0; k < 16; k += 8)
        for (int j = 0; j < 8; j++) {
          const float l = clamp(nearest(x[g * 16 + k + j] * inv), -low, low - 1.f), e = step * l - x[g * 16 + k + j];
          err[j] += e * e;
        }
      const float error = total(err);
      if (error < best) { best = error; s = si; }
    }
    b.scale[g] = int8_t(int32_t(s));
    const float inv = inverse(d * s);
    for (int i = 0; i < 16; i++) b.q[g * 16 + i] = int8_t(int32_t(clamp(nearest(x[g * 16 + i] * inv), -low, low - 1.f)));
  }
  return b;
}
static size_t q3_k(const float* x, uint8_t* out) {
  const Symmetric b = symmetric_blocks(x, 4.f, 32.f);
  uint8_t q[256];
  std::memset(out, 0, 110);
  for (int i = 0; i < 256; i++) {
    const int l = b.q[i] + 4;
    q[i] = uint8_t(l & 3);
    out[i % 32] = uint8_t(out[i % 32] | ((l >> 2) << (i / 32)));
  }
  put_planes(q, out + 32);
  for (int g = 0; g < 16; g++) {
    const int l = b.scale[g] + 32;
    out[96 + g % 8] = uint8_t(out[96 + g % 8] | ((l & 15) << (g < 8 ? 0 : 4)));
    out[104 + g % 4] = uint8_t(out[104 + g % 4] | ((l >> 4) << (2 * (g / 4))));
  }
  std::memcpy(out + 108, &b.d, 2);
  return (b.d & 0x7c00u) == 0x7c00u;
}
static size_t q6_k(const float* x, uint8_t* out) {
  const Symmetric b = symmetric_blocks(x, 32.f, 128.f);
  uint8_t q[256], high[256];
  for (int i = 0; i < 256; i++) { q[i] = uint8_t(b.q[i] + 32); high[i] = uint8_t(q[i] >> 4); }
  for (int run = 0; run < 2; run++) for (int i = 0; i < 64; i++) out[run * 64 + i] = uint8_t((q[run * 128 + i] & 15) | ((q[run * 128 + 64 + i] & 15) << 4));
  put_planes(high, out + 128);
  std::memcpy(out + 192, b.scale, 16);
  std::memcpy(out + 208, &b.d, 2);
  return (b.d & 0x7c00u) == 0x7c00u;
}

template <class Encode> static size_t all(const float* x, size_t count, int numbers, int bytes, uint8_t* out, Encode encode) {
  size_t bad = 0;
  for (size_t b = 0; b < count; b++) bad += encode(x + b * size_t(numbers), out + b * size_t(bytes));
  return bad;
}

static size_t encode(BlockType type, const float* x, size_t count, uint8_t* out) {
  switch (type) {
    case BlockType::Q4_0: return all(x, count, 32, 18, out, q4_0);
    case BlockType::Q4_1: return all(x, count, 32, 20, out, q4_1);
    case BlockType::Q5_0: return all(x, count, 32, 22, out, q5_0);
    case BlockType::Q5_1: return all(x, count, 32, 24, out, q5_1);
    case BlockType::Q8_0: return all(x, count, 32, 34, out, q8_0);
    case BlockType::MXFP4: return all(x, count, 32, 17, out, mxfp4);
    case BlockType::IQ4_NL: return all(x, count, 32, 18, out, iq4_nl);
    case BlockType::TQ1_0: return all(x, count, 256, 54, out, tq1_0);
    case BlockType::TQ2_0: return all(x, count, 256, 66, out, tq2_0);
    case BlockType::Q2_K: return all(x, count, 256, 84, out, q2_k);
    case BlockType::Q3_K: return all(x, count, 256, 110, out, q3_k);
    case BlockType::Q4_K: return all(x, count, 256, 144, out, q4_k);
    case BlockType::Q5_K: return all(x, count, 256, 176, out, q5_k);
    case BlockType::Q6_K: return all(x, count, 256, 210, out, q6_k);
  }
  return 0;
}

static void widen(Floats type, const void* x, size_t count, float* out) {
  const uint16_t* p = static_cast<const uint16_t*>(x);
  size_t i = 0;
  if (type == Floats::BF16) {
    for (; i < count; i++) out[i] = from_bits(uint32_t(p[i]) << 16);
    return;
  }
  for (; i + 16 <= count; i += 16) store(out + i, load_f16(p + i));
  for (; i < count; i++) out[i] = half_value(p[i]);
}

}  // namespace blocks
}  // namespace octavo::OCTAVO_ISA

#define OCTAVO_JOIN_OF(a, b) a##b
#define OCTAVO_JOIN(a, b) OCTAVO_JOIN_OF(a, b)

namespace octavo {
const BlockKernels* OCTAVO_JOIN(OCTAVO_ISA, _blocks)() {
  static const BlockKernels table = {OCTAVO_ISA::blocks::encode, OCTAVO_ISA::blocks::widen};
  return &table;
}
}  // namespace octavo
