// Enforces the rules of the engine on programs and surfaces.
#include "device/emulated/rules.h"

#include <algorithm>

#include "device/emulated/state.h"
#include "device/emulated/surface_io.h"
#include "mil/ops.h"

namespace mlx_ane::emulated {

namespace {

// As the private frameworks say it.
#ifndef MLX_ANE_PUBLIC_ONLY
constexpr const char* engine_domain = "com.apple.appleneuralengine";
constexpr const char* compilation_failure =
    "_ANECompiler : ANECCompile() FAILED : err=(CompilationFailure)";
#else
constexpr const char* engine_domain = "engine";
constexpr const char* compilation_failure =
    "ANECCompile() FAILED : err=(CompilationFailure)";
#endif

/// What a stage answers where no source says it.
Answer usual_answer(Stage stage) {
  return stage == Stage::evaluate ? Answer::inference_error
         : stage == Stage::load   ? Answer::no_addresses
                                  : Answer::compilation_failure;
}

}  // namespace

Level level_of(const mil::Rule& rule) {
  // What an engine runs wrongly, or Core ML on the CPU, is still a program.
  bool runs =
      rule.stage == Stage::never ||
      mil::contains(
          "cast-dtype later-chip no-path operand-dtype unknown-axis", rule.id);
  return runs || rule.disputed() ? Level::strict : Level::program;
}

bool enforced(const Options& options, const mil::Rule& rule) {
  return rule.answer != Answer::none && options.level >= level_of(rule) &&
         !mil::allows(options.allow, rule);
}

bool enforced(const Options& options, std::string_view rule) {
  return enforced(options, *mil::find_rule(rule));
}

std::vector<mil::Finding> check_program(
    const mil::Program& program, const Options& options, const Limits& limits) {
  if (options.level == Level::off) {
    return {};
  }
  mil::CheckOptions check{limits};
  check.language = false;
  check.wanted = [&](const mil::Rule& rule) {
    return rule.severity == mil::Severity::error && rule.stage != Stage::load &&
           enforced(options, rule);
  };
  auto findings = mil::check(program, check);
  // A tile poisons the process even where its program is then refused.
  if (std::any_of(findings.begin(), findings.end(), [](auto& finding) {
        return finding.rule->id == "tile-poison";
      })) {
    poison();
  }
  for (auto& finding : findings) {
    // A sole identity's wrong values are known: they are given.
    if (finding.rule->stage == Stage::compile ||
        (finding.rule->stage == Stage::never &&
         finding.rule->id != "sole-identity")) {
      throw refusal(*finding.rule, finding.where + ": " + finding.what);
    }
  }
  return findings;
}

void check_surfaces(
    const std::vector<mil::Value>& inputs,
    const std::vector<mil::Value>& outputs,
    std::span<const SurfaceBytes> input_surfaces,
    std::span<const SurfaceBytes> output_surfaces,
    const Options& options) {
  auto check = [&](auto& ports, auto surfaces, const std::string& kind) {
    auto require = [&](const char* rule, bool ok, const std::string& got) {
      if (!ok && enforced(options, rule)) {
        throw refusal(rule, got);
      }
    };
    // Fewer surfaces than ports or short ones cannot be run under any option.
    if (surfaces.size() != ports.size()) {
      throw refusal(
          "port-count",
          std::to_string(surfaces.size()) + " " + kind + " surfaces for " +
              std::to_string(ports.size()) + " ports");
    }
    for (size_t i = 0; i < ports.size(); ++i) {
      auto& type = ports[i].type;
      Port port{{}, type.shape, surface_element_bytes(type.dtype)};
      auto got = kind + " " + ports[i].name + " of type " + to_string(type) +
                 " has a surface of " + std::to_string(surfaces[i].size) +
                 " bytes";
      auto needed = surface_bytes(port);
      if (surfaces[i].size < needed) {
        throw refusal(
            "surface-size", got + ", needs " + std::to_string(needed));
      }
      require(
          "minimum-surface",
          surfaces[i].size >= Limits::min_surface_bytes,
          got);
      require("uniform-surfaces", surfaces[i].size == surfaces[0].size, got);
    }
  };
  check(inputs, input_surfaces, "input");
  check(outputs, output_surfaces, "output");
}

EngineError refusal(const mil::Rule& rule, const std::string& what) {
  bool reported = rule.answer != Answer::unreported;
  return refusal(
      rule.stage == Stage::never ? Stage::compile : rule.stage,
      reported ? rule.answer : usual_answer(rule.stage),
      std::string(rule.id),
      what + "; limit: " + std::string(rule.why) + " (" +
          std::string(rule.source) + ")" +
          (reported ? "" : "; code unreported"));
}

EngineError refusal(std::string_view rule, const std::string& what) {
  return refusal(*mil::find_rule(rule), what);
}

EngineError refusal(
    Stage stage, Answer answer, std::string name, const std::string& what) {
  std::string domain = engine_domain;
  std::string text;
  int code = 0;
  switch (answer) {
    case Answer::invalid_program:
      domain += ".compiler";
      text = "InvalidMILProgram";
      break;
    case Answer::compilation_failure:
      domain += ".compiler";
      code = 1;
      text = compilation_failure;
      break;
    case Answer::too_many_programs:
      text = "Program load failure (0x50004)";
      break;
    case Answer::no_addresses:
      text = "Program load failure (0x20004)";
      break;
    default:
      code = 8;
      text =
          "ANEProgramProcessRequestDirect() Failed with status=0x1d : "
          "statusType=0x9 : Program Inference error";
      break;
  }
  return {
      stage,
      name,
      code,
      domain,
      "[mlx_ane.emulated] " + std::string(to_string(stage)) +
          " failed: " + domain + (code ? " Code=" + std::to_string(code) : "") +
          " " + text + " [" + name + ": " + what + "]"};
}

}  // namespace mlx_ane::emulated
