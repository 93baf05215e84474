// MLX's streams in this process: a forked child has them, but not their
// threads.
#pragma once

#include <string>

#include "mlx/mlx.h"

#include "ops/checks.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// The CPU stream an op runs on: the caller's, or the engine's own for "ane",
/// whose evaluate blocks its worker, or the thread's default. Throws
/// std::runtime_error in a forked child where the call would wait for ever: on
/// a stream whose thread is the parent's, and on a device, whose locks and
/// connection may be, if the parent had threads at all.
mx::Stream resolve_stream(
    const std::string& op,
    const mx::StreamOrDevice& stream,
    const Place& place = {});

/// Waits for what was encoded on a stream, if its thread is in this process.
void wait_for(mx::Stream stream);

/// Waits for this thread's CPU streams: its default one and the engine's.
void synchronize();

}  // namespace mlx_ane
