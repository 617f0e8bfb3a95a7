// Ceilings of one instruction set (ceilings.h), written over vec.h and dots.h like the kernels. Included by <isa>/ceilings.cpp, which gives hide(x):
// the compiler must believe that x changed; and how many accumulators keep the units busy: kIntTile, kFloatTile.
#include "../ceilings.h"

namespace octavo::OCTAVO_ISA {

static volatile float sink;

static double read_all(const uint8_t* data, size_t bytes, bool prefetched) {
  const float* p = reinterpret_cast<const float*>(data);
  const float* end = p + bytes / 4;
  f32x16 a = zero(), b = zero(), c = zero(), d = zero();
  for (; p < end; p += 64) {
    if (prefetched) for (int i = 0; i < 64; i += 16) prefetch(p + i + 1024);
    a = add(a, load(p));
    b = add(b, load(p + 16));
    c = add(c, load(p + 32));
    d = add(d, load(p + 48));
  }
  sink = reduce_add(add(add(a, b), add(c, d)));
  return double(bytes);
}

static double int8_rounds(int64_t rounds) {
  alignas(64) static const uint8_t ones[64] = {1, 1, 1, 1};
  Unsigned w = load_unsigned(ones);
  Shorts sums[kIntTile];
  for (auto& s : sums) s = no_shorts();
  for (int64_t i = 0; i < rounds; i++)
    for (auto& s : sums) {
      hide(w);
      dot_unsigned(s, w, 0x01010101);
    }
  Ints total = no_ints();
  for (auto& s : sums) widen_shorts(total, s);
  sink = reduce_add(to_float(total));
  return double(rounds) * kIntTile * 64 * 2;
}

static double float_rounds(int64_t rounds) {
  f32x16 x = set1(0.5f), y = set1(0.25f);
  f32x16 sums[kFloatTile];
  for (auto& s : sums) s = zero();
  for (int64_t i = 0; i < rounds; i++)
    for (auto& s : sums) {
      hide(x);
      s = fmadd(x, y, s);
    }
  f32x16 total = zero();
  for (auto& s : sums) total = add(total, s);
  sink = reduce_add(total);
  return double(rounds) * kFloatTile * 16 * 2;
}

}  // namespace octavo::OCTAVO_ISA
