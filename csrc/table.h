// Which instruction sets are compiled in and can run here.
#pragma once
#include <string>
#include <vector>

#include "ops.h"

namespace octavo {

// Names of the sets that this CPU and operating system can run and this build holds, best first.
std::vector<std::string> available_isas();
// The kernels of a set, or of the best one for ""; throws std::invalid_argument with what is available. "amx_emulated", which is never listed, is
// amx for machines without it: avx2 with tiles in plain C++, slow, for tests.
const Kernels& kernels_for(const std::string& isa);
// The set whose vectors a set, or the best one for "", uses for what has no kernels of its own: avx512vnni, avx2 or portable. Throws as kernels_for.
std::string base_isa(const std::string& isa);
// Features of this CPU that kernels care about, e.g. "avx2", "avx512vnni", "amx_int8".
std::vector<std::string> cpu_features();

}  // namespace octavo
