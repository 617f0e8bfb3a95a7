#include "table.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace octavo {

#if defined(__x86_64__)
namespace {
struct Cpuid { unsigned a = 0, b = 0, c = 0, d = 0; };
Cpuid cpuid(unsigned leaf, unsigned sub = 0) {
  Cpuid r;
  if (__get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}
// The register state that the operating system saves (XCR0); without it, instructions fault whatever cpuid says.
unsigned long long saved_state() {
  if (!(cpuid(1).c & (1u << 27))) return 0;
  unsigned lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<unsigned long long>(hi) << 32) | lo;
}
bool bit(unsigned word, int i) { return (word >> i) & 1u; }
// Linux gives a process the tile registers only when it asks; threads that exist and that will have them then too.
bool tiles_granted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA)
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
}  // namespace

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
  const unsigned long long state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  const Cpuid one = cpuid(1), seven = cpuid(7), seven1 = cpuid(7, 1);
  auto put = [&](bool has, const char* name) { if (has) found.emplace_back(name); };
  put(ymm && bit(one.c, 12), "fma");
  put(ymm && bit(one.c, 29), "f16c");
  put(ymm && bit(seven.b, 5), "avx2");
  put(ymm && bit(seven1.a, 4), "avx_vnni");
  put(zmm && bit(seven.b, 16), "avx512f");
  put(zmm && bit(seven.b, 17), "avx512dq");
  put(zmm && bit(seven.b, 30), "avx512bw");
  put(zmm && bit(seven.b, 31), "avx512vl");
  put(zmm && bit(seven.c, 11), "avx512vnni");
  put(zmm && bit(seven1.a, 5), "avx512bf16");
  put(zmm && bit(seven.c, 8), "gfni");
  put(tiles && bit(seven.d, 22), "amx_bf16");
  put(tiles && bit(seven.d, 24), "amx_tile");
  put(tiles && bit(seven.d, 25), "amx_int8");
  return found;
}
#else
std::vector<std::string> cpu_features() { return {}; }
#endif

std::vector<std::string> available_isas() {
  std::vector<std::string> isas;
#if defined(__x86_64__)
  const std::vector<std::string> features = cpu_features();
  auto has = [&](std::initializer_list<const char*> names) {
    for (const char* name : names) {
      bool found = false;
      for (const auto& f : features) found = found || f == name;
      if (!found) return false;
    }
    return true;
  };
  const bool vnni = has({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "fma", "f16c"});
  if (vnni && has({"amx_tile", "amx_int8", "amx_bf16", "gfni"}) && tiles_granted()) isas.emplace_back("amx");
  if (vnni && has({"avx512bf16"})) isas.emplace_back("avx512bf16");
  if (vnni) isas.emplace_back("avx512vnni");
  if (has({"avx2", "fma", "f16c"})) isas.emplace_back("avx2");
#endif
  isas.emplace_back("portable");
  return isas;
}

const Kernels& kernels_for(const std::string& isa) {
  std::string known;
  for (const auto& name : available_isas()) {
    known += (known.empty() ? "" : ", ") + name;
    if (!isa.empty() && name != isa) continue;
    if (name == "portable") return *portable_kernels();
#if defined(__x86_64__)
    if (name == "avx2") return *avx2_kernels();
    if (name == "avx512vnni") return *avx512vnni_kernels();
    if (name == "avx512bf16") return *avx512bf16_kernels();
    if (name == "amx") return *amx_kernels();
#endif
  }
#if defined(__x86_64__)
  if (isa == "amx_emulated" && known.find("avx2") != std::string::npos) return *amx_emulated_kernels();
#endif
  throw std::invalid_argument("instruction set '" + isa + "' cannot run here; available: " + known);
}

std::string base_isa(const std::string& isa) {
  const std::string name = kernels_for(isa).isa;  // refuses what cannot run here
  if (name == "amx" || name == "avx512bf16") return "avx512vnni";
  return name == "amx_emulated" ? "avx2" : name;
}

}  // namespace octavo
