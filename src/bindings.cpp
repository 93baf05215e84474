// mlx_ane._ext: signatures and docstrings of the MLX side, and the submodules.
#include "bindings.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "blas/blas.h"
#include "device/device.h"
#include "device/executables.h"
#include "device/runner.h"
#include "device/watchdog.h"
#include "device/weights.h"
#include "host/cache.h"
#include "mlx/version.h"
#include "ops/adam.h"
#include "ops/attention.h"
#include "ops/checks.h"
#include "ops/cross_entropy.h"
#include "ops/gemm.h"
#include "ops/linear.h"
#include "ops/outputs.h"
#include "ops/quantized_linear.h"
#include "ops/streams.h"
#include "ops/swiglu.h"
#include "trace/counters.h"
#include "trace/timeline.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace mlx_ane;

namespace {

void bind_products(nb::module_& m) {
  m.def(
      "linear",
      &linear,
      "x"_a,
      "weight"_a,
      "bias"_a = nb::none(),
      nb::kw_only(),
      "device"_a = "cpu",
      "name"_a = "",
      "frozen"_a = false,
      "precision"_a = "default",
      "stream"_a = nb::none(),
      "x (..., K) @ weight (N, K).T + bias (N); differentiable.");
  m.def(
      "matmul",
      &mlx_ane::matmul,
      "a"_a,
      "b"_a,
      nb::kw_only(),
      "device"_a = "cpu",
      "name"_a = "",
      "stream"_a = nb::none(),
      "a (..., M, K) @ b (..., K, N) with mx.matmul's rules; differentiable.");
  m.def(
      "quantized_linear",
      &quantized_linear,
      "x"_a,
      "weight"_a,
      "scales"_a,
      "biases"_a = nb::none(),
      "bias"_a = nb::none(),
      nb::kw_only(),
      "group_size"_a,
      "bits"_a,
      "mode"_a = "affine",
      "device"_a = "cpu",
      "name"_a = "",
      "frozen"_a = true,
      "stream"_a = nb::none(),
      "mx.quantized_matmul(x, ...) + bias on a device; differentiable.");
}

void bind_fused(nb::module_& m) {
  m.def(
      "attention",
      &attention,
      "q"_a,
      "k"_a,
      "v"_a,
      "scale"_a,
      "mask"_a = nb::none(),
      "sinks"_a = nb::none(),
      "causal"_a = false,
      nb::kw_only(),
      "device"_a = "cpu",
      "stream"_a = nb::none(),
      "softmax(scale q @ k.T + mask) @ v over (B, H, S, D); differentiable.");
  m.def(
      "cross_entropy",
      &cross_entropy,
      "logits"_a,
      "targets"_a,
      "label_smoothing"_a = 0.0f,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "Losses (...) of logits (..., V) and targets (...); differentiable.");
  m.def(
      "swiglu",
      &swiglu,
      "gate"_a,
      "up"_a,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "silu(gate) * up; differentiable.");
}

std::tuple<
    std::vector<mx::array>,
    std::vector<mx::array>,
    std::vector<mx::array>>
adam_step(
    const std::vector<mx::array>& parameters,
    const std::vector<mx::array>& gradients,
    const std::vector<mx::array>& m,
    const std::vector<mx::array>& v,
    const mx::array& scalars,
    std::pair<double, double> betas,
    double eps,
    double weight_decay,
    std::optional<double> max_norm,
    bool stochastic,
    const mx::StreamOrDevice& stream) {
  auto result = adam(
      parameters,
      gradients,
      m,
      v,
      scalars,
      {betas.first, betas.second, eps, weight_decay, max_norm, stochastic},
      stream);
  return {result.parameters, result.m, result.v};
}

void bind_optimizer(nb::module_& m) {
  m.def(
      "adam",
      &adam_step,
      "parameters"_a,
      "gradients"_a,
      "m"_a,
      "v"_a,
      "scalars"_a,
      nb::kw_only(),
      "betas"_a,
      "eps"_a,
      "weight_decay"_a,
      "max_norm"_a = nb::none(),
      "stochastic"_a = false,
      "stream"_a = nb::none(),
      "One AdamW step over lists of tensors; scalars is float32 "
      "[learning_rate, c1, c2, step]. Returns (parameters, m, v).");
}

void bind_devices(nb::module_& m) {
  m.def(
      "unavailable",
      [](const std::string& name) { return get_device(name).unavailable(); },
      "name"_a,
      "Why a device cannot be used here, or None.");
  m.def(
      "disabled",
      [](const std::string& name) { return disabled(get_device(name)); },
      "name"_a,
      "Why a device is disabled for this process, or None.");
  m.def(
      "device_info",
      [](const std::string& name) { return get_device(name).info(); },
      "name"_a,
      "Facts about a device, by name.");
  m.def(
      "set_fallback",
      [](const std::string& name) {
        auto settings = runner_settings();
        settings.fallback = fallback_from(name);
        set_runner_settings(settings);
      },
      "name"_a,
      "What a failed device call does: \"error\", \"warn\" or \"allow\".");
  m.def(
      "restore_devices",
      &restore_devices,
      "Gives disabled devices, and layers that pause, another chance.");
  m.def(
      "set_min_rows",
      [](int64_t n) {
        auto settings = runner_settings();
        auto previous = std::exchange(settings.min_rows, n);
        set_runner_settings(settings);
        return previous;
      },
      "n"_a,
      "Calls of fewer rows go to the BLAS; returns the previous value.");
  m.def(
      "set_spot_check",
      [](int64_t n) {
        auto settings = runner_settings();
        settings.spot_check = n;
        set_runner_settings(settings);
      },
      "every_n_calls"_a,
      "Compare every n-th device call with the BLAS; 0 never.");
  m.def(
      "set_layout",
      [](const std::string& name) {
        auto settings = runner_settings();
        settings.layout = layout_named(name);
        set_runner_settings(settings);
      },
      "name"_a,
      "Layout of the matmul programs.");
}

void bind_caches(nb::module_& m) {
  m.def(
      "clear_cache",
      [] {
        weight_store().clear();
        executable_cache().clear();
        clear_kept_outputs();
      },
      "Drops staged weights, idle programs and memory kept for outputs.");
  m.def(
      "set_cache_limit",
      [](size_t bytes) {
        executable_cache().set_limit(bytes);
        set_kept_output_limit(bytes);
        return weight_store().set_limit(bytes);
      },
      "bytes"_a,
      "Most bytes of each of the three caches; returns the previous limit.");
  m.def(
      "cache_bytes",
      [] { return weight_store().bytes(); },
      "Bytes of staged weights.");
  m.def(
      "program_bytes",
      [] { return executable_cache().bytes(); },
      "Bytes of the surfaces of loaded programs.");
  m.def(
      "kept_output_bytes",
      &kept_output_bytes,
      "Bytes kept for outputs to come.");
  m.def(
      "resident_programs",
      [] { return executable_cache().size(); },
      "Programs loaded now.");
  m.def(
      "cache_directory",
      [] { return host::cache_directory().string(); },
      "The folder of verdicts, measurements and compiled programs.");
  m.def(
      "warn_not_kept",
      [](const std::string& what,
         const std::string& where,
         const std::string& why) { host::warn_not_kept(what, where, why); },
      "what"_a,
      "where"_a,
      "why"_a,
      "One line on stderr that something could not be kept there.");
  m.def(
      "ane_routes",
      &ane_routes,
      "Routes to the engine that are built in, in the order of trial.");
  m.def("abandoned_calls", &abandoned_calls, "Hung calls not yet returned.");
  m.def(
      "synchronize",
      &mlx_ane::synchronize,
      nb::call_guard<nb::gil_scoped_release>(),
      "Waits for this thread's CPU streams, the engine's own included.");
}

void bind_trace(nb::module_& m) {
  m.def("counters", &trace::counters, "Process-wide counts by name.");
  m.def("layer_counters", &trace::layer_counters, "Counts of each layer.");
  m.def(
      "forget_layer",
      &forget_layer,
      "name"_a,
      "Ends the record of a layer that is gone.");
  m.def("reset_counters", &trace::reset_counters, "Sets all counts to zero.");
  m.def("timeline_start", &trace::start_timeline, "Starts recording spans.");
  m.def(
      "timeline_stop",
      &trace::stop_timeline,
      "Stops recording; returns the events as JSON text.");
}

void bind_blas(nb::module_& m) {
  m.def("blas_name", &blas::name, "Library and kernel of the BLAS.");
  m.def("blas_threads", &blas::threads, "Threads of one GEMM.");
  m.def("set_blas_threads", &blas::set_threads, "n"_a, "0 for the default.");
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "The compiled part of mlx_ane.";
  // Registers array, Stream and Device in the nanobind domain we share.
  nb::module_::import_("mlx.core");
  m.attr("built_for_mlx") = std::to_string(MLX_VERSION_MAJOR) + "." +
                            std::to_string(MLX_VERSION_MINOR) + "." +
                            std::to_string(MLX_VERSION_PATCH);
  m.def(
      "accepts",
      [](const mx::array&) { return true; },
      "x"_a,
      "True; TypeError where MLX's arrays are another build's.");
  bind_products(m);
  bind_fused(m);
  bind_optimizer(m);
  bind_devices(m);
  bind_caches(m);
  bind_trace(m);
  bind_blas(m);
  auto mil = m.def_submodule("mil", "MIL programs and weight files.");
  bind_mil(mil);
  auto emulated = m.def_submodule("emulated", "The emulated engine.");
  bind_emulated(emulated);
  auto kernels = m.def_submodule("kernels", "Host kernels, for benchmarks.");
  bind_kernels(kernels);
  auto planning = m.def_submodule("planning", "Programs of a matmul.");
  bind_planning(planning);
  auto block = m.def_submodule("block", "Programs of whole functions.");
  bind_block(block);
#ifdef MLX_ANE_APPLE
  auto apple = m.def_submodule("apple", "The Apple route, for its self-test.");
  bind_apple(apple);
#endif
}
