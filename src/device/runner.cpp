// Places calls, counts what fails, backs off and takes devices out.
#include "device/runner.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <map>
#include <mutex>
#include <set>

#include "host/environment.h"
#include "host/half.h"
#include "kernels/gemm.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

using trace::Counter;
using trace::Placement;

// Failures in a row after which a device is taken out for the process.
constexpr int max_failures_in_a_row = 8;
constexpr int max_back_off = 256;  // calls

struct Health {
  int failures_in_a_row = 0;
  std::optional<std::string> out;
};

/// A failing layer stays on the BLAS for 1, 2, 4, ... calls.
struct BackOff {
  int calls_left = 0;
  int next = 1;
};
RunnerSettings settings_of_environment() {
  RunnerSettings settings;
  auto fallback =
      host::choice_variable("MLX_ANE_FALLBACK", {"error", "warn", "allow"});
  settings.fallback = fallback_from(fallback.value_or("warn"));
  settings.spot_check =
      host::count_variable("MLX_ANE_SPOT_CHECK", 0).value_or(0);
  return settings;
}

struct State {
  std::mutex mutex;
  std::optional<RunnerSettings> settings;  // of the environment at first use
  std::map<const Device*, Health> health;
  std::map<std::string, BackOff> back_off;  // by layer
  std::set<std::string> warned;
};

// Leaked: stream threads may use it while the process exits.
State& state() {
  static auto* instance = new State;
  return *instance;
}

void warn_once(const std::string& key, const std::string& line) {
  {
    std::lock_guard lock(state().mutex);
    if (!state().warned.insert(key).second) {
      return;
    }
  }
  std::fprintf(stderr, "[mlx_ane] warning: %s\n", line.c_str());
}

void take_out(const Device& device, const std::string& why) {
  std::lock_guard lock(state().mutex);
  auto& health = state().health[&device];
  if (!health.out) {
    health.out = why;
    std::fprintf(
        stderr,
        "[mlx_ane] warning: device %s is taken out for this process: %s. Its "
        "layers run on the BLAS; run `mlx-ane doctor`.\n",
        std::string(device.name()).c_str(),
        why.c_str());
  }
}

void succeeded(const Device& device, trace::Layer& layer) {
  trace::add(Counter::device_calls);
  ++layer.device_calls;
  std::lock_guard lock(state().mutex);
  state().back_off.erase(layer.name);
  state().health[&device].failures_in_a_row = 0;
}

void failed(const Device& device, trace::Layer& layer, const DeviceError& e) {
  layer.fall_back(to_string(e.cause));
  if (e.cause == Cause::hang) {
    take_out(device, std::string("a call hung (") + e.what() + ")");
    return;
  }
  int failures;
  {
    std::lock_guard lock(state().mutex);
    failures = ++state().health[&device].failures_in_a_row;
  }
  if (failures >= max_failures_in_a_row) {
    take_out(
        device,
        std::to_string(failures) + " calls failed in a row, the last with " +
            to_string(e.cause) + " (" + e.what() + ")");
  }
}

void back_off(const trace::Layer& layer) {
  std::lock_guard lock(state().mutex);
  auto& wait = state().back_off[layer.name];
  wait.calls_left = wait.next;
  wait.next = std::min(2 * wait.next, max_back_off);
}

std::string describe(
    const Device& device, const trace::Layer& layer, const DeviceError& e) {
  auto who = layer.name.empty() ? std::string("a matmul") : layer.name;
  return who + " on device " + std::string(device.name()) + ": " +
         to_string(e.cause) + " (" + e.what() + ")";
}

void run_on_blas(const MatmulCall& call) {
  auto flops = 2 * call.x.rows * call.x.cols * call.w.rows;
  trace::Span span("gemm_forward", call.layer->name, 0, flops);
  trace::add(Counter::gemm_forward);
  kernels::gemm(
      call.x, call.w.transposed(), call.bias ? &*call.bias : nullptr, call.y);
}

}  // namespace

