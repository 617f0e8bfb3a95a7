#include "ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "table.h"

namespace octavo {

const CeilingKernels& ceilings_for(const std::string& isa) {
  const std::string name = kernels_for(isa).isa;  // refuses what cannot run here
#if defined(__x86_64__)
  if (name == "avx2" || name == "amx_emulated") return *avx2_ceilings();
  if (name == "avx512vnni") return *avx512vnni_ceilings();
  if (name == "avx512bf16") return *avx512bf16_ceilings();
  if (name == "amx") return *amx_ceilings();
#endif
  return *portable_ceilings();
}

static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The shortest of the passes that fit into `seconds`, at least two: job(member, pass)
template <class Job> static double shortest(Team& team, double seconds, const Job& job) {
  double best = 1e30;
  std::atomic<bool> more{true};
  team.run([&](int member) {
    const double began = now();
    for (int pass = 0; more.load(); pass++) {
      team.barrier();
      const double start = now();
      job(member, pass);
      team.barrier();
      const double end = now();
      if (member == 0) {
        best = std::min(best, end - start);
        more.store(pass < 1 || end - began < seconds);
      }
      team.barrier();
    }
  });
  return best;
}

double read_rate(Team& team, const CeilingKernels& kernels, const uint8_t* data, size_t bytes, double seconds) {
  const size_t lines = bytes / 256, members = size_t(team.size());
  std::vector<double> sink(members * 8);
  const double best = shortest(team, seconds, [&](int member, int pass) {
    const size_t m = size_t(member), a = lines * m / members, b = lines * (m + 1) / members;
    sink[m * 8] = kernels.read(data + 256 * a, 256 * (b - a), pass % 2);  // whichever suits the processor
  });
  return double(256 * lines) / best;
}

double operation_rate(Team& team, double (*work)(int64_t), double seconds) {
  int64_t rounds = 1000;
  double done = 0;
  for (;; rounds *= 4) {  // a pass long enough to time: a millisecond
    const double start = now();
    done = work(rounds);
    if (now() - start > 1e-3) break;
  }
  return done * team.size() / shortest(team, seconds, [&](int, int) { work(rounds); });
}

}  // namespace octavo
