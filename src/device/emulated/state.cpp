// Process-wide state of the emulated engine.
#include "device/emulated/state.h"

#include <map>
#include <mutex>

#include "device/emulated/faults.h"
#include "device/emulated/rules.h"
#include "host/environment.h"

namespace mlx_ane::emulated {

namespace {

struct Resident {
  int64_t loads;
  uint64_t weight_bytes;
};

struct State {
  std::mutex mutex;
  bool configured = false;
  Options options;
  int64_t compiles = 0;
  uint64_t weight_bytes = 0;
  bool poisoned = false;
  std::map<uint64_t, Resident> residents;
};

// Leaked: stream threads may still run programs while the process exits.
State& state() {
  static auto* out = new State;
  return *out;
}

void validate(const Options& options) {
  limits_of(options.chip);
  for (auto& name : options.allow) {
    rule(name);
  }
  if (options.memory_budget <= 0) {
    throw std::invalid_argument(
        "[mlx_ane.emulated] got memory_budget " +
        std::to_string(options.memory_budget) + ", need a positive number.");
  }
}

Options options_of_environment() {
  Options out;
  if (auto chip = host::variable("MLX_ANE_EMULATED_CHIP"); !chip.empty()) {
    out.chip = chip;
  }
  out.exact = host::choice_variable(
                  "MLX_ANE_EMULATED_NUMERICS", {"fast", "exact"}) == "exact";
  auto names = host::variable("MLX_ANE_EMULATED_ALLOW");
  for (size_t from = 0; from < names.size();) {
    auto to = std::min(names.find(',', from), names.size());
    out.allow.insert(names.substr(from, to - from));
    from = to + 1;
  }
  validate(out);
  return out;
}

}  // namespace

const Limits& limits_of_chip(const std::string& chip) {
  static auto* known = new std::map<std::string, Limits>;
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  auto found = known->find(chip);
  if (found == known->end()) {
    found = known->emplace(chip, limits_of(chip)).first;
  }
  return found->second;
}

Options options() {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  if (!s.configured) {
    s.options = options_of_environment();
    s.configured = true;
  }
  return s.options;
}

void configure(const Options& options) {
  validate(options);
  auto& s = state();
  std::lock_guard lock(s.mutex);
  s.options = options;
  s.configured = true;
}

Usage usage() {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  return {
      s.compiles,
      static_cast<int64_t>(s.residents.size()),
      s.weight_bytes,
      s.poisoned};
}

void reset() {
  set_faults("");
  release_hangs();
  auto& s = state();
  std::lock_guard lock(s.mutex);
  s.configured = false;
  s.compiles = 0;
  s.poisoned = false;
}

bool count_compile(int64_t most) {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  if (s.compiles >= most) {
    return false;
  }
  ++s.compiles;
  return true;
}

Residence acquire(
    uint64_t program,
    uint64_t weight_bytes,
    int64_t most_programs,
    uint64_t most_bytes) {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  auto found = s.residents.find(program);
  if (found != s.residents.end()) {
    ++found->second.loads;
    return Residence::granted;
  }
  if (static_cast<int64_t>(s.residents.size()) >= most_programs) {
    return Residence::too_many_programs;
  }
  if (weight_bytes > most_bytes || s.weight_bytes > most_bytes - weight_bytes) {
    return Residence::no_addresses;
  }
  s.residents.emplace(program, Resident{1, weight_bytes});
  s.weight_bytes += weight_bytes;
  return Residence::granted;
}

void release(uint64_t program) {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  auto found = s.residents.find(program);
  if (found != s.residents.end() && --found->second.loads == 0) {
    s.weight_bytes -= found->second.weight_bytes;
    s.residents.erase(found);
  }
}

void poison() {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  s.poisoned = true;
}

bool poisoned() {
  auto& s = state();
  std::lock_guard lock(s.mutex);
  return s.poisoned;
}

}  // namespace mlx_ane::emulated
