// The tile registers of AMX in plain C++, for tests on machines without them: what an instruction reads and writes, byte for byte.
#pragma once
#include <immintrin.h>
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
static inline void check_product(int C, int A, int B) {
  check_tile(C);
  check_tile(A);
  check_tile(B);
  const TileConfig& c = registers.config;
  if (c.rows[C] != c.rows[A] || c.bytes[C] != c.bytes[B] || c.bytes[A] != 4 * c.rows[B]) throw std::logic_error("the shapes of three tiles do not fit");
}
// Out of line, so that nothing of it is moved out of where the rounding mode holds
static __attribute__((noinline)) void bf16_product(int8_t (*c)[64], const int8_t (*a)[64], const int8_t (*b)[64], int rows, int pairs, int columns) {
  for (int m = 0; m < rows; m++) {
    float sums[2][16] = {}, to[16];
    for (int k = 0; k < pairs; k++) {
      uint32_t both, others[16];
      std::memcpy(&both, a[m] + 4 * k, 4);
      std::memcpy(others, b[k], 64);
      for (int side = 0; side < 2; side++) {
        const uint32_t bits = side ? both & 0xffff0000u : both << 16;
        uint32_t wide[16];
        float x, y[16];
        for (int n = 0; n < 16; n++) wide[n] = side ? others[n] & 0xffff0000u : others[n] << 16;
        std::memcpy(&x, &bits, 4);
        std::memcpy(y, wide, 64);
        for (int n = 0; n < 16; n++) sums[side][n] = __builtin_fmaf(x, y[n], sums[side][n]);
      }
    }
    std::memcpy(to, c[m], 64);
    for (int n = 0; n < columns; n++) to[n] += sums[0][n] + sums[1][n];
    std::memcpy(c[m], to, 64);
  }
}
// tdpbf16ps: C float [m][n] += sum over k of A bfloat16 [m][k] * B bfloat16 [k / 2][n][k % 2]. As Intel's manual describes it (Software Developer's
// Manual, volume 2): sums of even and of odd k apart, by fused operations, then added; to nearest even, denormals zero, whatever MXCSR says.
template <int C, int A, int B> static inline void tile_dot_bf16() {
  check_product(C, A, B);
  const TileConfig& c = registers.config;
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // nothing trapped, nearest even, denormals are zeros in and out
  bf16_product(registers.tile[C], registers.tile[A], registers.tile[B], c.rows[C], c.rows[B], c.bytes[C] / 4);
  _mm_setcsr(before);
}
// tdpbssd: C int32 [m][n] += sum over k of A int8 [m][k] * B int8 [k / 4][n][k % 4]
template <int C, int A, int B> static inline void tile_dot() {
  check_product(C, A, B);
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
