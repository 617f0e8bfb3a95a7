#include "trellis.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "table.h"

namespace octavo {

static const TrellisKernels& trellis_for(const std::string& isa) {
  const std::string name = base_isa(isa);
#if defined(__x86_64__)
  if (name == "avx512vnni") return *avx512vnni_trellis();
  if (name == "avx2") return *avx2_trellis();
#endif
  return *portable_trellis();
}

void round_trellis(const std::string& isa, const TrellisBlock& block, int threads) {
  const TrellisKernels& kernels = trellis_for(isa);
  const int64_t tiles = (block.rows + kTrellisRows - 1) / kTrellisRows, shares = std::min<int64_t>(threads, tiles);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < shares; i++) others.emplace_back([&, i] { kernels.round(block, tiles * i / shares, tiles * (i + 1) / shares); });
  if (tiles > 0) kernels.round(block, 0, tiles / shares);
  for (auto& other : others) other.join();
}

}  // namespace octavo
