// Decides where a call runs: on its device or, placed or failed, on the BLAS.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "device/device.h"
#include "device/plan.h"
#include "trace/counters.h"

namespace mlx_ane {

/// What happens after a device call failed. `warn` and `allow` recompute on the
/// BLAS; `warn` also writes one line for each cause; `error` throws.
enum class Fallback { error, warn, allow };

/// "error", "warn" or "allow"; std::invalid_argument otherwise.
Fallback fallback_from(const std::string& name);

/// Settings of the runner, process-wide; MLX_ANE_FALLBACK and
/// MLX_ANE_SPOT_CHECK set theirs.
struct RunnerSettings {
  Fallback fallback = Fallback::warn;
  /// Calls of fewer rows are placed on the BLAS.
  int64_t min_rows = 32;
  /// Compare samples of every n-th device call with the BLAS; 0 never.
  int64_t spot_check = 0;
  Layout layout = Layout::natural;
};
RunnerSettings runner_settings();
/// Its min_rows, without reading the environment.
int64_t min_rows();
void set_runner_settings(const RunnerSettings& settings);

/// A call as the runner runs it: asked, then run or computed on the BLAS.
struct PlacedCall {
  /// Why the device does not take this call (shape, values, no room for its
  /// programs), or nothing. Writes no output. Throws DeviceError.
  std::function<std::optional<trace::Placement>()> supports;
  /// Runs the whole call on the device. Throws DeviceError at the first part
  /// that fails, with the output in an unspecified state.
  std::function<void()> run;
  std::function<void()> on_blas;
  /// Fills the output with NaN, so that what depends on a failure shows it.
  std::function<void()> fill_nan;
};

/// Runs a call of so many rows on the device or, where it is placed or fails,
/// on the BLAS. Throws DeviceFailure under Fallback::error.
void run_placed(
    Device& device, int64_t rows, trace::Layer& layer, const PlacedCall& call);

/// Thrown under Fallback::error: names layer, device and cause.
class DeviceFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Why a call of so many rows is to be placed on the BLAS whatever it computes
/// (few rows, device disabled, layer backing off), or nothing. Counts nothing.
std::optional<trace::Placement> placement(
    const Device& device, int64_t rows, const trace::Layer& layer);

/// Enables disabled devices and ends the back-off of layers.
void restore_devices();

/// Ends the record and the back-off of a layer that is gone.
void forget_layer(const std::string& name);

/// Why a device is disabled for this process, or nothing.
std::optional<std::string> disabled(const Device& device);

}  // namespace mlx_ane
