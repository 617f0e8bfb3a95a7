#include "dots.h"

#define OCTAVO_ISA avx2

namespace octavo::avx2 {
static inline void hide(Unsigned& u) { __asm__ volatile("" : "+x"(u.w0), "+x"(u.w1)); }
static inline void hide(f32x16& v) { __asm__ volatile("" : "+x"(v.a), "+x"(v.b)); }
constexpr int kIntTile = 4, kFloatTile = 5;
}  // namespace octavo::avx2

#include "../lanes/ceilings.inl.h"

namespace octavo {
const CeilingKernels* avx2_ceilings() {
  static const CeilingKernels table = {"avx2", avx2::read_all, avx2::int8_rounds, avx2::float_rounds};
  return &table;
}
}  // namespace octavo
