#include "vec.h"

#include <cmath>

#include "../ops.h"

namespace octavo {
namespace portable {

#include "../common/linear.h"
#include "../common/elementwise.inl.h"
#include "../common/attention.inl.h"

}  // namespace portable

const Kernels* portable_kernels() {
  using namespace portable;
  static const Kernels table = {"portable", quantize_rows, linear, linear_scratch_bytes, embed, rms_norm, rope, gate, add_rows, softcap,
                                cache_write, attention_items, attention, attention_scratch_bytes};
  return &table;
}

}  // namespace octavo
