// All kernels of one instruction set. Included by <isa>/kernels.cpp after its dots.h, with OCTAVO_ISA set to the name of its folder and
// namespace; what lies in this folder is written over the names of vec.h and dots.h and compiled once per set, with that set's flags.
#include <cmath>
#include <cstring>

#include "../ops.h"

namespace octavo::OCTAVO_ISA {

#include "linear.inl.h"
#include "elementwise.inl.h"
#include "attention.inl.h"

}  // namespace octavo::OCTAVO_ISA

#define OCTAVO_TEXT_OF(x) #x
#define OCTAVO_TEXT(x) OCTAVO_TEXT_OF(x)
#define OCTAVO_JOIN_OF(a, b) a##b
#define OCTAVO_JOIN(a, b) OCTAVO_JOIN_OF(a, b)

namespace octavo {

const Kernels* OCTAVO_JOIN(OCTAVO_ISA, _kernels)() {
  using namespace OCTAVO_ISA;
  static const Kernels table = {OCTAVO_TEXT(OCTAVO_ISA), quantize_rows, linear, linear_scratch_bytes, embed, rms_norm, rope, gate, add_rows,
                                softcap, cache_write, attention_items, attention, attention_scratch_bytes};
  return &table;
}

}  // namespace octavo
