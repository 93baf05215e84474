// Runs a call on a device or, where it is placed or fails, on the BLAS.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "device/device.h"
#include "device/plan.h"
#include "device/weights.h"
#include "host/matrix.h"
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
/// Its min_rows, whatever the environment says of the rest.
int64_t min_rows();
void set_runner_settings(const RunnerSettings& settings);

/// A call in the three ways that it may end.
struct PlacedCall {
  /// Why the device cannot take this call, with nothing done, or nothing once
  /// it is done. Throws DeviceError.
  std::function<std::optional<trace::Placement>(const RunnerSettings&)>
      on_device;
  std::function<void()> on_blas;
  /// Fills the output with NaN, so that what depends on a failure shows it.
  std::function<void()> fill_nan;
};

/// Runs a call of so many rows on the device or, where it is placed or fails,
/// on the BLAS. Throws DeviceFailure under Fallback::error.
void run_placed(
    Device& device, int64_t rows, trace::Layer& layer, const PlacedCall& call);

/// y (s, n) = x (s, k) @ w (n, k)ᵀ [+ bias (n)].
struct MatmulCall {
  MatrixView x;
  MatrixView w;
  std::optional<MatrixView> bias;
  MatrixOut y;
  /// The weight's place in the store, or null to pack it for this call.
  std::shared_ptr<StagedWeight> staged;
  std::shared_ptr<trace::Layer> layer;
  /// Two-term split of both operands: three products, error near fp32's.
  bool high_precision = false;
  /// Row n of w in fp32 (k), where w.data is null: a quantised weight whose
  /// tiles are staged.
  std::function<void(int64_t n, float* row)> w_row = {};
};

/// Thrown under Fallback::error: names layer, device and cause.
class DeviceFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Why this call would be placed on the BLAS now, or nothing. Counts nothing.
std::optional<trace::Placement> placement(
    const Device& device, int64_t rows, const trace::Layer& layer);

/// Runs the whole call on the device, or says over_budget where there is no
/// room for its programs; throws DeviceError at the first tile that fails, with
/// y in an unspecified state.
std::optional<trace::Placement> run_on_device(
    Device& device, const MatmulCall& call, const RunnerSettings& settings);

void fill_nan(const MatrixOut& y);

/// run_placed of a matmul.
void run_matmul(Device& device, const MatmulCall& call);

/// Gives devices that were taken out, and layers that back off, another chance.
void restore_devices();

/// Ends the record and the back-off of a layer that is gone.
void forget_layer(const std::string& name);

/// Why a device was taken out for this process, or nothing.
std::optional<std::string> taken_out(const Device& device);

}  // namespace mlx_ane
