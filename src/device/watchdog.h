// Calls with a time limit, on worker threads that can be detached.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

namespace mlx_ane {

/// Runs `call` on a worker and rethrows what it throws. On timeout returns
/// false and detaches the worker, which ends, with what `call` captures, when
/// the call returns. A bound of zero runs it on the caller's thread.
bool run_bounded(std::function<void()> call, std::chrono::milliseconds bound);

/// Detached calls that have not returned yet.
int64_t abandoned_calls();

}  // namespace mlx_ane
