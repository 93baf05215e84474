// One sentence for every wrong value.
#include "host/environment.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <stdexcept>

namespace mlx_ane::host {

namespace {

[[noreturn]] void refuse(
    const char* name, const std::string& value, const std::string& need) {
  throw std::invalid_argument(
      std::string("[mlx_ane] ") + name + " is '" + value + "', need " + need +
      ".");
}

}  // namespace

std::string variable(const char* name) {
  auto* text = std::getenv(name);
  return text ? text : "";
}

std::optional<std::string> choice_variable(
    const char* name, const std::vector<std::string>& valid) {
  auto value = variable(name);
  if (value.empty()) {
    return std::nullopt;
  }
  if (std::find(valid.begin(), valid.end(), value) == valid.end()) {
    std::string names;
    for (auto& one : valid) {
      names += (names.empty() ? "" : ", ") + one;
    }
    refuse(name, value, "one of " + names);
  }
  return value;
}

std::optional<int64_t> count_variable(const char* name, int64_t least) {
  auto value = variable(name);
  if (value.empty()) {
    return std::nullopt;
  }
  int64_t count = 0;
  auto last = value.data() + value.size();
  auto [end, error] = std::from_chars(value.data(), last, count);
  if (error != std::errc() || end != last || count < least) {
    refuse(name, value, "a whole number of at least " + std::to_string(least));
  }
  return count;
}

}  // namespace mlx_ane::host
