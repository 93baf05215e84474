// Chooses the loops for this CPU.
#include "host/loops.h"

#include <atomic>
#include <stdexcept>

#include "host/target.h"

namespace mlx_ane::host {

namespace {

/// Best first; the last runs anywhere.
std::vector<const Loops*> supported() {
  std::vector<const Loops*> list;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    list.push_back(&avx512_loops);
  }
  if (avx2) {
    list.push_back(&avx2_loops);
  }
#elif defined(__aarch64__)
  list.push_back(&neon_loops);
#endif
  list.push_back(&generic_loops);
  return list;
}

std::atomic<const Loops*>& current() {
  static std::atomic<const Loops*> loops = supported().front();
  return loops;
}

}  // namespace

const Loops& loops() {
  return *current().load(std::memory_order_relaxed);
}

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const Loops* loops : supported()) {
    names.emplace_back(loops->name);
  }
  return names;
}

void set_target(const std::string& name) {
  std::string known;
  for (const Loops* loops : supported()) {
    if (name.empty() || name == loops->name) {
      current() = loops;
      return;
    }
    known += known.empty() ? loops->name : std::string(", ") + loops->name;
  }
  throw std::invalid_argument(
      "[mlx_ane.kernels] got target \"" + name + "\", need one of " + known +
      ", or \"\" for the best.");
}

}  // namespace mlx_ane::host
