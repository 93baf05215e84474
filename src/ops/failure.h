// Skips optimizer steps that depend on a failed device task.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "mlx/mlx.h"

#include "device/runner.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// MLX runs the rest of a graph after a task throws, optimizer steps included.
/// So a failing task marks the scope of the thread that encoded it, and the
/// gate of an optimizer step reads the mark before anything is written.
class FailureScope {
 public:
  /// The scope of this thread, for a device task or an optimizer step that it
  /// encodes. Throws the exception of a failure if MLX has not delivered it
  /// yet; once it has, this is a new eval and the mark is cleared.
  static std::shared_ptr<FailureScope> enter();

  /// Call while encoding the device task of `output`, an array's id. A failed
  /// output that is encoded again belongs to a retry of its graph.
  void encode(std::uintptr_t output);

  /// Call in the task: `output`, on `stream`, is NaN.
  void fail(mx::Stream stream, std::uintptr_t output);

  /// True if this step must not write: a failure is pending, or this graph
  /// retries a failed one, or shares one's gradients, which `finite` denies.
  template <typename Finite>
  bool must_skip(Finite finite) {
    bool skip = failed_ || resumed_ || (tainted_ && !finite());
    if (skip) {
      tainted_ = false;
      resumed_ = false;
    } else {
      output_ = 0;  // a later graph: its arrays may have this address again
    }
    return skip;
  }

 private:
  std::atomic<bool> failed_{false};   // the exception may be undelivered
  std::atomic<bool> tainted_{false};  // the failed graph may be retried later
  std::atomic<bool> resumed_{false};  // it is being retried
  std::atomic<int> stream_{0};
  std::atomic<std::uintptr_t> output_{0};
};

/// A device task of one output; made while it is encoded.
class TrackedTask {
 public:
  TrackedTask(mx::Stream stream, const mx::array& output)
      : scope_(FailureScope::enter()), stream_(stream), output_(output.id()) {
    scope_->encode(output_);
  }

  /// Calls `task` and marks the scope if it throws DeviceFailure.
  template <typename Task>
  void run(Task task) const {
    try {
      task();
    } catch (const DeviceFailure&) {
      scope_->fail(stream_, output_);
      throw;
    }
  }

 private:
  std::shared_ptr<FailureScope> scope_;
  mx::Stream stream_;
  std::uintptr_t output_;
};

}  // namespace mlx_ane
