// The ways into the engine behind one interface.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "device/device.h"

namespace mlx_ane::apple {

class Route {
 public:
  virtual ~Route() = default;
  /// One of ane_routes().
  virtual std::string_view name() const = 0;
  /// The first class, selector or symbol that this macOS lacks, as a sentence.
  virtual std::optional<std::string> unavailable() const = 0;
  /// `bytes` is already rounded.
  virtual std::shared_ptr<Surface> make_surface(
      size_t bytes, const Port& port) = 0;
  virtual std::shared_ptr<Executable> compile(const Source& source) = 0;
  /// What this route knows of its programs, for device_info.
  virtual std::map<std::string, std::string> facts() const {
    return {};
  }
};

/// Core ML: public API.
std::unique_ptr<Route> make_coreml_route(const std::string& chip);

#ifndef MLX_ANE_PUBLIC_ONLY
/// AppleNeuralEngine.framework's _ANEInMemoryModel; `chip` names the cache.
/// Files lie in a folder of ours, or `by_id` in the one that the framework
/// names, the form that most reports confirm.
std::unique_ptr<Route> make_in_memory_route(std::string chip, bool by_id);

/// AppleNeuralEngine.framework's _ANEClient.
std::unique_ptr<Route> make_client_route(std::string chip);

/// Espresso.framework's e5rt C API, on the engine or on the CPU.
std::unique_ptr<Route> make_e5rt_route(bool on_cpu);

/// What the framework's _ANEDeviceInfo answers, by selector, and the chip.
void read_device_info(std::map<std::string, std::string>& facts);

/// Opens one of the system's private frameworks.
std::optional<std::string> open_private_framework(
    const char* name, void** handle);
#endif

/// "processor", "model" and "chip" (h13 ... h17s, or unknown) of this machine,
/// with what else is known of the device.
std::map<std::string, std::string> engine_facts();

/// Opens a framework of /System/Library/`kind` once; the error's text where
/// that fails.
std::optional<std::string> open_framework(
    const char* kind, const char* name, void** handle);

}  // namespace mlx_ane::apple
