// States: inputs that a program also writes, as key-value caches are kept.
#include <cstring>

#include "device/emulated/op.h"

namespace mlx_ane::emulated {

namespace {

// A copy, as a later update writes into the state itself.
LoweredOp read_state(const Call& call) {
  auto state = call.operand("input"), z = call.results[0];
  call.need(state.type.state, "input must be a state");
  LoweredOp lowered({{state.type.dtype, state.shape()}});
  lowered.moves = true;
  lowered.kernel = [=, n = state.size()](const Frame& frame) {
    std::memcpy(z.ints(frame), state.ints(frame), n * element_size);
  };
  return lowered;
}

// The result is the new value.
LoweredOp update_state(const Call& call) {
  auto state = call.operand("state"), value = call.operand("value"),
       z = call.results[0];
  call.need(state.type.state, "state must be a state");
  call.need(
      value.type.dtype == state.type.dtype && value.shape() == state.shape(),
      "value is " + to_string(value.type) + ", but the state holds " +
          to_string(state.type));
  LoweredOp lowered({{state.type.dtype, state.shape()}});
  lowered.moves = true;
  lowered.kernel = [=, n = state.size()](const Frame& frame) {
    std::memcpy(z.ints(frame), value.ints(frame), n * element_size);
    std::memcpy(state.ints(frame), value.ints(frame), n * element_size);
  };
  return lowered;
}

constexpr Op table[] = {
    {"coreml_update_state", update_state, "iOS18 states: coreml_update_state"},
    {"read_state", read_state, "iOS18 states: read_state"},
};

}  // namespace

std::span<const Op> state_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
