// Checks of dtypes and devices.
#include "ops/checks.h"

#include <sstream>

namespace mlx_ane {

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
  auto t = x.dtype();
  if (t != mx::float32 && t != mx::float16 && t != mx::bfloat16) {
    throw std::invalid_argument(
        "[mlx_ane." + op + "] got " + name + " of dtype " + to_string(t) +
        ", need float32, float16 or bfloat16; cast it with astype.");
  }
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
