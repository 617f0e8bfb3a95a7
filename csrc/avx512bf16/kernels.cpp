// AVX-512 VNNI, and attention and linears with 16-bit inputs on pairs of bfloat16.
// gcc 12 warns of its own header here (its PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../avx512vnni/dots.h"
#include "../ops.h"

#define OCTAVO_PAGES "../avx512bf16/pair_pages.inl.h"

namespace octavo::avx512bf16 {
using namespace avx512vnni;
#include "../lanes/elementwise.inl.h"
#include "../lanes/attention.inl.h"
#include "../lanes/panels.inl.h"
#include "../avx512vnni/results.inl.h"
#include "pairs.inl.h"
#include "pair_linear.inl.h"

static bool fits(const CacheLayer& cache, CacheType type) { return type == CacheType::BF16 || type == CacheType::I8 || (type == CacheType::U4 && cache.head_dim % 32 == 0); }
static bool fits(const AttentionCall& c) { return fits(*c.cache, c.cache->k_type) && fits(*c.cache, c.cache->v_type); }

// The linear kernels of AVX-512 VNNI, for what pairs do not take, and then those of pairs
constexpr int kMostLinears = 8;
struct Linears {
  const Kernels& base;
  LinearKernel all[kMostLinears];
  int others, count;  // of base; in all
  explicit Linears(const Kernels& k) : base(k), others(k.linear_count), count(others + 2) {
    leave_alone(std::make_integer_sequence<int, kMostLinears - 2>());
    all[others] = {"pairs of two panels", pairs_support, linear_pairs<2>, true};
    all[others + 1] = {"pairs of four panels", few_pairs_support, linear_pairs<4>, true};
  }
  template <int... I> void leave_alone(std::integer_sequence<int, I...>) { (leave_alone<I>(), ...); }
  template <int I> void leave_alone();
};
static const Linears& pair_linears() {
  static const Linears linears(*avx512vnni_kernels());
  return linears;
}
template <int I> void Linears::leave_alone() {
  if (I >= others) return;
  all[I] = base.linears[I];
  all[I].supports = [](const Packed& w, int in_group, int rows) {
    return !pairs_support(w, in_group, rows) && pair_linears().base.linears[I].supports(w, in_group, rows);
  };
}
// Measured on Zen 4 (LOG)
static int usual_linear(const Packed& w, int in_group, int rows) {
  const Linears& l = pair_linears();
  return pairs_support(w, in_group, rows) ? l.others + (rows <= 20 && few_pairs_support(w, in_group, rows)) : l.base.usual_linear(w, in_group, rows);
}
}  // namespace octavo::avx512bf16

namespace octavo {

const Kernels* avx512bf16_kernels() {
  using namespace avx512bf16;
  static const Kernels* base = avx512vnni_kernels();
  static const Kernels table = [] {
    Kernels t = *base;
    t.isa = "avx512bf16";
    t.linears = pair_linears().all;
    t.linear_count = pair_linears().count;
    t.usual_linear = avx512bf16::usual_linear;
    t.linear_scratch_bytes = [] { return std::max(base->linear_scratch_bytes(), sizeof(PairScratch)); };
    t.attention_items = [](const AttentionCall& c) { return fits(c) ? avx512bf16::attention_items(c) : base->attention_items(c); };
    t.attention = [](const AttentionCall& c, int item, void* scratch) { fits(c) ? avx512bf16::attention(c, item, scratch) : base->attention(c, item, scratch); };
    t.attention_scratch_bytes = [](const AttentionCall& c) { return fits(c) ? avx512bf16::attention_scratch_bytes(c) : base->attention_scratch_bytes(c); };
    return t;
  }();
  return &table;
}

}  // namespace octavo
