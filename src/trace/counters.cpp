// Counters: atomics by enum, and a registry of layers behind one mutex.
#include "trace/counters.h"

#include <mutex>
#include <stdexcept>

namespace mlx_ane::trace {

namespace {

constexpr auto n_counters = static_cast<size_t>(Counter::count_);
constexpr auto n_placements = static_cast<size_t>(Placement::count_);

constexpr std::array<const char*, n_counters> counter_names = {
    "linear_calls",
    "matmul_calls",
    "block_calls",
    "block_retried",
    "device_calls",
    "evaluations",
    "gemm_forward",
    "gemm_dx",
    "gemm_dw",
    "gemm_other",
    "adam_steps",
    "adam_tensors",
    "adam_donated",
    "adam_allocated",
    "adam_skipped",
    "compiles",
    "executables_evicted",
    "executables_merged",
    "padded_rows",
    "block_packed_bytes",
    "weights_packed_bytes",
    "weights_staged_bytes",
    "weights_updated_bytes",
    "weight_store_hits",
    "weight_store_misses",
    "weight_store_over_budget",
    "spot_checks",
};
static_assert(counter_names.back(), "a counter has no name");

constexpr std::array<const char*, n_placements> placement_names = {
    "device_cpu",
    "few_rows",
    "out_of_range",
    "back_off",
    "device_out",
    "over_budget",
    "by_coreml",
    "kv_cache",
    "untranslated",
};
static_assert(placement_names.back(), "a placement has no name");

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Layer>> layers;
  std::map<std::string, int64_t> fallbacks;
  std::array<std::atomic<int64_t>, n_counters> counts{};
  std::array<std::atomic<int64_t>, n_placements> placed{};
};

// Leaked: stream threads may count while the process exits.
Registry& registry() {
  static auto* instance = new Registry;
  return *instance;
}

}  // namespace

const char* to_string(Placement placement) {
  return placement_names[static_cast<size_t>(placement)];
}

Placement placement_from(const std::string& name) {
  for (size_t i = 0; i < n_placements; ++i) {
    if (name == placement_names[i]) {
      return static_cast<Placement>(i);
    }
  }
  throw std::invalid_argument("[mlx_ane] got placement \"" + name + "\".");
}

void add(Counter counter, int64_t n) {
  registry().counts[static_cast<size_t>(counter)].fetch_add(
      n, std::memory_order_relaxed);
}

void add_fallback(const std::string& cause) {
  std::lock_guard lock(registry().mutex);
  ++registry().fallbacks[cause];
}

void Layer::place(Placement reason) {
  auto i = static_cast<size_t>(reason);
  placed[i].fetch_add(1, std::memory_order_relaxed);
  registry().placed[i].fetch_add(1, std::memory_order_relaxed);
}

void Layer::fall_back(const std::string& cause) {
  std::lock_guard lock(registry().mutex);
  ++fallbacks_[cause];
  ++registry().fallbacks[cause];
}

std::map<std::string, double> Layer::stats() const {
  std::map<std::string, double> out{
      {"calls", calls.load()},
      {"device_calls", device_calls.load()},
      {"bytes", bytes.load()},
      {"ms", nanoseconds.load() * 1e-6},
  };
  for (size_t i = 0; i < n_placements; ++i) {
    if (auto n = placed[i].load()) {
      out[std::string("placed_") + to_string(static_cast<Placement>(i))] = n;
    }
  }
  for (auto& [cause, n] : fallbacks_) {
    out["fallback_" + cause] = n;
  }
  return out;
}

void Layer::reset() {
  calls = device_calls = bytes = nanoseconds = 0;
  for (auto& n : placed) {
    n = 0;
  }
  fallbacks_.clear();
}

std::shared_ptr<Layer> layer(const std::string& name) {
  std::lock_guard lock(registry().mutex);
  auto& record = registry().layers[name];
  if (!record) {
    record = std::make_shared<Layer>(name);
  }
  return record;
}

void forget_layer(const std::string& name) {
  std::lock_guard lock(registry().mutex);
  registry().layers.erase(name);
}

std::map<std::string, int64_t> counters() {
  auto& r = registry();
  std::map<std::string, int64_t> out;
  for (size_t i = 0; i < n_counters; ++i) {
    out[counter_names[i]] = r.counts[i].load();
  }
  for (size_t i = 0; i < n_placements; ++i) {
    out[std::string("placed_") + to_string(static_cast<Placement>(i))] =
        r.placed[i].load();
  }
  std::lock_guard lock(r.mutex);
  for (auto& [cause, n] : r.fallbacks) {
    out["fallback_" + cause] = n;
  }
  return out;
}

std::map<std::string, std::map<std::string, double>> layer_counters() {
  std::lock_guard lock(registry().mutex);
  std::map<std::string, std::map<std::string, double>> out;
  for (auto& [name, record] : registry().layers) {
    if (record->calls.load() > 0) {
      out[name] = record->stats();
    }
  }
  return out;
}

void reset_counters() {
  auto& r = registry();
  std::lock_guard lock(r.mutex);
  for (auto& n : r.counts) {
    n = 0;
  }
  for (auto& n : r.placed) {
    n = 0;
  }
  r.fallbacks.clear();
  for (auto& [name, record] : r.layers) {
    record->reset();
  }
}

}  // namespace mlx_ane::trace
