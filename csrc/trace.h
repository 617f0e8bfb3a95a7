// What an operation is and when each member of the team worked on it or waited for the others.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace octavo {

// What an op must at least read, write and compute. An operation is a multiplication or an addition.
struct OpInfo {
  const char* kind = "";
  std::string shape;            // ops with the same kind and shape do the same work for the same rows
  std::string kernel;           // which of several ways runs it; empty when there is one
  bool logit_rows = false;      // its rows are those whose logits are wanted, not all of the step
  double weight_bytes = 0;      // read once a step, however many rows
  double row_bytes = 0;         // of activations (and gathered weights), for each row
  double int_ops = 0, float_ops = 0;  // for each row
  int layer = -1, heads = 0, kv_heads = 0, head_dim = 0, window = 0;  // attention: its work follows from the step
  bool int_pairs = false;       // attention multiplies queries and keys, and probabilities and values, as integers
};

// Time stamps that cost a few nanoseconds. They become nanoseconds of the steady clock by two stamps of both clocks, around the run.
inline uint64_t ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return uint64_t(std::chrono::steady_clock::now().time_since_epoch().count());
#endif
}
inline int64_t steady_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A member did `what` for op number `op` from its last mark until `at`. The number of ops stands for the search of the largest logits.
struct Mark {
  enum What : int32_t { Begin = 0, Work = 1, Wait = 2 };
  int32_t op, what;
  uint64_t at;
};

// The marks of the last run, member by member.
class Trace {
 public:
  void start(int members, size_t ops) {
    marks_.resize(size_t(members));
    for (auto& m : marks_) {
      m.list.clear();
      m.list.reserve(8 * ops + 8);
    }
    entered_ns_ = steady_ns();
    entered_ = ticks();
  }
  void finish() {
    left_ = ticks();
    left_ns_ = steady_ns();
  }
  void mark(int member, int op, Mark::What what) { marks_[size_t(member)].list.push_back({op, what, ticks()}); }
  int members() const { return int(marks_.size()); }
  const std::vector<Mark>& marks(int member) const { return marks_.at(size_t(member)).list; }
  int64_t nanoseconds(uint64_t at) const {
    return left_ == entered_ ? entered_ns_ : entered_ns_ + int64_t(double(int64_t(at - entered_)) * double(left_ns_ - entered_ns_) / double(left_ - entered_));
  }
  int64_t entered() const { return entered_ns_; }
  int64_t left() const { return left_ns_; }

 private:
  struct alignas(64) Member { std::vector<Mark> list; };
  std::vector<Member> marks_;
  int64_t entered_ns_ = 0, left_ns_ = 0;
  uint64_t entered_ = 0, left_ = 0;
};

}  // namespace octavo
