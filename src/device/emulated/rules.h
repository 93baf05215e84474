// How the emulated engine enforces the rules of mil/rules.h.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "device/emulated/emulated.h"
#include "device/emulated/engine.h"
#include "mil/check.h"

namespace mlx_ane::emulated {

using mil::Answer;

/// The engine's refusal by a rule; `what` says what was got.
EngineError refusal(const mil::Rule& rule, const std::string& what);
EngineError refusal(std::string_view rule, const std::string& what);
/// The same for what has no rule: a fault, or a program that is not MIL.
EngineError refusal(
    Stage stage, Answer answer, std::string name, const std::string& what);

/// The level from which on a rule is enforced.
Level level_of(const mil::Rule& rule);
/// Whether a rule is enforced under these options.
bool enforced(const Options& options, const mil::Rule& rule);
bool enforced(const Options& options, std::string_view rule);

/// Refuses a program by the first rule that it breaks before it is loaded;
/// throws EngineError. Returns what it breaks later.
std::vector<mil::Finding> check_program(
    const mil::Program& program, const Options& options, const Limits& limits);

/// Limits on the surfaces of one evaluation; throws EngineError.
void check_surfaces(
    const std::vector<mil::Value>& inputs,
    const std::vector<mil::Value>& outputs,
    std::span<const SurfaceBytes> input_surfaces,
    std::span<const SurfaceBytes> output_surfaces,
    const Options& options);

}  // namespace mlx_ane::emulated
