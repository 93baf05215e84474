// Asks the affinity mask and the control groups; macOS has neither.
#include "host/cores.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace mlx_ane::host {

namespace fs = std::filesystem;

namespace {

int cores_in_mask() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  // A machine may have more cores than the fixed cpu_set_t has room for.
  for (int room = 1024; room <= 1 << 20; room *= 2) {
    cpu_set_t* mask = CPU_ALLOC(room);
    auto bytes = CPU_ALLOC_SIZE(room);
    bool fits = mask && sched_getaffinity(0, bytes, mask) == 0;
    int count = fits ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (fits) {
      return count;
    }
  }
#endif
  return cores;
}

/// Microseconds of CPU time a period over the period; "max" or -1 mean none.
std::optional<double> ratio(std::istream& quota, std::istream& period) {
  double runtime = 0, length = 0;
  bool limited =
      quota >> runtime && period >> length && runtime > 0 && length > 0;
  return limited ? std::optional(runtime / length) : std::nullopt;
}

std::optional<double> quota_in(const fs::path& group) {
  if (std::ifstream both(group / "cpu.max"); both) {
    return ratio(both, both);
  }
  std::ifstream quota(group / "cpu.cfs_quota_us");
  std::ifstream period(group / "cpu.cfs_period_us");
  return ratio(quota, period);
}

/// The controllers of a line "number:controllers:path" name those of version 1;
/// version 2 has none.
bool limits_cpu(const std::string& controllers) {
  return controllers.empty() ||
         ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

}  // namespace

std::optional<double> cpu_quota(const fs::path& root) {
  std::optional<double> least;
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    auto controllers = line.substr(first + 1, second - first - 1);
    if (!limits_cpu(controllers)) {
      continue;
    }
    // In a container the path may be the host's: what is not mounted has no
    // file, and the container's own group is at the root.
    auto mount = root / "sys/fs/cgroup" / controllers;
    auto path = line.substr(second + 1);
    fs::path group =
        path.substr(std::min(path.find_first_not_of('/'), path.size()));
    for (bool more = true; more; group = group.parent_path()) {
      more = !group.empty();
      if (auto quota = quota_in(mount / group)) {
        least = std::min(least.value_or(*quota), *quota);
      }
    }
  }
  return least;
}

int usable_cores() {
  int cores = cores_in_mask();
  if (auto quota = cpu_quota()) {
    cores = std::min(cores, static_cast<int>(std::ceil(*quota)));
  }
  return std::max(cores, 1);
}

}  // namespace mlx_ane::host
