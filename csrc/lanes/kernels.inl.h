// All kernels of one instruction set. Included by <isa>/kernels.cpp after its dots.h, with OCTAVO_ISA set to the name of its folder and
// namespace, and OCTAVO_LINEARS to a file with its list of linear kernels when it has more than the general ones (which may name a larger
// OCTAVO_LINEAR_SCRATCH); what lies in this folder is written over the names of vec.h and dots.h and compiled once per set, with that set's flags.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../ops.h"
#include "../trellis.h"

namespace octavo::OCTAVO_ISA {

#include "elementwise.inl.h"
#include "linear.inl.h"
#ifdef OCTAVO_LINEARS
#include OCTAVO_LINEARS
#else
#include "linears.inl.h"
#endif
#ifndef OCTAVO_LINEAR_SCRATCH
#define OCTAVO_LINEAR_SCRATCH linear_scratch_bytes
#endif
#include "outliers.inl.h"
#include "attention.inl.h"
#include "sampling.inl.h"
#include "modules.inl.h"

}  // namespace octavo::OCTAVO_ISA

#define OCTAVO_TEXT_OF(x) #x
#define OCTAVO_TEXT(x) OCTAVO_TEXT_OF(x)
#define OCTAVO_JOIN_OF(a, b) a##b
#define OCTAVO_JOIN(a, b) OCTAVO_JOIN_OF(a, b)

namespace octavo {

const Kernels* OCTAVO_JOIN(OCTAVO_ISA, _kernels)() {
  using namespace OCTAVO_ISA;
  static const Kernels table = {OCTAVO_TEXT(OCTAVO_ISA), quantize_rows, quantize_fixed, split_row, add_outliers, kLinears, int(sizeof(kLinears) / sizeof(LinearKernel)),
                                usual_linear, OCTAVO_LINEAR_SCRATCH, embed, rms_norm, rope, gate, add_rows, columns, rotate_rows, softcap, cache_write, attention_items, attention,
                                attention_scratch_bytes, best, weights, at_least, layer_norm, activate_rows, mutual_attention, mutual_attention_scratch_bytes, cell};
  return &table;
}

}  // namespace octavo
