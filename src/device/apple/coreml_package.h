// A model as files, for where Core ML does not take it from memory.
#pragma once

#include <filesystem>
#include <string>

#include "device/device.h"

namespace mlx_ane::apple::coreml {

/// Writes model.mlpackage in `directory`: the bytes of a Model, and the weight
/// files that it names. Its path.
std::filesystem::path write_package(
    const std::filesystem::path& directory,
    const std::string& spec,
    const Source& source);

}  // namespace mlx_ane::apple::coreml
