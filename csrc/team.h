// A persistent team of threads: member 0 is the caller. Who waits spins for a moment, then sleeps until it is woken: a team that has nothing to
// do, or whose next member was sent off its core by somebody else's work, costs no time.
#pragma once
#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo {

// A number that threads wait for to change.
class Signal {
 public:
  unsigned value() const { return value_.load(std::memory_order_acquire); }
  // Adds one and wakes all who sleep here.
  void raise();
  // Returns once the value is not `old`: spins for up to `spin` nanoseconds, then sleeps. Whether it had to sleep.
  bool wait(unsigned old, long spin);

 private:
  alignas(64) std::atomic<unsigned> value_{0};
  alignas(64) std::atomic<int> sleepers_{0};
};

constexpr long kPatience = 50'000;  // see team.cpp

class Team {
 public:
  // patience: nanoseconds that a barrier spins at most. std::runtime_error when the system does not give that many threads
  explicit Team(int size, long patience = kPatience);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  int size() const { return size_; }
  // job(member) on every member; returns when all are done. One run at a time.
  void run(const std::function<void(int)>& job);
  // All members meet. Call from inside a job only, the same number of times on each member.
  void barrier();

 private:
  void member(int id);
  void end();  // wakes and joins all that have started
  int size_;
  long most_patience_;
  int owner_pid_;
  std::vector<std::thread> threads_;
  std::mutex run_lock_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<bool> stop_{false};
  std::atomic<int> caller_core_{-1};
  Signal start_, met_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<long> patience_;  // nanoseconds that a barrier spins
};

}  // namespace octavo
