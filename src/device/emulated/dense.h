// Programs run on dense arrays, as tests and Python have them.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "device/emulated/engine.h"

namespace mlx_ane::emulated {

/// Copies dense arrays into surfaces that keep the engine's rules (rows of a
/// multiple of 64 bytes, equal sizes, 64 KiB at least), and results out of
/// them.
class DenseProgram {
 public:
  /// Parses, compiles and loads. Throws EngineError.
  DenseProgram(
      std::string_view text, const Weights& weights, const Options& options);

  EngineProgram& engine() {
    return *program_;
  }
  /// Number of the function of that name; std::invalid_argument otherwise.
  size_t procedure(const std::string& name) const;

  /// Row-major arrays in the order of engine().inputs(procedure); returns those
  /// of outputs(procedure), then the new values of states among the inputs. An
  /// array of another size is a std::invalid_argument.
  std::vector<std::vector<std::byte>> run(
      size_t procedure,
      const std::vector<std::span<const std::byte>>& inputs,
      bool exact);

 private:
  std::unique_ptr<EngineProgram> program_;
};

/// Bytes of a dense array of a port.
size_t dense_bytes(const Type& type);

}  // namespace mlx_ane::emulated
