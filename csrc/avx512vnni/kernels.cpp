#include "vec.h"

#include <cmath>

#include "../ops.h"

namespace octavo {
namespace avx512vnni {

#include "../common/linear.h"
#include "../common/elementwise.inl.h"
#include "../common/attention.inl.h"

}  // namespace avx512vnni

const Kernels* avx512vnni_kernels() {
  using namespace avx512vnni;
  static const Kernels table = {"avx512vnni", quantize_rows, linear, linear_scratch_bytes, embed, rms_norm, rope, gate, add_rows, softcap,
                                cache_write, attention_items, attention, attention_scratch_bytes};
  return &table;
}

}  // namespace octavo
