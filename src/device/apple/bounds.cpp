// How long steps of a framework may take before they are given up.
#include "device/apple/bounds.h"

#include <atomic>
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

void let_go(std::function<void()> call) {
  static std::atomic<bool> hangs{false};
  auto bound = hangs ? std::chrono::milliseconds(200) : bounds().unload;
  try {
    within(bound, "unloading a program", std::move(call));
    hangs = false;
  } catch (const DeviceError& error) {
    hangs = hangs || error.cause == Cause::hang;
  } catch (const std::exception&) {
    // No thread, or no memory: nothing is left to do.
  }
}

}  // namespace mlx_ane::apple
