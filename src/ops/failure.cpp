// One scope a thread; delivery of an exception is found by synchronizing.
#include "ops/failure.h"

#include "ops/streams.h"

namespace mlx_ane {

std::shared_ptr<FailureScope> FailureScope::enter() {
  static thread_local auto scope = std::make_shared<FailureScope>();
  if (scope->failed_) {
    wait_for(mx::Stream(scope->stream_, mx::Device::cpu));
    scope->failed_ = false;
  }
  return scope;
}

void FailureScope::encode(std::uintptr_t output) {
  if (tainted_ && output == output_) {
    resumed_ = true;
  }
}

void FailureScope::fail(mx::Stream stream, std::uintptr_t output) {
  stream_ = stream.index;
  output_ = output;
  tainted_ = true;
  failed_ = true;
}

}  // namespace mlx_ane
