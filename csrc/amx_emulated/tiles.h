// The tile registers of AMX in plain C++, for tests on machines without them: what an instruction reads and writes, byte for byte.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace octavo::amx_emulated {

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

struct TileRegisters {
  bool configured = false;
  TileConfig config;
  int8_t tile[8][16][64];
};
static thread_local TileRegisters registers;

// Shapes of all registers; every register is zero afterwards.
static inline void tiles_configure(const TileConfig& config) {
  registers.config = config;
  registers.configured = true;
  std::memset(registers.tile, 0, sizeof(registers.tile));
}
static inline void tiles_release() { registers.configured = false; }
static inline void check_tile(int t) {  // the processor raises #UD
  if (!registers.configured || !registers.config.rows[t] || !registers.config.bytes[t]) throw std::logic_error("a tile is used that has no shape");
}
template <int T> static inline void tile_zero() {
  check_tile(T);
  std::memset(registers.tile[T], 0, sizeof(registers.tile[T]));
}
// Row r from p + r * stride; what lies beyond the shape becomes zero.
template <int T> static inline void tile_load(const void* p, int64_t stride) {
  tile_zero<T>();
  for (int r = 0; r < registers.config.rows[T]; r++) std::memcpy(registers.tile[T][r], static_cast<const char*>(p) + r * stride, registers.config.bytes[T]);
}
template <int T> static inline void tile_store(void* p, int64_t stride) {
  check_tile(T);
  for (int r = 0; r < registers.config.rows[T]; r++) std::memcpy(static_cast<char*>(p) + r * stride, registers.tile[T][r], registers.config.bytes[T]);
}
static inline float float_of(const int8_t* bf16) {
  uint16_t b;
  std::memcpy(&b, bf16, 2);
  const uint32_t bits = uint32_t(b) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
template <int C, int A, int B> static inline void check_tiles() {
  check_tile(C);
  check_tile(A);
  check_tile(B);
  const TileConfig& c = registers.config;
  if (c.rows[C] != c.rows[A] || c.bytes[C] != c.bytes[B] || c.bytes[A] != 4 * c.rows[B]) throw std::logic_error("the shapes of three tiles do not fit");
}
// tdpbf16ps: C float [m][n] += sum over k of A bfloat16 [m][k] * B bfloat16 [k / 2][n][k % 2]; even and odd k have sums of their own until the end
// (denormals, which the processor takes for zero, are not watched for)
template <int C, int A, int B> static inline void tile_dot_bf16() {
  check_tiles<C, A, B>();
  const TileConfig& c = registers.config;
  for (int m = 0; m < c.rows[C]; m++) {
    float sums[16], even[16] = {}, odd[16] = {};
    std::memcpy(sums, registers.tile[C][m], 64);
    for (int k = 0; k < c.rows[B]; k++)
      for (int n = 0; n < c.bytes[C] / 4; n++) {
        even[n] = __builtin_fmaf(float_of(&registers.tile[A][m][4 * k]), float_of(&registers.tile[B][k][4 * n]), even[n]);
        odd[n] = __builtin_fmaf(float_of(&registers.tile[A][m][4 * k + 2]), float_of(&registers.tile[B][k][4 * n + 2]), odd[n]);
      }
    for (int n = 0; n < 16; n++) sums[n] += even[n] + odd[n];
    std::memcpy(registers.tile[C][m], sums, 64);
  }
}
// tdpbssd: C int32 [m][n] += sum over k of A int8 [m][k] * B int8 [k / 4][n][k % 4]
template <int C, int A, int B> static inline void tile_dot() {
  check_tiles<C, A, B>();
  const TileConfig& c = registers.config;
  for (int m = 0; m < c.rows[C]; m++) {
    int32_t sums[16];
    std::memcpy(sums, registers.tile[C][m], 64);
    for (int k = 0; k < c.rows[B]; k++)
      for (int n = 0; n < c.bytes[C] / 4; n++)
        for (int i = 0; i < 4; i++) sums[n] += registers.tile[A][m][4 * k + i] * registers.tile[B][k][4 * n + i];
    std::memcpy(registers.tile[C][m], sums, 64);
  }
}

}  // namespace octavo::amx_emulated
