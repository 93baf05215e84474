// How long steps of a framework may take before they are given up.
#include "device/apple/bounds.h"

#include <mutex>

#include "device/watchdog.h"

namespace mlx_ane::apple {

namespace {

std::mutex mutex;
Bounds current;

}  // namespace

Bounds bounds() {
  std::lock_guard lock(mutex);
  return current;
}

void set_bounds(const Bounds& bounds) {
  std::lock_guard lock(mutex);
  current = bounds;
}

void within(
    std::chrono::milliseconds bound,
    const std::string& what,
    std::function<void()> call) {
  if (!run_bounded(std::move(call), bound)) {
    throw DeviceError(
        Cause::hang,
        "[mlx_ane.ane] " + what + " did not return within " +
            std::to_string(bound.count()) + " ms.");
  }
}

}  // namespace mlx_ane::apple
