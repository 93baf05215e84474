// Workers wait in an idle list; one that misses its bound never returns to it.
#include "device/watchdog.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "host/process.h"

namespace mlx_ane {

namespace {

struct Worker {
  std::mutex mutex;
  std::condition_variable changed;
  std::function<void()> call;
  std::exception_ptr error;
  bool done = false;
  bool abandoned = false;
};

struct Workers {
  std::mutex mutex;
  std::vector<std::shared_ptr<Worker>> idle;
  std::atomic<int64_t> abandoned{0};
};

Workers& workers() {
  return host::of_process<Workers>();
}

void serve(const std::shared_ptr<Worker>& worker) {
  std::unique_lock lock(worker->mutex);
  while (true) {
    worker->changed.wait(lock, [&] { return worker->call != nullptr; });
    auto call = std::move(worker->call);
    worker->call = nullptr;
    lock.unlock();
    std::exception_ptr error;
    try {
      call();
    } catch (...) {
      error = std::current_exception();
    }
    call = nullptr;
    lock.lock();
    worker->error = error;
    worker->done = true;
    worker->changed.notify_all();
    if (worker->abandoned) {
      --workers().abandoned;
      return;
    }
  }
}

std::shared_ptr<Worker> take_worker() {
  {
    std::lock_guard lock(workers().mutex);
    if (!workers().idle.empty()) {
      auto worker = std::move(workers().idle.back());
      workers().idle.pop_back();
      return worker;
    }
  }
  auto worker = std::make_shared<Worker>();
  std::thread([worker] { serve(worker); }).detach();
  return worker;
}

}  // namespace

bool run_bounded(std::function<void()> call, std::chrono::milliseconds bound) {
  if (bound.count() == 0) {
    call();
    return true;
  }
  auto worker = take_worker();
  std::exception_ptr error;
  {
    std::unique_lock lock(worker->mutex);
    worker->done = false;
    worker->call = std::move(call);
    worker->changed.notify_all();
    if (!worker->changed.wait_for(lock, bound, [&] { return worker->done; })) {
      worker->abandoned = true;
      ++workers().abandoned;
      return false;
    }
    error = std::exchange(worker->error, nullptr);
  }
  {
    std::lock_guard lock(workers().mutex);
    workers().idle.push_back(std::move(worker));
  }
  if (error) {
    std::rethrow_exception(error);
  }
  return true;
}

int64_t abandoned_calls() {
  return workers().abandoned;
}

}  // namespace mlx_ane
