#include "vec.h"

#include <cmath>

#include "../ops.h"

namespace octavo {
namespace avx2 {

#include "../common/linear.h"
#include "../common/elementwise.inl.h"
#include "../common/attention.inl.h"

}  // namespace avx2

const Kernels* avx2_kernels() {
  using namespace avx2;
  static const Kernels table = {"avx2", quantize_rows, linear, linear_scratch_bytes, embed, rms_norm, rope, gate, add_rows, softcap,
                                cache_write, attention_items, attention, attention_scratch_bytes};
  return &table;
}

}  // namespace octavo
