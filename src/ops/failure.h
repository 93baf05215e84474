// What a failed device task tells the optimizer steps that depend on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "mlx/mlx.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// MLX runs the rest of a graph after a task throws, optimizer steps included.
/// A failing task therefore marks the scope of the thread that encoded it, and
/// the gate of an optimizer step reads the mark before anything is written.
class FailureScope {
 public:
  /// The scope of this thread, which is encoding a device task or an optimizer
  /// step. Where a failure is marked and its exception still undelivered, that
  /// exception is thrown here; where it was delivered, this is a new eval and
  /// the mark is cleared.
  static std::shared_ptr<FailureScope> enter();

  /// Call while encoding a device task: `output` is the id of its result. A
  /// result that failed before and is encoded again belongs to a graph that the
  /// failure had cut short.
  void encode(std::uintptr_t output);

  /// Marks a failure of the task of `output` on `stream`; the result must be
  /// NaN.
  void fail(mx::Stream stream, std::uintptr_t output);

  /// Whether an optimizer step must be skipped: the exception of a failure may
  /// be undelivered, so that nothing that is running can be trusted, or the
  /// step belongs to a graph that a failure cut short. `finite` tells whether
  /// all gradients are; it is asked only if needed.
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
  std::atomic<bool> failed_{false};   // its exception may be undelivered
  std::atomic<bool> tainted_{false};  // its graph may be resumed later
  std::atomic<bool> resumed_{false};  // its graph is being resumed
  std::atomic<int> stream_{0};
  std::atomic<std::uintptr_t> output_{0};
};

}  // namespace mlx_ane
