#include "gangs.h"

#include <algorithm>

namespace octavo {

namespace {

constexpr int kLeast = 4;  // pages in common that are worth it

// Whole pages that both sequences begin with, before the page that each writes now
int common(const Step& step, int a, int b) {
  const int32_t *one = step.tables + int64_t(a) * step.table_stride, *other = step.tables + int64_t(b) * step.table_stride;
  const int most = (std::min(step.lengths[a], step.lengths[b]) - 1) / kPage;
  return int(std::mismatch(one, one + most, other).first - one);
}

}  // namespace

void GangPlan::plan(const Step& step, int members, int heads) {
  first_.clear();
  shared_.clear();
  members_.clear();
  for (int s = 0; s < step.sequences; s++)
    if (step.starts[s + 1] - step.starts[s] == 1 && step.lengths[s] > kLeast * kPage) members_.push_back(s);
  const int singles = int(members_.size());
  const int most = std::clamp(singles * heads / (4 * std::max(members, 1)), 1, kGang);
  std::sort(members_.begin(), members_.end(), [&](int32_t a, int32_t b) {  // those with the same beginning lie side by side
    const int32_t *one = step.tables + int64_t(a) * step.table_stride, *other = step.tables + int64_t(b) * step.table_stride;
    const int pages = (std::min(step.lengths[a], step.lengths[b]) - 1) / kPage, same = common(step, a, b);
    return same < pages ? one[same] < other[same] : step.lengths[a] != step.lengths[b] ? step.lengths[a] < step.lengths[b] : a < b;
  });
  for (int i = 0; i < singles;) {
    int next = i + 1, shared = 0;
    for (; next < singles && next - i < most; next++) {
      const int with = common(step, members_[size_t(i)], members_[size_t(next)]);
      // A later one may share less, but not so little that the others lose what they had
      if (with < kLeast || 2 * with < shared) break;
      shared = shared ? std::min(shared, with) : with;
    }
    first_.push_back(i);
    shared_.push_back(shared);
    i = next;
  }
  for (int s = 0; s < step.sequences; s++)
    if (!(step.starts[s + 1] - step.starts[s] == 1 && step.lengths[s] > kLeast * kPage)) {
      first_.push_back(int32_t(members_.size()));
      shared_.push_back(0);
      members_.push_back(s);
    }
  first_.push_back(int32_t(members_.size()));
  all_.count = int32_t(shared_.size());
  all_.first = first_.data();
  all_.members = members_.data();
  all_.shared = shared_.data();
}

}  // namespace octavo
