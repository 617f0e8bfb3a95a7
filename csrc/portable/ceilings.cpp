#include "dots.h"

#define OCTAVO_ISA portable

namespace octavo::portable {
static inline void hide(Unsigned& u) { __asm__ volatile("" : "+m"(u)); }
static inline void hide(f32x16& v) { __asm__ volatile("" : "+m"(v)); }
constexpr int kIntTile = 2, kFloatTile = 2;
}  // namespace octavo::portable

#include "../lanes/ceilings.inl.h"

namespace octavo {
const CeilingKernels* portable_ceilings() {
  static const CeilingKernels table = {"portable", portable::read_all, portable::int8_rounds, portable::float_rounds};
  return &table;
}
}  // namespace octavo
