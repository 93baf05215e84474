// Runs calls that may never return on workers that can be left behind.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

namespace mlx_ane {

/// Runs `call` on a worker and rethrows what it throws. Returns false if it did
/// not return within `bound`: the call then goes on, on a worker that nobody
/// waits for and that ends with it. What `call` captures stays alive until
/// then. A bound of zero runs it on the caller's thread.
bool run_bounded(std::function<void()> call, std::chrono::milliseconds bound);

/// Calls that were left behind and have not returned yet.
int64_t abandoned_calls();

}  // namespace mlx_ane
