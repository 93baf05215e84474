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

/// A state and its new value.
std::pair<Operand, Operand> update(
    const Call& call, const char* state_name, const char* value_name) {
  auto state = call.operand(state_name), value = call.operand(value_name);
  call.need(
      state.type.state,
      "argument " + std::string(state_name) + " must be a state");
  call.need(
      value.type.dtype == state.type.dtype && value.shape() == state.shape(),
      "the new value is " + to_string(value.type) + ", but the state holds " +
          to_string(state.type));
  return {state, value};
}

// The result is the new value.
LoweredOp coreml_update_state(const Call& call) {
  auto [state, value] = update(call, "state", "value");
  auto z = call.results.at(0);
  LoweredOp lowered({{state.type.dtype, state.shape()}});
  lowered.moves = true;
  lowered.kernel = [z, s = state, v = value](const Frame& frame) {
    std::memcpy(z.ints(frame), v.ints(frame), v.size() * element_size);
    std::memcpy(s.ints(frame), v.ints(frame), v.size() * element_size);
  };
  return lowered;
}

// It has no result.
LoweredOp write_state(const Call& call) {
  auto [state, value] = update(call, "input", "data");
  return LoweredOp({}, [s = state, v = value](const Frame& frame) {
    std::memcpy(s.ints(frame), v.ints(frame), v.size() * element_size);
  });
}

constexpr Op table[] = {
    {"coreml_update_state",
     coreml_update_state,
     "iOS18 states: coreml_update_state"},
    {"read_state", read_state, "iOS18 states: read_state"},
    {"write_state", write_state, "iOS18 states: write_state"},
};

}  // namespace

std::span<const Op> state_ops() {
  return table;
}

}  // namespace mlx_ane::emulated
