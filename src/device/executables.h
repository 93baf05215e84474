// Loaded programs and their cache, bounded in number and bytes.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "device/device.h"
#include "device/programs.h"
#include "trace/counters.h"

namespace mlx_ane {

/// A loaded program with the surfaces of its calls. Hold `mutex` from the first
/// write into a surface until the output has been read.
struct LoadedProgram {
  ProgramShape shape;
  std::shared_ptr<Executable> executable;
  std::vector<std::shared_ptr<Surface>> inputs;   // of one size
  std::vector<std::shared_ptr<Surface>> outputs;  // of one size
  std::vector<Port> input_ports;
  std::vector<size_t> input_row_bytes;
  std::vector<size_t> output_row_bytes;
  bool tables_written = false;  // the fixed ports of a block
  std::mutex mutex;

  /// Runs once on these inputs, within the device's bound; `layer` and `flops`
  /// are for the records. Throws DeviceError; after a hang, everything that the
  /// engine may still write stays alive with the abandoned call.
  static void evaluate(
      Device& device,
      const std::shared_ptr<LoadedProgram>& program,
      std::vector<std::shared_ptr<Surface>> inputs,
      trace::Layer& layer,
      int64_t flops);
};

/// A program, or null and why its calls are placed.
struct FoundProgram {
  std::shared_ptr<LoadedProgram> program;
  trace::Placement reason = trace::Placement::over_budget;
};

/// Scan-resistant LRU: evicts a program only for a shape that has missed since
/// the program's last use, so that the programs of a step stay.
class ExecutableCache {
 public:
  /// The program of this shape, compiled at its first use. Over the budget, or
  /// where the device refuses more programs, a loaded one of a larger row
  /// bucket or none; none where the system would run it elsewhere. One thread
  /// compiles a shape, others that want it wait; no mutex is held. Throws
  /// DeviceError.
  FoundProgram get(Device& device, const ProgramShape& shape);

  /// Whether get() is likely to have this program and `more` others, by their
  /// number: if not, this call counts as a miss.
  bool admits(Device& device, const ProgramShape& shape, int more);

  /// Forgets a program that must not be called again (a hang).
  void drop(const std::shared_ptr<LoadedProgram>& program);

  /// Unloads every program that no call is using, and forgets refusals.
  void clear();

  size_t size();

  /// Budget of surface bytes, over all devices; a quarter of memory at first.
  /// Programs that calls are using stay beyond it until another is looked for.
  void set_limit(size_t bytes);
  size_t bytes();

 private:
  using Key = std::pair<Device*, ProgramShape>;
  struct Entry {
    std::shared_ptr<LoadedProgram> program;
    size_t bytes;
    uint64_t used;  // value of clock_ at the last lookup
  };
  using Entries = std::map<Key, Entry>;
  /// A device that refused is asked again when clock_ is at `until`.
  struct Refusals {
    uint64_t wait = 0;
    uint64_t until = 0;
  };

  int64_t resident(Device& device);
  bool has_room(Device& device, size_t bytes);
  bool make_room(
      Device& device,
      size_t bytes,
      uint64_t asked,
      std::vector<std::shared_ptr<LoadedProgram>>& evicted);
  /// The idle program unused for longest, of one device or of all.
  Entries::iterator oldest_idle(const Device* device);
  std::shared_ptr<LoadedProgram> larger(const Key& key);
  /// Moves an entry out; unloading it may wait, so not under the mutex.
  std::shared_ptr<LoadedProgram> take(Entries::iterator entry);

  std::mutex mutex_;
  std::condition_variable loaded_;
  std::map<Key, size_t> loading_;  // bytes of what other threads load now
  Entries entries_;
  std::map<Key, uint64_t> asked_;  // clock_ at the last miss of a shape
  std::set<Key> elsewhere_;  // what the system would not run on the device
  std::map<Device*, Refusals> refusals_;
  size_t bytes_ = 0;
  size_t limit_ = quarter_of_memory();
  uint64_t clock_ = 0;
};

ExecutableCache& executable_cache();

}  // namespace mlx_ane
