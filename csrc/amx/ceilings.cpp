// Floats as on avx512vnni, integers by tiles.
#include "../ceilings.h"
#include "tiles.h"

namespace octavo {
namespace amx {

static double int8_rounds(int64_t rounds) {
  TileConfig config;
  for (int t = 0; t < 8; t++) {
    config.rows[t] = 16;
    config.bytes[t] = 64;
  }
  tiles_configure(config);  // every tile is zero then; zeros take as long as other numbers
  for (int64_t i = 0; i < rounds; i++) {  // accumulators 0..3, so that none waits for its last sum
    tile_dot<0, 4, 6>();
    tile_dot<1, 4, 7>();
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  }
  tiles_release();
  return double(rounds) * 4 * 16 * 16 * 64 * 2;
}

}  // namespace amx

const CeilingKernels* amx_ceilings() {
  static const CeilingKernels table = {"amx", avx512vnni_ceilings()->read, amx::int8_rounds, avx512vnni_ceilings()->floats};
  return &table;
}

}  // namespace octavo
