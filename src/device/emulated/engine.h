// The emulated engine below any API: compile, load, evaluate, unload by stages.
#pragma once

#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "device/emulated/emulated.h"
#include "device/emulated/graph.h"
#include "mil/rules.h"

namespace mlx_ane::emulated {

using mil::Stage;

/// What the engine answers when it refuses, as an NSError would carry it.
class EngineError : public std::runtime_error {
 public:
  /// `code` is unreported (0) where no source gives one; `rule` is our name of
  /// the limit (docs/limits.md).
  EngineError(
      Stage stage,
      std::string rule,
      int code,
      std::string domain,
      const std::string& text)
      : std::runtime_error(text),
        stage(stage),
        rule(std::move(rule)),
        code(code),
        domain(std::move(domain)) {
  }
  const Stage stage;
  const std::string rule;
  const int code;
  const std::string domain;
};

/// The bytes of a locked surface.
struct SurfaceBytes {
  std::byte* data;
  size_t size;
};

/// A compiled program. Ports are in the engine's symbol order: names by ASCII.
/// Not reentrant.
class EngineProgram {
 public:
  virtual ~EngineProgram() = default;  // unloads
  /// Takes one of the resident places. Throws EngineError.
  virtual void load() = 0;
  virtual void unload() = 0;
  /// Functions of the program, in the order of the text.
  virtual size_t procedures() const = 0;
  virtual const std::string& name(size_t procedure) const = 0;
  virtual const std::vector<mil::Value>& inputs(size_t procedure) const = 0;
  virtual const std::vector<mil::Value>& outputs(size_t procedure) const = 0;
  /// Surfaces in symbol order, those of states are written too; `exact` as in
  /// Options. Throws EngineError.
  virtual void evaluate(
      size_t procedure,
      std::span<const SurfaceBytes> inputs,
      std::span<const SurfaceBytes> outputs,
      bool exact) = 0;
};

/// Parses and compiles under the limits of `options`. Throws EngineError.
std::unique_ptr<EngineProgram> compile_program(
    std::string_view text, const Weights& weights, const Options& options);

}  // namespace mlx_ane::emulated
