// State of one process: a forked child starts with its own.
#pragma once

#include <pthread.h>

namespace mlx_ane::host {

/// The process's T: made at the first use and never destroyed, as threads may
/// use it while the process ends. A forked child gets a new one, because the
/// threads that its parent's T counts on, and those that hold its locks, are
/// not there.
template <class T>
T& of_process() {
  static T* instance;
  [[maybe_unused]] static const bool made = [] {
    instance = new T;
    pthread_atfork(nullptr, nullptr, [] { instance = new T; });
    return true;
  }();
  return *instance;
}

}  // namespace mlx_ane::host
