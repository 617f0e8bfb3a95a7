#include "lattice.h"

#include "table.h"

namespace octavo {

static const LatticeKernels& lattice_for(const std::string& isa) {
  const std::string name = base_isa(isa);
#if defined(__x86_64__)
  if (name == "avx512vnni") return *avx512vnni_lattice();
  if (name == "avx2") return *avx2_lattice();
#endif
  return *portable_lattice();
}

void round_lattice(const std::string& isa, const Lattice& lattice, const LatticeGrid& grid) { lattice_for(isa).round(lattice, grid); }
int64_t descend_lattice(const std::string& isa, const Descent& descent, const LatticeGrid& grid) { return lattice_for(isa).descend(descent, grid); }
void search_scales(const std::string& isa, const ScaleSearch& search, const LatticeGrid& grid) { lattice_for(isa).search(search, grid); }

}  // namespace octavo
