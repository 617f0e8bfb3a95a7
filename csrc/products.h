// Products of float32 matrices whose numbers are first rounded to bfloat16 (to nearest even); sums are float32. For what looks at a model rather
// than serves it: calibration. Instruction sets that multiply pairs of bfloat16 faster than they multiply floats have them, the others have none.
#pragma once
#include <cstdint>
#include <string>

namespace octavo {

struct ProductKernels {
  // y [m, n] = x [m, k] w^T, w [n, k]
  void (*product)(const float* x, int64_t m, const float* w, int64_t n, int64_t k, float* y);
  // y [k, k] = x^T D x, x [rows, k]; D: the diagonal matrix of squares of `factors` [rows], null for ones
  void (*gram)(const float* x, int64_t rows, int64_t k, const float* factors, float* y);
};
const ProductKernels* avx512bf16_products();

// null: this instruction set has none
const ProductKernels* products_for(const std::string& isa);

}  // namespace octavo
