// What this machine can do at best: bytes read, and operations on registers. What kernels are held against.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "team.h"

namespace octavo {

// One per instruction set. Each function is called by one thread and returns what it did, so that nothing is optimized away.
struct CeilingKernels {
  const char* isa;
  double (*read)(const uint8_t* data, size_t bytes, bool prefetched);  // data: 64-byte aligned, bytes: a multiple of 256
  double (*int8)(int64_t rounds);                    // operations: products of int8 and sums of them, from registers
  double (*floats)(int64_t rounds);                  // operations: multiplications and additions to float32 sums, from registers
};
const CeilingKernels* portable_ceilings();
const CeilingKernels* avx2_ceilings();
const CeilingKernels* avx512vnni_ceilings();
const CeilingKernels* avx512bf16_ceilings();
const CeilingKernels* amx_ceilings();
// Of an instruction set that kernels_for takes
const CeilingKernels& ceilings_for(const std::string& isa);

// Best of several passes that take about `seconds` together. Bytes a second: the team reads `data` once a pass, each member a share.
double read_rate(Team& team, const CeilingKernels& kernels, const uint8_t* data, size_t bytes, double seconds);
// Operations a second of the whole team
double operation_rate(Team& team, double (*work)(int64_t rounds), double seconds);

}  // namespace octavo
