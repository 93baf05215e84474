// What a failed device task tells the optimizer steps that depend on it.
#pragma once

#include <atomic>
#include <memory>

#include "mlx/mlx.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// MLX runs the rest of a graph after a task throws, optimizer steps included.
/// A failing task therefore marks the scope of the thread that encoded it, and
/// the gate of an optimizer step reads the mark before anything is written.
class FailureScope {
 public:
  /// The scope of this thread, which is encoding a device task. Where a failure
  /// is marked and its exception still undelivered, that exception is thrown
  /// here; where it was delivered, this is a new eval and the mark is cleared.
  static std::shared_ptr<FailureScope> enter();

  /// The scope of this thread, as it is.
  static std::shared_ptr<FailureScope> current();

  /// Marks a failure of a task on `stream`; its output must be NaN.
  void fail(mx::Stream stream);

  /// True while the exception of a failure may be undelivered: nothing that is
  /// running can be trusted.
  bool failed() const {
    return failed_;
  }

  /// True where a graph cut short by a failure may be resumed later: a step with
  /// a non-finite gradient must be skipped. Consumed by skipped().
  bool tainted() const {
    return tainted_;
  }
  void skipped() {
    tainted_ = false;
  }

 private:
  std::atomic<bool> failed_{false};
  std::atomic<bool> tainted_{false};
  std::atomic<int> stream_{0};
};

} // namespace mlx_ane
