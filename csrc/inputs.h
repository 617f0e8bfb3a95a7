// The inputs of a linear: how it takes them, and where their int8 form lies. For those who run kernels; nothing here knows threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "ops.h"

namespace octavo {

// How a layer takes its inputs: float32 (group 0), int8 with a scale for each row or `group` values of it, or int8 with one fixed scale.
// threshold above 0: values of at least that size stay float32, beside int8 ones with scales of their own (arXiv 2208.07339, for each row by itself).
struct Inputs {
  int group = 0;
  float fixed = 0.f;
  int zero_point = 0;
  float threshold = 0.f;
  const float* factors = nullptr;  // [k]: by which inputs with a fixed scale are multiplied first
};

// std::invalid_argument for what no kernel takes, of a layer with k inputs
inline void check_inputs(const Inputs& how, int k) {
  const int kpad = (k + kStep - 1) / kStep * kStep;
  if (how.group < 0 || (how.group && how.group < kpad && how.group % kSumBlock)) throw std::invalid_argument("inputs: groups must be multiples of 32");
  if (how.fixed != 0.f && (!(how.fixed > 0.f) || !std::isfinite(how.fixed) || how.group < kpad || how.zero_point < -127 || how.zero_point > 127))
    throw std::invalid_argument("inputs: a fixed scale is above 0 and holds for the whole row");
  if (!(how.threshold >= 0.f) || !std::isfinite(how.threshold) || (how.threshold > 0.f && (!how.group || how.fixed > 0.f)))
    throw std::invalid_argument("inputs: a threshold is from 0 on, and for int8 inputs whose scales are found as they come");
}

// What inputs with a fixed scale are multiplied by, see FixedCodes; empty for others
inline std::vector<float> inverses(const Inputs& how, int k) {
  std::vector<float> found(how.fixed > 0.f ? size_t(k) : 0, 1.f / how.fixed);
  for (size_t i = 0; i < found.size() && how.factors; i++) found[i] *= how.factors[i];
  return found;
}

// The int8 form of rows of `k` values in memory of the caller's: [rows, kpad] codes, [rows, kpad/64] marks where there is a threshold, [rows, groups]
// scales, [rows, kpad/32] sums.
struct Codes {
  Inputs how;
  int k, kpad, groups;
  const float* inverse = nullptr;  // `inverses`, which whoever makes this keeps
  int8_t* q = nullptr;
  uint64_t* marks = nullptr;
  float* scale = nullptr;
  int32_t* sums = nullptr;

  Codes(const Inputs& inputs, int width)
      : how(inputs), k(width), kpad((width + kStep - 1) / kStep * kStep), groups(how.group && how.group < kpad ? (kpad + how.group - 1) / how.group : 1) {}
  // Room for as many rows, a multiple of 64
  size_t bytes(int rows) const {
    const size_t row = size_t(kpad) + sizeof(float) * size_t(groups) + sizeof(int32_t) * size_t(kpad / kSumBlock) + (how.threshold > 0.f ? sizeof(uint64_t) * size_t(kpad / kStep) : 0);
    return (size_t(rows) * row + 63) / 64 * 64;
  }
  // Floats that `fill` needs beside, for each thread
  size_t spare_bytes() const { return how.threshold > 0.f ? sizeof(float) * size_t(kpad) : 0; }
  void lie_at(void* memory, int rows) {
    q = static_cast<int8_t*>(memory);
    int8_t* next = q + size_t(rows) * size_t(kpad);
    if (how.threshold > 0.f) {
      marks = reinterpret_cast<uint64_t*>(next);
      next += sizeof(uint64_t) * size_t(rows) * size_t(kpad / kStep);
    }
    scale = reinterpret_cast<float*>(next);
    sums = reinterpret_cast<int32_t*>(scale + size_t(rows) * size_t(groups));
  }
  // Rows [a, b) of x; spare: see spare_bytes
  void fill(const Kernels& kernels, const float* x, int64_t stride, int a, int b, void* spare) const {
    if (how.fixed > 0.f) return kernels.quantize_fixed({inverse, how.fixed, how.zero_point}, x, stride, k, kpad, a, b, q, scale, sums);
    if (!marks) return kernels.quantize_rows(x, stride, k, kpad, how.group, a, b, q, scale, sums);
    float* rest = static_cast<float*>(spare);
    for (int r = a; r < b; r++) {
      kernels.split_row(x + r * stride, k, how.threshold, rest, marks + int64_t(r) * (kpad / kStep));
      kernels.quantize_rows(rest, k, k, kpad, how.group, 0, 1, q + int64_t(r) * kpad, scale + int64_t(r) * groups, sums + int64_t(r) * (kpad / kSumBlock));
    }
  }
  void put(Activations& in) const {
    in.q = q;
    in.marks = marks;
    in.scale = scale;
    in.sums = sums;
    in.group = how.group;
    in.groups = groups;
  }
};

// Panels [first, last) of a linear by one of its kernels, outliers included
inline void run_linear(const Kernels& kernels, const LinearKernel& kernel, const LinearCall& call, int first, int last, void* scratch) {
  kernel.run(call, first, last, scratch);
  if (call.in.marks && !call.w->is_float()) kernels.add_outliers(call, first, last);
}

}  // namespace octavo
