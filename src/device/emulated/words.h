// Cuts the texts of environment variables: "NAME:KEY=VALUE,...;...".
#pragma once

#include <string_view>
#include <vector>

namespace mlx_ane::emulated {

inline std::vector<std::string_view> split(
    std::string_view text, char separator) {
  std::vector<std::string_view> out;
  while (true) {
    auto at = text.find(separator);
    out.push_back(text.substr(0, at));
    if (at == text.npos) {
      return out;
    }
    text.remove_prefix(at + 1);
  }
}

inline std::string_view trim(std::string_view text) {
  auto first = text.find_first_not_of(" \t\n");
  if (first == text.npos) {
    return {};
  }
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

}  // namespace mlx_ane::emulated
