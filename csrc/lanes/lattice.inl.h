// Grids of scales and rounding to them (lattice.h) over sixteen float lanes. Included by <isa>/lattice.cpp after its vec.h, with OCTAVO_ISA set.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "../lattice.h"

namespace octavo::OCTAVO_ISA {
namespace lattice {

// The nearest of ascending numbers; between two of them the smaller one, as in formats/_table.py.
static inline float nearest(const float* table, int entries, float x) {
  int low = 0, high = entries - 1;  // the answer lies among these
  while (low < high) {
    const int middle = (low + high) / 2;
    if (x > (table[middle] + table[middle + 1]) * 0.5f) low = middle + 1;
    else high = middle;
  }
  return table[low];
}

static inline float to_half(float x) {  // and back, ties to even; |x| < 65520
  const float a = std::fabs(x);
  if (a < 0x1p-14f) return (x + std::copysign(0.75f, x)) - std::copysign(0.75f, x);  // subnormal: steps of 2^-24
  uint32_t b;
  std::memcpy(&b, &x, 4);
  b = (b + 0xfffu + ((b >> 13) & 1)) & ~0x1fffu;
  float r;
  std::memcpy(&r, &b, 4);
  return r;
}
static inline float to_brain(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  b = (b + 0x7fffu + ((b >> 16) & 1)) & ~0xffffu;
  float r;
  std::memcpy(&r, &b, 4);
  return r;
}
static inline float stored(const LatticeGrid& g, float scale) {
  switch (g.store) {
    case ScaleStore::F16: return to_half(std::clamp(scale, -65504.f, 65504.f));
    case ScaleStore::BF16: return to_brain(scale);
    case ScaleStore::Table: return nearest(g.stored, g.stored_entries, scale);
    default: return scale;
  }
}

#include "lattice_round.inl.h"
#include "lattice_descend.inl.h"
#include "lattice_search.inl.h"

}  // namespace lattice
}  // namespace octavo::OCTAVO_ISA

#define OCTAVO_JOIN_OF(a, b) a##b
#define OCTAVO_JOIN(a, b) OCTAVO_JOIN_OF(a, b)

namespace octavo {
const LatticeKernels* OCTAVO_JOIN(OCTAVO_ISA, _lattice)() {
  static const LatticeKernels kernels = {OCTAVO_ISA::lattice::round_all, OCTAVO_ISA::lattice::descend_all, OCTAVO_ISA::lattice::search_all};
  return &kernels;
}
}  // namespace octavo
