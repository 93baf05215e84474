// Checks of dtypes and devices.
#include "ops/checks.h"

#include <sstream>

namespace mlx_ane {

namespace {

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
