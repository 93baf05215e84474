// Completion handlers that are waited for, with a bound.
#include "device/apple/coreml_block.h"

namespace mlx_ane::apple::coreml {

Completion::Completion()
    : block_([state = state_](id object, id error) {
        Ref kept(object);
        auto text = error_text(error);
        std::lock_guard lock(state->mutex);
        state->object = std::move(kept);
        state->error = std::move(text);
        state->done = true;
        state->changed.notify_all();
      }) {
}

Ref Completion::wait(Deadline deadline, Cause cause, std::string_view what) {
  auto& state = *state_;
  std::unique_lock lock(state.mutex);
  if (!state.changed.wait_until(lock, deadline, [&] { return state.done; })) {
    throw DeviceError(
        Cause::hang,
        "[mlx_ane.ane] " + std::string(what) +
            " did not end: its handler was not called.");
  }
  if (!state.object) {
    throw DeviceError(
        cause,
        "[mlx_ane.ane] " + std::string(what) + " failed: " + state.error + ".");
  }
  return std::move(state.object);
}

std::string error_text(id error) {
  auto text = describe(error, "no reason given");
  if (text.ends_with('.')) {
    text.pop_back();
  }
  return text;
}

}  // namespace mlx_ane::apple::coreml
