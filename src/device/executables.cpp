// The cache of programs: compiles on a miss; at the budget, uses a larger
// program, evicts one or returns null.
#include "device/executables.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "device/watchdog.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

// A call may run in a program of this many times its rows.
constexpr int64_t max_padding = 4;
// Misses, at most, before a device that refused a program is asked again.
constexpr uint64_t max_wait = 1024;

size_t largest(const std::vector<Port>& ports) {
  size_t bytes = 0;
  for (auto& port : ports) {
    bytes = std::max(bytes, surface_bytes(port));
  }
  return bytes;
}

/// Bytes of each of a program's input surfaces: all of one size.
size_t input_bytes(const ProgramShape& shape, const Source& source) {
  auto* matmul = std::get_if<MatmulShape>(&shape);
  return matmul ? input_surface_bytes(*matmul) : largest(source.inputs);
}

size_t all_bytes(
    const Device& device, const ProgramShape& shape, const Source& source) {
  auto least = device.limits().min_surface_bytes;
  return source.inputs.size() * std::max(input_bytes(shape, source), least) +
         source.outputs.size() * std::max(largest(source.outputs), least);
}

/// Null where the system would run the program elsewhere.
std::shared_ptr<LoadedProgram> load(
    Device& device, const ProgramShape& shape, const Source& source) {
  trace::Span span("compile", "", source.text.size(), 0);
  trace::add(trace::Counter::compiles);
  auto program = std::make_shared<LoadedProgram>();
  program->shape = shape;
  program->executable = device.compile(source);
  if (program->executable->elsewhere()) {
    return nullptr;
  }
  program->input_ports = source.inputs;
  auto rows = [&](const std::vector<Port>& ports, size_t& bytes) {
    std::vector<size_t> out;
    for (auto& port : ports) {
      out.push_back(program->executable->row_bytes(port));
      bytes = std::max(bytes, surface_bytes(port, out.back()));
    }
    return out;
  };
  auto bytes = input_bytes(shape, source);
  program->input_row_bytes = rows(source.inputs, bytes);
  for (auto& input : source.inputs) {
    program->inputs.push_back(device.make_surface(bytes, input));
  }
  bytes = largest(source.outputs);
  program->output_row_bytes = rows(source.outputs, bytes);
  for (auto& output : source.outputs) {
    program->outputs.push_back(device.make_surface(bytes, output));
  }
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
    auto pointers = [](auto& surfaces) {
      std::vector<Surface*> out;
      for (auto& surface : surfaces) {
        out.push_back(surface.get());
      }
      return out;
    };
    program->executable->evaluate(pointers(inputs), pointers(program->outputs));
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

FoundProgram ExecutableCache::get(Device& device, const ProgramShape& shape) {
  std::unique_lock lock(mutex_);
  Key key{&device, shape};
  loaded_.wait(lock, [&] { return !loading_.contains(key); });
  ++clock_;
  if (auto found = entries_.find(key); found != entries_.end()) {
    found->second.used = clock_;
    return {found->second.program};
  }
  if (elsewhere_.contains(key)) {
    return {nullptr, trace::Placement::by_coreml};
  }
  auto asked = std::exchange(asked_[key], clock_);
  auto& refusals = refusals_[&device];
  auto source = program_source(
      shape,
      device.limits().verbose_dialect ? mil::Dialect::ios16
                                      : mil::Dialect::ios18);
  auto bytes = all_bytes(device, shape, source);
  bool room = has_room(device, bytes);
  std::vector<std::shared_ptr<LoadedProgram>> evicted;
  if (!room || clock_ < refusals.until) {
    if (auto program = larger(key)) {
      return {program};
    }
    if (clock_ < refusals.until || !make_room(device, bytes, asked, evicted)) {
      lock.unlock();
      return {};  // and unloads what was evicted in vain
    }
  }
  loading_[key] = bytes;
  lock.unlock();
  evicted.clear();
  std::shared_ptr<LoadedProgram> program;
  std::exception_ptr failure;
  bool refused = false;
  try {
    program = load(device, shape, source);
  } catch (const DeviceError& error) {
    refused = error.cause == Cause::cap_reached;
    failure = std::current_exception();
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  loading_.erase(key);
  loaded_.notify_all();
  if (refused) {
    // The cap is shared with other users of the engine and may count compiles.
    auto& refusals = refusals_[&device];
    refusals.wait = std::min(2 * refusals.wait + 1, max_wait);
    refusals.until = clock_ + refusals.wait;
    return {larger(key)};
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
  if (!program) {
    elsewhere_.insert(key);
    return {nullptr, trace::Placement::by_coreml};
  }
  entries_[key] = {program, bytes, clock_};
  bytes_ += bytes;
  asked_.erase(key);
  refusals_[&device].wait = 0;
  return {program};
}

bool ExecutableCache::admits(
    Device& device, const ProgramShape& shape, int more) {
  std::lock_guard lock(mutex_);
  Key key{&device, shape};
  if (entries_.contains(key) ||
      resident(device) + more < device.limits().resident_programs) {
    return true;
  }
  auto asked = std::exchange(asked_[key], ++clock_);
  auto oldest = oldest_idle(&device);
  return oldest != entries_.end() && oldest->second.used <= asked;
}

int64_t ExecutableCache::resident(Device& device) {
  auto of = [&](const auto& entry) { return entry.first.first == &device; };
  return std::count_if(entries_.begin(), entries_.end(), of) +
         std::count_if(loading_.begin(), loading_.end(), of);
}

bool ExecutableCache::has_room(Device& device, size_t bytes) {
  for (auto& [key, coming] : loading_) {
    bytes += coming;
  }
  return resident(device) < device.limits().resident_programs &&
         bytes_ + bytes <= limit_;
}

bool ExecutableCache::make_room(
    Device& device,
    size_t bytes,
    uint64_t asked,
    std::vector<std::shared_ptr<LoadedProgram>>& evicted) {
  if (bytes > limit_) {
    return false;
  }
  while (!has_room(device, bytes)) {
    auto oldest = oldest_idle(&device);
    if (oldest == entries_.end() || oldest->second.used > asked) {
      return false;
    }
    evicted.push_back(take(oldest));
    trace::add(trace::Counter::executables_evicted);
  }
  return true;
}

ExecutableCache::Entries::iterator ExecutableCache::oldest_idle(
    const Device* device) {
  auto oldest = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    bool idle = entry->second.program.use_count() == 1;
    bool wanted = !device || entry->first.first == device;
    if (idle && wanted &&
        (oldest == entries_.end() ||
         entry->second.used < oldest->second.used)) {
      oldest = entry;
    }
  }
  return oldest;
}

/// The loaded program of the next row bucket that is not too large.
std::shared_ptr<LoadedProgram> ExecutableCache::larger(const Key& key) {
  auto* wanted = std::get_if<MatmulShape>(&key.second);
  for (auto rows : row_buckets) {
    if (!wanted || rows > max_padding * wanted->s) {
      break;
    }
    auto shape = *wanted;
    shape.s = rows;
    auto found = entries_.find({key.first, shape});
    if (rows > wanted->s && found != entries_.end()) {
      found->second.used = clock_;
      trace::add(trace::Counter::executables_merged);
      return found->second.program;
    }
  }
  return nullptr;
}

std::shared_ptr<LoadedProgram> ExecutableCache::take(Entries::iterator entry) {
  auto program = std::move(entry->second.program);
  bytes_ -= entry->second.bytes;
  entries_.erase(entry);
  return program;
}

void ExecutableCache::drop(const std::shared_ptr<LoadedProgram>& program) {
  std::lock_guard lock(mutex_);
  auto entry = std::find_if(
      entries_.begin(), entries_.end(), [&](const auto& candidate) {
        return candidate.second.program == program;
      });
  if (entry != entries_.end()) {
    take(entry);  // the caller holds it
  }
}

void ExecutableCache::clear() {
  std::vector<std::shared_ptr<LoadedProgram>> gone;  // unloaded when unlocked
  std::lock_guard lock(mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    auto next = std::next(entry);
    if (entry->second.program.use_count() == 1) {
      gone.push_back(take(entry));
    }
    entry = next;
  }
  asked_.clear();
  elsewhere_.clear();
  refusals_.clear();
}

void ExecutableCache::set_limit(size_t bytes) {
  std::vector<std::shared_ptr<LoadedProgram>> gone;  // unloaded when unlocked
  std::lock_guard lock(mutex_);
  limit_ = bytes;
  while (bytes_ > limit_) {
    auto oldest = oldest_idle(nullptr);
    if (oldest == entries_.end()) {
      return;
    }
    gone.push_back(take(oldest));
    trace::add(trace::Counter::executables_evicted);
  }
}

size_t ExecutableCache::bytes() {
  std::lock_guard lock(mutex_);
  return bytes_;
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
