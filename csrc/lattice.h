// Rounding of a weight's inputs one after another, each knowing what the others lost, and the search for the scales to do it with
// (octavo/quantize/rounders/_lattice.py and _grid.py have the methods and their papers).
#pragma once
#include <cstdint>
#include <string>

namespace octavo {

// What scales are stored as: any float32, bfloat16, float16, or one of a few numbers.
enum class ScaleStore : int32_t { F32 = 0, BF16 = 1, F16 = 2, Table = 3 };

// The values that the weights of a group may take, for `rows` weights; arrays [groups, rows].
struct LatticeGrid {
  int groups = 0;
  int64_t rows = 0;
  float* scales = nullptr;          // times `outer`: what a step of 1 is worth; where it is 0, a step is worth 1
  float outer = 1.f;
  const float *low = nullptr, *high = nullptr;  // whole numbers from low to high
  const float* table = nullptr;     // or one of [entries] ascending numbers; null for whole ones
  int entries = 0;
  ScaleStore store = ScaleStore::F32;
  const float* stored = nullptr;    // ScaleStore::Table: [stored_entries] ascending
  int stored_entries = 0;
  float size_of(float scale) const { return scale == 0.f ? 1.f : scale * outer; }
};

// k inputs in ascending order; for every row
//   value     = the nearest that may be stored to (from[i] + pull[i]) / size of group[i], where pull begins as 0
//   pull[j]  += matrix[j][i] * (from[i] - value * size)     for all j after i
struct Lattice {
  int k = 0;
  const float* matrix = nullptr;    // [k, k]
  const int32_t *group = nullptr, *place = nullptr;  // [k]: the group of an input, and the row of `values` that is its
  const float* from = nullptr;      // [k, rows]
  float* values = nullptr;          // [k, rows]
};

// One pass over the inputs of rows that are rounded already; for every row
//   value     = the nearest that may be stored to values[i] + pull[i] * alpha[i] / size of its group
//   pull[j]  += matrix[j][i] * (values[i] - value) * size     for all j, and values[i] becomes value
struct Descent {
  int k = 0;
  const float* matrix = nullptr;    // [k, k], symmetric
  const float* alpha = nullptr;     // [k]
  const int32_t* starts = nullptr;  // [groups + 1]: groups are runs of inputs
  float *pull = nullptr, *values = nullptr;  // [rows, k]
};
// The scales (and zero points) of the grid with the least squared error of the rounded weight: of a few clipped ranges, each with the scale that fits
// its values best, the best.
struct ScaleSearch {
  const float* weight = nullptr;     // [k, rows]
  const float* importance = nullptr; // of each squared error: [k, rows], or [k] with importance_stride 0
  int64_t importance_stride = 0;
  const int32_t* starts = nullptr;   // [groups + 1]: groups are runs of inputs
  const float* ratios = nullptr;     // [ratio_count]: of the scales as they come
  int ratio_count = 0;
  bool fit = true;                   // false: scales are stored too coarsely for least squares
  float* zeros = nullptr;            // [groups, rows] whole numbers from 0 to steps, or null
  float steps = 0.f;
  int zero_tries = 1;                // 1: the zero that keeps the range centred; 3: its neighbours, too
};
struct LatticeKernels {
  void (*round)(const Lattice& lattice, const LatticeGrid& grid);
  int64_t (*descend)(const Descent& descent, const LatticeGrid& grid);
  void (*search)(const ScaleSearch& search, const LatticeGrid& grid);
};
const LatticeKernels* portable_lattice();
const LatticeKernels* avx2_lattice();
const LatticeKernels* avx512vnni_lattice();

// On the calling thread; rows are independent of each other. A descent returns how many values moved.
void round_lattice(const std::string& isa, const Lattice& lattice, const LatticeGrid& grid);
int64_t descend_lattice(const std::string& isa, const Descent& descent, const LatticeGrid& grid);
void search_scales(const std::string& isa, const ScaleSearch& search, const LatticeGrid& grid);

}  // namespace octavo
