// Worker threads that share the tasks of one call with the thread that makes
// it.
#pragma once

#include <cstdint>
#include <functional>

namespace mlx_ane::host {

/// Runs body(0) .. body(tasks - 1), each once, on this thread and on up to
/// threads - 1 workers, and returns when all are done. Tasks are taken one by
/// one, so that a core that someone else needs slows its own tasks only. Calls
/// may come from several threads at once; within a task, calls run serially.
/// The first exception of a task is rethrown.
void parallel_for(
    int64_t tasks, int threads, const std::function<void(int64_t)>& body);

/// Whether this thread is at a task, where calls run serially.
bool inside_task();

}  // namespace mlx_ane::host
