// Compiles on a miss and unloads the least recently used program at the budget.
#include "device/executables.h"

#include <algorithm>

#include "trace/counters.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

std::shared_ptr<LoadedMatmul> load(Device& device, const MatmulShape& shape) {
  auto dialect = device.limits().verbose_dialect ? mil::Dialect::ios16
                                                 : mil::Dialect::ios18;
  auto source = matmul_source(shape, dialect);
  trace::Span span("compile", "", source.text.size(), 0);
  trace::add(trace::Counter::compiles);
  auto program = std::make_shared<LoadedMatmul>();
  program->executable = device.compile(source);
  auto input_bytes = input_surface_bytes(shape);
  program->x = device.make_surface(input_bytes);
  program->w = device.make_surface(input_bytes);
  program->y = device.make_surface(surface_bytes(source.outputs[0]));
  program->x_row_bytes = row_bytes(source.inputs[0]);
  program->w_row_bytes = row_bytes(source.inputs[1]);
  program->y_row_bytes = row_bytes(source.outputs[0]);
  return program;
}

} // namespace

std::shared_ptr<LoadedMatmul> ExecutableCache::get(
    Device& device,
    const MatmulShape& shape) {
  std::lock_guard lock(mutex_);
  Key key{&device, shape};
  if (auto found = entries_.find(key); found != entries_.end()) {
    recency_.splice(recency_.begin(), recency_, found->second.recency);
    return found->second.program;
  }
  auto resident = [&] {
    return std::count_if(entries_.begin(), entries_.end(), [&](auto& entry) {
      return entry.first.first == &device;
    });
  };
  while (resident() >= device.limits().resident_programs) {
    if (!evict_idle(device)) {
      throw DeviceError(
          Cause::cap_reached,
          "all " + std::to_string(resident()) +
              " programs that may be resident are in use");
    }
  }
  while (true) {
    try {
      auto program = load(device, shape);
      recency_.push_front(key);
      entries_[key] = {program, recency_.begin()};
      return program;
    } catch (const DeviceError& error) {
      // Other users of the engine share its cap: give one of ours back.
      if (error.cause != Cause::cap_reached || !evict_idle(device)) {
        throw;
      }
    }
  }
}

bool ExecutableCache::evict_idle(Device& device) {
  for (auto key = recency_.rbegin(); key != recency_.rend(); ++key) {
    auto entry = entries_.find(*key);
    if (key->first == &device && entry->second.program.use_count() == 1) {
      recency_.erase(entry->second.recency);
      entries_.erase(entry);
      trace::add(trace::Counter::executables_evicted);
      return true;
    }
  }
  return false;
}

void ExecutableCache::drop(const std::shared_ptr<LoadedMatmul>& program) {
  std::lock_guard lock(mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.program == program) {
      recency_.erase(entry->second.recency);
      entries_.erase(entry);
      return;
    }
  }
}

void ExecutableCache::clear() {
  std::lock_guard lock(mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    if (entry->second.program.use_count() == 1) {
      recency_.erase(entry->second.recency);
      entry = entries_.erase(entry);
    } else {
      ++entry;
    }
  }
}

size_t ExecutableCache::size() {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

// Leaked: stream threads may use it while the process exits.
ExecutableCache& executable_cache() {
  static auto* instance = new ExecutableCache;
  return *instance;
}

} // namespace mlx_ane
