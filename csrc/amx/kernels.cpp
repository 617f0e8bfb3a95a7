// AVX-512 VNNI and tiles.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "../ops.h"
#include "../trellis.h"
#include "dots.h"
#include "halves.h"

namespace octavo::amx {
#include "../lanes/linear.inl.h"
#include "../lanes/tiles.inl.h"
#include "../lanes/elementwise.inl.h"
#include "../lanes/attention_items.inl.h"
#include "../lanes/rotate.inl.h"
#include "../lanes/cache_write.inl.h"
#include "../lanes/attention_tiles.inl.h"
#include "../lanes/tile_table.inl.h"
}  // namespace octavo::amx

namespace octavo {
const Kernels* amx_kernels() { return amx::with_tiles("amx", avx512vnni_kernels()); }
}  // namespace octavo
