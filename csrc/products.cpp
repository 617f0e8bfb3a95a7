#include "products.h"

#include "table.h"

namespace octavo {

const ProductKernels* products_for(const std::string& isa) {
  const std::string name = kernels_for(isa).isa;  // refuses what cannot run here
#if defined(__x86_64__)
  if (name == "avx512bf16") return avx512bf16_products();
#endif
  return nullptr;
}

}  // namespace octavo
