// Trellis-coded weights (octavo/formats/_trellis.py says what the numbers mean): how a sequence of them is decoded, and rounded to the nearest path.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace octavo {

constexpr int kTrellisState = 12;      // bits of a state
constexpr int kTrellisStates = 1 << kTrellisState;
constexpr int kTrellisRows = 64;       // a sequence: 64 output rows of one column, closed to a ring
// Step t of a sequence belongs to row 16 * (t % 4) + t / 4 of its tile, so that the states of a panel's sixteen rows lie at one bit offset of
// sixteen places in a row
constexpr int trellis_row(int t) { return 16 * (t % 4) + t / 4; }
constexpr int trellis_multiplier(int bits) { return bits == 2 ? 977 : bits == 3 ? 2791 : 3571; }
constexpr int8_t kTrellisTable[16] = {-31, -20, -15, -12, -9, -6, -4, -1, 1, 4, 6, 9, 12, 15, 20, 31};
// The value of a state: a product's bits 8 to 11 and 0 to 3 choose two numbers of the table
constexpr int trellis_value(int state, int bits) {
  const int h = state * trellis_multiplier(bits);
  return 3 * kTrellisTable[(h >> 8) & 15] + kTrellisTable[h & 15];
}

// One block of columns of a weight [rows, width] to be rounded, in ascending order; what a column loses is made good in the later ones of the block
// (GPTQ, arXiv 2210.17323; LDLQ, arXiv 2307.13304). Row-major, `stride` floats a row.
struct TrellisBlock {
  int bits = 2;
  int64_t rows = 0, stride = 0;
  int width = 0;
  float* weights = nullptr;          // changed: the columns as they were when they were rounded
  const float* upper = nullptr;      // [width, width]: the block on the diagonal of the upper Cholesky factor of the inverse of the inputs' Gram matrix
  const float* scales = nullptr;     // [rows]
  uint16_t* states = nullptr;        // [rows, stride]
  float* errors = nullptr;           // [rows, width]: (weight - value) / diagonal of `upper`
};
struct TrellisKernels {
  void (*round)(const TrellisBlock& block, int64_t tile0, int64_t tile1);  // tiles of kTrellisRows rows
};
const TrellisKernels* portable_trellis();
const TrellisKernels* avx2_trellis();
const TrellisKernels* avx512vnni_trellis();

// All tiles, shared out to `threads`: the same bits for any number of them, and for every instruction set.
void round_trellis(const std::string& isa, const TrellisBlock& block, int threads);

}  // namespace octavo
