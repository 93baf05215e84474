// The cache of loaded matmul programs, under the engine's budget of residents.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>

#include "device/device.h"
#include "device/programs.h"

namespace mlx_ane {

/// A loaded program with the surfaces of its calls. Hold `mutex` from the first
/// write into a surface until the output has been read.
struct LoadedMatmul {
  std::shared_ptr<Executable> executable;
  std::shared_ptr<Surface> x; // as large as the w it was last used with
  std::shared_ptr<Surface> w; // for weights that are not staged
  std::shared_ptr<Surface> y;
  size_t x_row_bytes;
  size_t w_row_bytes;
  size_t y_row_bytes;
  std::mutex mutex;
};

class ExecutableCache {
 public:
  /// The program of this shape, compiled at its first use. At the budget, the
  /// least recently used idle program is unloaded. Throws DeviceError.
  std::shared_ptr<LoadedMatmul> get(Device& device, const MatmulShape& shape);

  /// Forgets a program that must not be called again (a hang).
  void drop(const std::shared_ptr<LoadedMatmul>& program);

  /// Unloads every program that no call is using.
  void clear();

  size_t size();

 private:
  using Key = std::pair<Device*, MatmulShape>;
  struct Entry {
    std::shared_ptr<LoadedMatmul> program;
    std::list<Key>::iterator recency;
  };

  bool evict_idle(Device& device);

  std::mutex mutex_;
  std::map<Key, Entry> entries_;
  std::list<Key> recency_; // front: most recently used
};

ExecutableCache& executable_cache();

} // namespace mlx_ane
