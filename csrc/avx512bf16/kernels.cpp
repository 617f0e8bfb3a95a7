// AVX-512 VNNI, and attention on pairs of bfloat16.
// gcc 12 warns of its own header here (its PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "../avx512vnni/dots.h"
#include "../ops.h"

#define OCTAVO_PAGES "../avx512bf16/pair_pages.inl.h"

namespace octavo::avx512bf16 {
using namespace avx512vnni;
#include "../lanes/elementwise.inl.h"
#include "../lanes/attention.inl.h"

static bool fits(const CacheLayer& cache, CacheType type) { return type == CacheType::BF16 || type == CacheType::I8 || (type == CacheType::U4 && cache.head_dim % 32 == 0); }
static bool fits(const AttentionCall& c) { return fits(*c.cache, c.cache->k_type) && fits(*c.cache, c.cache->v_type); }
}  // namespace octavo::avx512bf16

namespace octavo {

const Kernels* avx512bf16_kernels() {
  using namespace avx512bf16;
  static const Kernels* base = avx512vnni_kernels();
  static const Kernels table = [] {
    Kernels t = *base;
    t.isa = "avx512bf16";
    t.attention_items = [](const AttentionCall& c) { return fits(c) ? avx512bf16::attention_items(c) : base->attention_items(c); };
    t.attention = [](const AttentionCall& c, int item, void* scratch) { fits(c) ? avx512bf16::attention(c, item, scratch) : base->attention(c, item, scratch); };
    t.attention_scratch_bytes = [](const AttentionCall& c) { return fits(c) ? avx512bf16::attention_scratch_bytes(c) : base->attention_scratch_bytes(c); };
    return t;
  }();
  return &table;
}

}  // namespace octavo
