// gcc 12 warns of its own header here (its PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "dots.h"

#define OCTAVO_ISA avx512vnni

namespace octavo::avx512vnni {
static inline void hide(Unsigned& u) { __asm__ volatile("" : "+v"(u.w)); }
static inline void hide(f32x16& v) { __asm__ volatile("" : "+v"(v.v)); }
constexpr int kIntTile = 12, kFloatTile = 12;
}  // namespace octavo::avx512vnni

#include "../lanes/ceilings.inl.h"

namespace octavo {
const CeilingKernels* avx512vnni_ceilings() {
  static const CeilingKernels table = {"avx512vnni", avx512vnni::read_all, avx512vnni::int8_rounds, avx512vnni::float_rounds};
  return &table;
}
}  // namespace octavo
