// The engine's published limits as named rules, each with its answer and
// source.
#pragma once

#include <span>
#include <string>

#include "device/emulated/emulated.h"
#include "device/emulated/engine.h"

namespace mlx_ane::emulated {

/// What the engine answers.
enum class Answer {
  invalid_program,      // InvalidMILProgram
  compilation_failure,  // ANECCompile() FAILED
  too_many_programs,    // Program load failure (0x50004)
  no_addresses,         // Program load failure (0x20004)
  inference_error,      // status=0x1d
};

struct Rule {
  const char* name;
  Stage stage;
  Answer answer;
  /// Reports conflict, or it depends on the route: enforced at Level::strict
  /// only.
  bool disputed;
  /// Some source gives this answer for this limit; else its code is unreported.
  bool reported;
  const char* limit;
  const char* source;
};

std::span<const Rule> rules();
/// std::invalid_argument with the valid names otherwise.
const Rule& rule(const std::string& name);

/// The engine's refusal by a rule; `what` says what was got.
EngineError refusal(const std::string& rule, const std::string& what);
/// The same for what has no rule: a fault, or a program that is not MIL.
EngineError refusal(
    Stage stage, Answer answer, std::string name, const std::string& what);

/// Whether a rule is enforced under these options.
bool enforced(const Options& options, const std::string& rule);

/// Limits on the text of a program; throws EngineError.
void check_program(
    const mil::Program& program, const Options& options, const Limits& limits);

/// Limits on the surfaces of one evaluation; throws EngineError.
void check_surfaces(
    const std::vector<mil::Value>& inputs,
    const std::vector<mil::Value>& outputs,
    std::span<const SurfaceBytes> input_surfaces,
    std::span<const SurfaceBytes> output_surfaces,
    const Options& options,
    const Limits& limits);

}  // namespace mlx_ane::emulated
