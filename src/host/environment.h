// The environment variables of mlx_ane that C++ reads, checked where they are
// first used.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mlx_ane::host {

/// The value of a variable, or "" where it is not set.
std::string variable(const char* name);

/// One of `valid`, or nothing where it is not set or empty; else
/// std::invalid_argument.
std::optional<std::string> choice_variable(
    const char* name, const std::vector<std::string>& valid);

/// A whole number of at least `least`, in the same way.
std::optional<int64_t> count_variable(const char* name, int64_t least);

}  // namespace mlx_ane::host
