// Worker threads that share the tasks of one call with the thread that makes
// it.
#include "host/pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <thread>

#include "host/process.h"

namespace mlx_ane::host {

namespace {

thread_local bool at_a_task = false;

/// One call; it lives on its caller's stack.
struct Job {
  const std::function<void(int64_t)>& body;
  int64_t tasks;
  /// Workers that may still join; guarded by the pool's mutex.
  int room;
  /// Workers at it; guarded by the pool's mutex.
  int workers = 0;
  std::atomic<int64_t> next{0};
  std::exception_ptr error = nullptr;
  std::mutex error_mutex{};

  void run() {
    at_a_task = true;
    for (int64_t i; (i = next.fetch_add(1)) < tasks;) {
      try {
        body(i);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        error = error ? error : std::current_exception();
      }
    }
    at_a_task = false;
  }
};

class Pool {
 public:
  void run(Job& job) {
    {
      std::lock_guard lock(mutex_);
      grow(job.room);
      jobs_.push_back(&job);
    }
    work_.notify_all();
    job.run();
    std::unique_lock lock(mutex_);
    jobs_.remove(&job);
    done_.wait(lock, [&] { return job.workers == 0; });
  }

 private:
  /// Workers live as long as the process: no call waits for one that is gone.
  void grow(int workers) {
    for (; count_ < workers; ++count_) {
      std::thread([this] { work(); }).detach();
    }
  }

  Job* open_job() {
    for (Job* job : jobs_) {
      if (job->room > 0 && job->next < job->tasks) {
        return job;
      }
    }
    return nullptr;
  }

  [[noreturn]] void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      work_.wait(lock, [&] { return (job = open_job()) != nullptr; });
      --job->room;
      ++job->workers;
      lock.unlock();
      job->run();
      lock.lock();
      if (--job->workers == 0) {
        done_.notify_all();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::list<Job*> jobs_;
  int count_ = 0;
};

}  // namespace

void parallel_for(
    int64_t tasks, int threads, const std::function<void(int64_t)>& body) {
  if (tasks <= 1 || threads <= 1 || at_a_task) {
    for (int64_t i = 0; i < tasks; ++i) {
      body(i);
    }
    return;
  }
  auto room = static_cast<int>(std::min<int64_t>(threads, tasks)) - 1;
  Job job{body, tasks, room};
  host::of_process<Pool>().run(job);
  if (job.error) {
    std::rethrow_exception(job.error);
  }
}

bool inside_task() {
  return at_a_task;
}

}  // namespace mlx_ane::host
