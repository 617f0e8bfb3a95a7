// A persistent team of threads: member 0 is the caller. Members sleep between runs; inside a run barriers spin briefly, then yield.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo {

class Team {
 public:
  explicit Team(int size);  // std::runtime_error when the system does not give that many threads
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
  int owner_pid_;
  std::vector<std::thread> threads_;
  std::mutex run_lock_, sleep_lock_;
  std::condition_variable wake_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<unsigned> generation_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

}  // namespace octavo
