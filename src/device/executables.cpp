// Compiles on a miss and unloads the least recently used program at the budget.
#include "device/executables.h"

#include <algorithm>

#include "device/watchdog.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

std::shared_ptr<LoadedProgram> load(Device& device, const ProgramShape& shape) {
  auto dialect = device.limits().verbose_dialect ? mil::Dialect::ios16
                                                 : mil::Dialect::ios18;
  auto source = program_source(shape, dialect);
  trace::Span span("compile", "", source.text.size(), 0);
  trace::add(trace::Counter::compiles);
  auto program = std::make_shared<LoadedProgram>();
  program->executable = device.compile(source);
  size_t bytes = 0;
  for (auto& input : source.inputs) {
    bytes = std::max(bytes, surface_bytes(input));
  }
  if (auto* matmul = std::get_if<MatmulShape>(&shape)) {
    bytes = input_surface_bytes(*matmul);
  }
  for (auto& input : source.inputs) {
    program->inputs.push_back(device.make_surface(bytes));
    program->input_row_bytes.push_back(row_bytes(input));
  }
  program->output = device.make_surface(surface_bytes(source.outputs[0]));
  program->output_row_bytes = row_bytes(source.outputs[0]);
  return program;
}

}  // namespace

void LoadedProgram::evaluate(
    Device& device,
    const std::shared_ptr<LoadedProgram>& program,
    std::vector<std::shared_ptr<Surface>> inputs,
    trace::Layer& layer,
    int64_t flops) {
  trace::Span span("evaluate", layer.name, 0, flops);
  trace::add(trace::Counter::evaluations);
  auto call = [program, inputs = std::move(inputs)] {
    std::vector<Surface*> in;
    for (auto& surface : inputs) {
      in.push_back(surface.get());
    }
    Surface* out[] = {program->output.get()};
    program->executable->evaluate(in, out);
  };
  auto bound = device.evaluate_bound();
  if (!run_bounded(std::move(call), bound)) {
    executable_cache().drop(program);
    throw DeviceError(
        Cause::hang,
        "evaluate did not return within " + std::to_string(bound.count()) +
            " ms");
  }
}

std::shared_ptr<LoadedProgram> ExecutableCache::get(
    Device& device, const ProgramShape& shape) {
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

void ExecutableCache::drop(const std::shared_ptr<LoadedProgram>& program) {
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

}  // namespace mlx_ane
