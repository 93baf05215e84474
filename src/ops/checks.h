// Argument checks that the op functions share; each message names op and mend.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "mlx/mlx.h"

#include "device/device.h"

namespace mlx_ane {

namespace mx = mlx::core;

/// Where an op's forward runs: the BLAS if `device` is null.
struct Place {
  Device* device = nullptr;
  bool operator==(const Place&) const = default;
};

/// "cpu", "emulated" or "ane"; std::invalid_argument otherwise, and
/// std::runtime_error with the reason where the device is unavailable.
Place resolve_place(const std::string& op, const std::string& device);

/// float32, float16 or bfloat16, else std::invalid_argument.
void check_float(const std::string& op, const char* name, const mx::array& x);

using Named = std::pair<const char*, mx::array>;

/// The type of a product of these arrays by MLX's promotion, in which integers
/// and booleans follow the others. std::invalid_argument where one is complex
/// or float64, or none is float32, float16 or bfloat16.
mx::Dtype product_type(
    const std::string& op, const std::vector<Named>& operands);

/// An integer or boolean x in `dtype`; a float x as it is: our products read
/// each float type themselves.
mx::array as_float(const mx::array& x, mx::Dtype dtype, mx::Stream stream);

std::string to_string(const mx::Shape& shape);
std::string to_string(mx::Dtype dtype);

}  // namespace mlx_ane
