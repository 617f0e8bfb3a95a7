#include "team.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <stdexcept>
#include <string>
#include <system_error>

#include <sched.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace octavo {

namespace {

// Nanoseconds. A barrier of a decode step is a few microseconds away, and waking a sleeper costs about fifty. Who waits longer waits for a member
// that has lost its core to somebody else, and had better give up its own at once: that is what brings the other back. So patience halves with
// each wait that was too long, and every step begins with all of it.
constexpr long kLeastPatience = 2'000;
// Between two steps lie the sampler and the scheduler. Ends for good when there is no next step.
constexpr long kSpinIdle = 200'000;
constexpr int kPausesPerLook = 32;  // at the clock

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Which core the calling thread is on; -1 where the system does not tell
inline int core_now() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// On a busy machine the one that wakes a member often gets it onto its own core. There the two take turns: each waits asleep while the other works, so
// the system never sees that both want to run, and leaves them there. Whoever is told to go elsewhere goes at once; then it may be anywhere again.
void leave_core(int core, int team) {
#if defined(__linux__)
  cpu_set_t allowed, others;
  if (core >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < team) return;
  others = allowed;
  CPU_CLR(core, &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)core, (void)team;
#endif
}

}  // namespace

void Signal::raise() {
  value_.fetch_add(1, std::memory_order_seq_cst);
#if defined(__linux__)
  if (sleepers_.load(std::memory_order_seq_cst) > 0) syscall(SYS_futex, reinterpret_cast<unsigned*>(&value_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
}

bool Signal::wait(unsigned old, long spin) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::nanoseconds(spin);
  do {
    for (int i = 0; i < kPausesPerLook; i++) {
      if (value() != old) return false;
      relax();
    }
  } while (Clock::now() < end);
#if defined(__linux__)
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (value_.load(std::memory_order_seq_cst) == old)  // the kernel looks again before it lets us sleep
    syscall(SYS_futex, reinterpret_cast<unsigned*>(&value_), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
#else
  while (value() == old) sched_yield();
#endif
  return true;
}

Team::Team(int size, long patience) : size_(size < 1 ? 1 : size), most_patience_(std::max(patience, kLeastPatience)), owner_pid_(getpid()), patience_(most_patience_) {
  static_assert(sizeof(std::atomic<unsigned>) == sizeof(unsigned), "a futex is a plain 32-bit number");
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
  stop_ = true;
  start_.raise();
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
  patience_.store(most_patience_, std::memory_order_relaxed);
  caller_core_.store(core_now(), std::memory_order_relaxed);
  start_.raise();
  job(0);
  barrier();
}

void Team::barrier() {
  if (size_ == 1) return;
  const unsigned before = met_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    met_.raise();
    return;
  }
  const long patience = patience_.load(std::memory_order_relaxed);
  const bool slept = met_.wait(before, patience);
  patience_.store(std::clamp(slept ? patience / 2 : patience + patience / 16, kLeastPatience, most_patience_), std::memory_order_relaxed);
}

void Team::member(int id) {
  for (unsigned seen = 0;; seen++) {
    start_.wait(seen, kSpinIdle);
    if (stop_) return;
    if (const int core = caller_core_.load(std::memory_order_relaxed); core >= 0 && core == core_now()) leave_core(core, size_);
    (*job_)(id);
    barrier();
  }
}

}  // namespace octavo
