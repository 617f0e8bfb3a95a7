// The eight tile registers of AMX: [up to 16 rows][up to 64 bytes] each, shapes given by a configuration per thread. Inline assembly, because gcc 12's
// intrinsics lie to the compiler: _tile_loadconfig names 8 of the 64 bytes that are read and _tile_loadd none at all, so that stores before
// them are dropped or moved. Same names as amx_emulated/tiles.h, which says what each does.
#pragma once
#include <cstdint>

namespace octavo::amx {

struct TileConfig {  // what ldtilecfg reads
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "ldtilecfg reads 64 bytes");

static inline void tiles_configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config)); }
static inline void tiles_release() { __asm__ volatile("tilerelease" ::); }
template <int T> static inline void tile_zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T> static inline void tile_load(const void* p, int64_t stride) { __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(T) : "memory"); }
template <int T> static inline void tile_store(void* p, int64_t stride) { __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(T) : "memory"); }
template <int C, int A, int B> static inline void tile_dot_bf16() { __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }
template <int C, int A, int B> static inline void tile_dot() { __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }

}  // namespace octavo::amx
