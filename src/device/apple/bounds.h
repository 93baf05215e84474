// How long steps of a framework may take before they are given up.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "device/device.h"

namespace mlx_ane::apple {

/// Far beyond any report: 30 s for a compile that is slow (MiniMax-H3-Swift),
/// milliseconds for the rest. A wedged driver never signals (oMLX).
struct Bounds {
  std::chrono::milliseconds open{90'000};  // compile and load
  std::chrono::milliseconds evaluate{30'000};
  std::chrono::milliseconds unload{3'000};
};
Bounds bounds();
void set_bounds(const Bounds& bounds);

/// Runs `call` on a worker; DeviceError{hang} where it does not return in time.
/// The call then owns what it captured until it returns.
void within(
    std::chrono::milliseconds bound,
    const std::string& what,
    std::function<void()> call);

/// Runs an unload, and waits within its bound; where one hung, not for others.
/// Never throws: what does not unload stays with its worker.
void let_go(std::function<void()> call);

}  // namespace mlx_ane::apple
