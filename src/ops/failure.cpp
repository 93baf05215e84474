// One scope a thread; delivery of an exception is found by synchronizing.
#include "ops/failure.h"

namespace mlx_ane {

std::shared_ptr<FailureScope> FailureScope::current() {
  static thread_local auto scope = std::make_shared<FailureScope>();
  return scope;
}

std::shared_ptr<FailureScope> FailureScope::enter() {
  auto scope = current();
  if (scope->failed_) {
    mx::synchronize(mx::Stream(scope->stream_, mx::Device::cpu));
    scope->failed_ = false;
  }
  return scope;
}

void FailureScope::fail(mx::Stream stream) {
  stream_ = stream.index;
  tainted_ = true;
  failed_ = true;
}

} // namespace mlx_ane