void fill_nan(const MatrixOut& y) {
  std::vector<float> nan(y.cols, std::numeric_limits<float>::quiet_NaN());
  auto* row = static_cast<char*>(y.data);
  for (int64_t r = 0; r < y.rows; ++r) {
    host::from_float(nan.data(), y.type, row, y.cols);
    row += y.row_stride * static_cast<int64_t>(size_of(y.type));
  }
}

Fallback fallback_from(const std::string& name) {
  if (name == "error") {
    return Fallback::error;
  }
  if (name == "warn") {
    return Fallback::warn;
  }
  if (name == "allow") {
    return Fallback::allow;
  }
  throw std::invalid_argument(
      "[mlx_ane] got fallback \"" + name +
      "\", need \"error\", \"warn\" or \"allow\".");
}

RunnerSettings runner_settings() {
  std::lock_guard lock(state().mutex);
  auto& settings = state().settings;
  if (!settings) {
    settings = settings_of_environment();
  }
  return *settings;
}

int64_t min_rows() {
  std::lock_guard lock(state().mutex);
  return state().settings.value_or(RunnerSettings()).min_rows;
}

void set_runner_settings(const RunnerSettings& settings) {
  std::lock_guard lock(state().mutex);
  state().settings = settings;
}

std::optional<std::string> taken_out(const Device& device) {
  std::lock_guard lock(state().mutex);
  return state().health[&device].out;
}

void restore_devices() {
  std::lock_guard lock(state().mutex);
  state().back_off.clear();
  state().health.clear();
  state().warned.clear();
}

void forget_layer(const std::string& name) {
  {
    std::lock_guard lock(state().mutex);
    state().back_off.erase(name);
  }
  trace::forget_layer(name);
}

std::optional<Placement> placement(
    const Device& device, int64_t rows, const trace::Layer& layer) {
  std::lock_guard lock(state().mutex);
  if (rows < state().settings.value_or(RunnerSettings()).min_rows) {
    return Placement::few_rows;
  }
  if (state().health[&device].out) {
    return Placement::device_out;
  }
  auto back_off = state().back_off.find(layer.name);
  bool waits =
      back_off != state().back_off.end() && back_off->second.calls_left > 0;
  return waits ? std::optional(Placement::back_off) : std::nullopt;
}

void run_placed(
    Device& device, int64_t rows, trace::Layer& layer, const PlacedCall& call) {
  if (auto reason = placement(device, rows, layer)) {
    if (reason == Placement::back_off) {
      std::lock_guard lock(state().mutex);
      auto& left = state().back_off[layer.name].calls_left;
      left = std::max(left - 1, 0);  // two threads may have asked at once
    }
    layer.place(*reason);
    call.on_blas();
    return;
  }
  auto settings = runner_settings();
  auto started = std::chrono::steady_clock::now();
  try {
    if (auto reason = call.on_device(settings)) {
      layer.place(*reason);
      call.on_blas();
      return;
    }
    succeeded(device, layer);
    layer.nanoseconds +=
        std::chrono::nanoseconds(std::chrono::steady_clock::now() - started)
            .count();
    return;
  } catch (const DeviceError& e) {
    failed(device, layer, e);
    auto what = describe(device, layer, e);
    if (settings.fallback == Fallback::error) {
      call.fill_nan();
      throw DeviceFailure(
          "[mlx_ane] " + what +
          ". Set MLX_ANE_FALLBACK=warn to recompute such calls on the BLAS.");
    }
    if (settings.fallback == Fallback::warn) {
      warn_once(
          to_string(e.cause) + std::string(device.name()),
          what + "; recomputed on the BLAS (said once for each cause).");
    }
    back_off(layer);
  }
  call.on_blas();
}

void run_matmul(Device& device, const MatmulCall& call) {
  run_placed(
      device,
      call.x.rows,
      *call.layer,
      {[&](const RunnerSettings& settings) {
         return run_on_device(device, call, settings);
       },
       [&] { run_on_blas(call); },
       [&] { fill_nan(call.y); }});
}

}  // namespace mlx_ane
