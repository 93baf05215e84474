// How many cores this process may keep busy.
#pragma once

#include <filesystem>
#include <optional>

namespace mlx_ane::host {

/// The cores of the machine, less those that the affinity mask of this thread
/// leaves out (taskset, sched_setaffinity), and no more than the CPU quota of
/// this process's control group (a container's), rounded up. At least 1.
int usable_cores();

/// The CPU quota of this process's control group or the least of those around
/// it, in cores, of version 1 or 2; nothing where no quota is set. /proc and
/// /sys are looked for below `root`.
std::optional<double> cpu_quota(const std::filesystem::path& root = "/");

}  // namespace mlx_ane::host
