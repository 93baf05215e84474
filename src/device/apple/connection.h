// What AppleNeuralEngine.framework's two ways in have in common, and the
// program that both compile, load and evaluate.
#pragma once

#include <initializer_list>
#include <memory>

#include "device/apple/objc.h"
#include "device/apple/program_files.h"
#include "device/device.h"

namespace mlx_ane::apple {

inline constexpr unsigned qos = 21;

/// The messages to one class of model. Calls stand inside guarded().
class Connection {
 public:
  virtual ~Connection() = default;
  /// Stages the source and makes its model, which finds the files.
  virtual Ref prepare(
      const Source& source, std::unique_ptr<ProgramFiles>& files) const = 0;
  /// The daemon has this program compiled, as far as it tells.
  virtual bool compiled(id model) const = 0;
  virtual bool compile(id model, id* error) const = 0;
  virtual bool load(id model, id* error) const = 0;
  virtual bool evaluate(id model, id request, id* error) const = 0;
  virtual bool unload(id model, id* error) const = 0;
  /// Asks the daemon to forget what it compiled.
  virtual void purge(id model) const = 0;
};

/// What both ways need: surfaces, requests.
extern const std::initializer_list<Selector> shared_selectors;

/// Compiles and loads; every step within its bound. Throws DeviceError.
std::shared_ptr<Executable> make_framework_executable(
    std::shared_ptr<const Connection> connection, const Source& source);

}  // namespace mlx_ane::apple
