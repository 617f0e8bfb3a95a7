// AVX2 and emulated tiles.
#include <cmath>
#include <cstring>

#include "../ops.h"
#include "dots.h"

namespace octavo::amx_emulated {
#include "../lanes/linear.inl.h"
#include "../lanes/tiles.inl.h"
}  // namespace octavo::amx_emulated

namespace octavo {
const Kernels* amx_emulated_kernels() { return amx_emulated::with_tiles("amx_emulated", avx2_kernels()); }
}  // namespace octavo
