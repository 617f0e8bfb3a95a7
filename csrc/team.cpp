#include "team.h"

#include <sched.h>
#include <unistd.h>

#include <stdexcept>
#include <string>
#include <system_error>

namespace octavo {

static inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

constexpr int kSpinBarrier = 400;    // pauses before a waiting member offers its core to others: a few microseconds
constexpr int kSpinIdle = 2000;      // pauses before an idle member goes to sleep

Team::Team(int size) : size_(size < 1 ? 1 : size), owner_pid_(getpid()) {
  threads_.reserve(size_t(size_ - 1));
  try {
    for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { member(i); });
  } catch (const std::system_error& error) {  // the destructor does not run, and joinable threads end the process
    const std::string started = std::to_string(threads_.size() + 1);
    end();
    throw std::runtime_error("only " + started + " of " + std::to_string(size_) + " threads could start: " + error.what());
  }
}

Team::~Team() {
  if (getpid() != owner_pid_) {  // a fork's child has no such threads
    for (auto& t : threads_) t.detach();
    return;
  }
  end();
}

void Team::end() {
  {
    std::lock_guard<std::mutex> hold(sleep_lock_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& t : threads_) t.join();
}

void Team::run(const std::function<void(int)>& job) {
  if (getpid() != owner_pid_) throw std::runtime_error("the thread team does not survive a fork: load the model in the child process");
  std::lock_guard<std::mutex> one(run_lock_);
  if (size_ == 1) {
    job(0);
    return;
  }
  job_ = &job;
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> hold(sleep_lock_);
    wake_.notify_all();
  }
  job(0);
  barrier();
}

void Team::barrier() {
  if (size_ == 1) return;
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  int spins = 0;
  while (phase_.load(std::memory_order_acquire) == phase) {
    if (++spins < kSpinBarrier) relax();
    else sched_yield();
  }
}

void Team::member(int id) {
  unsigned seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen && !stop_.load(std::memory_order_relaxed)) {
      if (++spins < kSpinIdle) {
        relax();
        continue;
      }
      std::unique_lock<std::mutex> hold(sleep_lock_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(hold, [&] { return generation_.load(std::memory_order_seq_cst) != seen || stop_.load(); });
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    if (stop_) return;
    seen++;
    (*job_)(id);
    barrier();
  }
}

}  // namespace octavo
