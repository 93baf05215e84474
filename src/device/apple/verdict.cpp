// What the self-test found on this machine, kept between processes.
#include "device/apple/verdict.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "device/apple/system.h"
#include "host/cache.h"

namespace mlx_ane::apple {

namespace fs = std::filesystem;

namespace {

/// The last line of a file that was not cut off.
constexpr const char* last_key = "whole";

}  // namespace

fs::path verdict_file() {
  auto chip = sysctl_text("machdep.cpu.brand_string");
  auto key = file_key(os_build()) + "-" + file_key(chip) + "-" +
             file_key(MLX_ANE_VERSION);
  return host::cache_directory() / "verdicts" / (key + ".txt");
}

std::optional<Verdict> stored_verdict() {
  std::ifstream file(verdict_file());
  Verdict verdict;
  // A line without its end is one of a file that was cut off.
  for (std::string line; std::getline(file, line) && !file.eof();) {
    auto colon = line.find(": ");
    if (colon != std::string::npos) {
      verdict[line.substr(0, colon)] = line.substr(colon + 2);
    }
  }
  bool whole = verdict.erase(last_key) > 0 && verdict.contains("passed");
  return whole ? std::optional(verdict) : std::nullopt;
}

void store_verdict(const Verdict& verdict) {
  auto file = verdict_file();
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  auto draft = fs::path(file).concat(".new").concat(std::to_string(getpid()));
  std::ofstream stream(draft, std::ios::trunc);
  for (auto [key, value] : verdict) {
    std::replace(value.begin(), value.end(), '\n', ' ');
    stream << key << ": " << value << "\n";
  }
  stream << last_key << ": yes\n";
  stream.close();
  if (stream) {
    fs::rename(draft, file, error);
  }
  if (!stream || error) {
    std::string why = std::strerror(error ? error.value() : errno);
    fs::remove(draft, error);
    host::warn_not_kept("the verdict", file.parent_path(), why);
  }
}

}  // namespace mlx_ane::apple
