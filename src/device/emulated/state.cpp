// Process-wide state of the emulated engine.
#include "device/emulated/state.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "device/emulated/faults.h"
#include "device/emulated/op.h"
#include "device/emulated/words.h"
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

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[mlx_ane.emulated] got " + what + ".");
}

void set(Options& options, std::string_view key, std::string_view value) {
  if (key == "chip") {
    options.chip = value;
  } else if (key == "numerics" && (value == "fast" || value == "exact")) {
    options.exact = value == "exact";
  } else if (key == "limits") {
    options.level = level_named(value);
  } else if (key == "allow") {
    for (auto id : split(value, ',')) {
      options.allow.emplace(trim(id));
    }
  } else if (key == "refuse") {
    for (auto op : split(value, ',')) {
      options.refuse.emplace(trim(op));
    }
  } else {
    throw std::invalid_argument(
        std::string(key) + "=" + std::string(value) +
        ", need chip=CHIP, numerics=fast or exact, limits=LEVEL, "
        "allow=RULE,... or refuse=OPERATION,...");
  }
}

/// Of MLX_ANE_EMULATED: "chip=M2;numerics=exact;allow=concat,gelu".
Options options_of_environment() {
  Options out;
  auto text = host::variable("MLX_ANE_EMULATED");
  try {
    for (auto pair : split(text, ';')) {
      auto equals = std::min(pair.find('='), pair.size());
      if (auto key = trim(pair.substr(0, equals)); !key.empty()) {
        set(out, key, trim(pair.substr(std::min(equals + 1, pair.size()))));
      }
    }
    return checked(out);
  } catch (const std::invalid_argument& error) {
    refuse("MLX_ANE_EMULATED=" + text + ": " + error.what());
  }
}

}  // namespace

constexpr const char* levels[] = {"off", "program", "strict"};

const char* to_string(Level level) {
  return levels[static_cast<int>(level)];
}

Level level_named(std::string_view name) {
  for (auto level : {Level::off, Level::program, Level::strict}) {
    if (name == to_string(level)) {
      return level;
    }
  }
  refuse(
      "limits \"" + std::string(name) +
      "\", need \"off\", \"program\" or \"strict\"");
}

Options checked(Options options) {
  options.chip = limits_of(options.chip).chip;
  mil::check_allow(options.allow, "mlx_ane.emulated");
  for (auto& op : options.refuse) {
    if (find_op(op) == nullptr) {
      refuse("refuse=" + op + ", need an operation of the engine");
    }
  }
  if (options.memory_budget <= 0) {
    refuse(
        "memory_budget " + std::to_string(options.memory_budget) +
        ", need a positive number");
  }
  return options;
}

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
  auto next = checked(options);
  auto& s = state();
  std::lock_guard lock(s.mutex);
  s.options = std::move(next);
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
