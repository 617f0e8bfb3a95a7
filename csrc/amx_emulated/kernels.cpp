// AVX2 and emulated tiles.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "../ops.h"
#include "../trellis.h"
#include "dots.h"
#include "halves.h"

namespace octavo::amx_emulated {
#include "../lanes/linear.inl.h"
#include "../lanes/tiles.inl.h"
#include "../lanes/elementwise.inl.h"
#include "../lanes/attention_items.inl.h"
#include "../lanes/rotate.inl.h"
#include "../lanes/cache_write.inl.h"
#include "../lanes/attention_tiles.inl.h"
#include "../lanes/tile_table.inl.h"
}  // namespace octavo::amx_emulated

namespace octavo {
const Kernels* amx_emulated_kernels() { return amx_emulated::with_tiles("amx_emulated", avx2_kernels()); }
}  // namespace octavo
