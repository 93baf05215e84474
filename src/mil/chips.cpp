// Reads the names of chips.
#include "mil/chips.h"

#include <algorithm>
#include <stdexcept>

namespace mlx_ane::mil {

namespace {

constexpr int first_generation = 13;  // M1 is h13, M2 is h14, ... (ANEForge)
constexpr int last_generation = 18;

bool is_letter(char c) {
  return c >= 'a' && c <= 'z';
}

/// In lower case, without what separates words.
std::string folded(std::string_view text) {
  std::string out;
  for (auto c : text) {
    if (c != ' ' && c != '-' && c != '_') {
      out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    }
  }
  return out;
}

}  // namespace

std::optional<Chip> find_chip(std::string_view text) {
  auto word = folded(text);
  for (int generation = first_generation; generation <= last_generation;
       ++generation) {
    auto name = "M" + std::to_string(generation - first_generation + 1);
    auto architecture = "h" + std::to_string(generation);
    if (word.starts_with(architecture)) {
      auto suffix = word.substr(architecture.size());
      if (std::all_of(suffix.begin(), suffix.end(), is_letter)) {
        return Chip{generation, name, word};
      }
    }
    for (std::string size : {"", " Pro", " Max", " Ultra"}) {
      if (word == folded(name + size)) {
        return Chip{generation, name + size, architecture};
      }
    }
  }
  return std::nullopt;
}

Chip chip_named(std::string_view text, const std::string& where) {
  if (auto chip = find_chip(text)) {
    return *chip;
  }
  throw std::invalid_argument(
      "[" + where + "] got chip \"" + std::string(text) +
      "\", need one of h13 to h18 with any suffix, or M1 to M6 with or without "
      "Pro, Max or Ultra.");
}

}  // namespace mlx_ane::mil
