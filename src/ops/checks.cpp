// Checks of dtypes, devices and streams.
#include "ops/checks.h"

#include <sstream>

#include "device/runner.h"

namespace mlx_ane {

namespace {

/// This thread's stream for calls of device "ane".
mx::Stream engine_stream() {
  static auto stream = mx::new_thread_local_stream(mx::Device::cpu);
  return mx::to_stream(stream);
}

bool is_float(mx::Dtype t) {
  return t == mx::float32 || t == mx::float16 || t == mx::bfloat16;
}

}  // namespace

Place resolve_place(const std::string& op, const std::string& device) {
  if (device == "cpu") {
    return {};
  }
  if (device != "emulated" && device != "ane") {
    throw std::invalid_argument(
        "[mlx_ane." + op + "] got device \"" + device +
        "\", need \"ane\", \"emulated\" or \"cpu\".");
  }
  auto& found = get_device(device);
  if (auto reason = found.unavailable()) {
    throw std::runtime_error(
        "[mlx_ane." + op + "] device \"" + device + "\" is unavailable: " +
        *reason + "; use device=\"cpu\" or \"emulated\".");
  }
  return {&found};
}

mx::Stream resolve_stream(
    const std::string& op,
    const mx::StreamOrDevice& stream,
    const Place& place) {
  // Under Fallback::error all work stays on one stream: MLX would deliver the
  // exception of a second one again in a later eval.
  if (place.device && place.device->name() == "ane" &&
      std::holds_alternative<std::monostate>(stream) &&
      runner_settings().fallback != Fallback::error) {
    return engine_stream();
  }
  // Where MLX has no GPU, asking it for a GPU stream fails in its own words.
  auto* type = std::get_if<mx::Device::DeviceType>(&stream);
  auto* whole = std::get_if<mx::Device>(&stream);
  bool gpu = (type && *type == mx::Device::gpu) ||
             (whole && *whole == mx::Device::gpu);
  auto resolved = gpu ? mx::Stream(0, mx::Device::gpu)
                      : mx::to_stream(stream, mx::Device::cpu);
  if (resolved.device != mx::Device::cpu) {
    throw std::invalid_argument(
        "[mlx_ane." + op +
        "] got a GPU stream, need a CPU stream; pass stream=mx.cpu or none.");
  }
  return resolved;
}

void synchronize() {
  mx::synchronize(mx::default_stream(mx::Device::cpu));
  mx::synchronize(engine_stream());
}

void check_float(const std::string& op, const char* name, const mx::array& x) {
  if (!is_float(x.dtype())) {
    throw std::invalid_argument(
        "[mlx_ane." + op + "] got " + name + " of dtype " +
        to_string(x.dtype()) +
        ", need float32, float16 or bfloat16; cast it with astype.");
  }
}

mx::Dtype product_type(
    const std::string& op, const std::vector<Named>& operands) {
  auto dtype = mx::bool_;
  for (auto& [name, x] : operands) {
    if (mx::issubdtype(x.dtype(), mx::inexact)) {
      check_float(op, name, x);
    }
    dtype = mx::promote_types(dtype, x.dtype());
  }
  if (!is_float(dtype)) {
    auto& [name, x] = operands[0];
    check_float(op, name, x);
  }
  return dtype;
}

mx::array as_float(const mx::array& x, mx::Dtype dtype, mx::Stream stream) {
  return is_float(x.dtype()) ? x : mx::astype(x, dtype, stream);
}

std::string to_string(const mx::Shape& shape) {
  std::ostringstream out;
  out << shape;
  return out.str();
}

std::string to_string(mx::Dtype dtype) {
  std::ostringstream out;
  out << dtype;
  return out.str();
}

}  // namespace mlx_ane
