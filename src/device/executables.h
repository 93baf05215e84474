// The cache of loaded programs, under the engine's budget of residents.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"
#include "device/programs.h"
#include "trace/counters.h"

namespace mlx_ane {

/// A loaded program with the surfaces of its calls. Hold `mutex` from the first
/// write into a surface until the output has been read.
struct LoadedProgram {
  std::shared_ptr<Executable> executable;
  std::vector<std::shared_ptr<Surface>> inputs;  // of one size
  std::shared_ptr<Surface> output;
  std::vector<size_t> input_row_bytes;
  size_t output_row_bytes;
  std::mutex mutex;

  /// Runs once on these inputs, within the device's bound; `layer` and `flops`
  /// are for the records. Throws DeviceError; after a hang, everything that the
  /// engine may still touch stays alive with the abandoned call.
  static void evaluate(
      Device& device,
      const std::shared_ptr<LoadedProgram>& program,
      std::vector<std::shared_ptr<Surface>> inputs,
      trace::Layer& layer,
      int64_t flops);
};

class ExecutableCache {
 public:
  /// The program of this shape, compiled at its first use. At the budget, the
  /// least recently used idle program is unloaded. Throws DeviceError.
  std::shared_ptr<LoadedProgram> get(Device& device, const ProgramShape& shape);

  /// Forgets a program that must not be called again (a hang).
  void drop(const std::shared_ptr<LoadedProgram>& program);

  /// Unloads every program that no call is using.
  void clear();

  size_t size();

 private:
  using Key = std::pair<Device*, ProgramShape>;
  struct Entry {
    std::shared_ptr<LoadedProgram> program;
    std::list<Key>::iterator recency;
  };

  bool evict_idle(Device& device);

  std::mutex mutex_;
  std::map<Key, Entry> entries_;
  std::list<Key> recency_;  // front: most recently used
};

ExecutableCache& executable_cache();

}  // namespace mlx_ane
