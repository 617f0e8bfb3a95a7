// Which sequences of a step attend together, because they begin with the same pages of the cache.
#pragma once
#include <vector>

#include "ops.h"

namespace octavo {

class GangPlan {
 public:
  // Groups the sequences of a step that have one row each; every other one is alone. At most kGang together, and few enough that each of
  // `members` threads gets several items of work when there are `heads` items a gang.
  void plan(const Step& step, int members, int heads);
  const Gangs& all() const { return all_; }

 private:
  std::vector<int32_t> first_, members_, shared_;
  Gangs all_;
};

}  // namespace octavo
