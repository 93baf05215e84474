// Looks at the folders in turn; asked anew each time, as variables may change.
#include "host/cache.h"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "host/environment.h"
#include "host/process.h"

namespace mlx_ane::host {

namespace fs = std::filesystem;

namespace {

struct Warned {
  std::mutex mutex;
  std::set<std::string> lines;
};

void warn_once(const std::string& line) {
  auto& warned = of_process<Warned>();
  std::lock_guard lock(warned.mutex);
  if (warned.lines.insert(line).second) {
    std::fprintf(stderr, "[mlx_ane] warning: %s\n", line.c_str());
  }
}

/// Of the nearest folder that exists; a file in the way is none.
bool writable(fs::path folder) {
  std::error_code error;
  while (!fs::exists(folder, error) && folder != folder.parent_path()) {
    folder = folder.parent_path();
  }
  return fs::is_directory(folder, error) &&
         access(folder.c_str(), W_OK | X_OK) == 0;
}

/// HOME, or what the user's entry in the password file says: containers may
/// have neither.
std::optional<fs::path> home() {
  if (auto set = variable("HOME"); !set.empty()) {
    return set;
  }
  auto* user = getpwuid(getuid());
  return user && user->pw_dir ? std::optional<fs::path>(user->pw_dir)
                              : std::nullopt;
}

/// As std::filesystem's, which libc++ of macOS 14 is not known to have.
fs::path absolute(const fs::path& path) {
  char folder[4096];
  bool relative = !path.is_absolute() && getcwd(folder, sizeof folder);
  return relative ? fs::path(folder) / path : path;
}

std::optional<fs::path> preferred() {
  if (auto set = variable("MLX_ANE_CACHE_DIR"); !set.empty()) {
    return absolute(set);
  }
  auto base = home();
#if defined(__APPLE__)
  auto caches = fs::path("Library") / "Caches" / "mlx_ane";
#else
  auto caches = fs::path(".cache") / "mlx_ane";
#endif
  return base ? std::optional(*base / caches) : std::nullopt;
}

/// Below the temporary folder, which other users may write: it must be ours.
fs::path fallback() {
  std::error_code error;
  auto base = fs::temp_directory_path(error);
  auto folder = base / ("mlx_ane_cache-" + std::to_string(getuid()));
  if (!error && mkdir(folder.c_str(), 0700) == 0) {
    return folder;
  }
  struct stat found;
  bool ours = !error && lstat(folder.c_str(), &found) == 0 &&
              S_ISDIR(found.st_mode) && found.st_uid == getuid() &&
              (found.st_mode & 022) == 0;
  return ours ? folder : fs::path("/dev/null/mlx_ane");
}

}  // namespace

fs::path cache_directory() {
  auto wanted = preferred();
  if (wanted && writable(*wanted)) {
    return *wanted;
  }
  auto folder = fallback();
  warn_once(
      (wanted ? "cache folder " + wanted->string() + " cannot be written"
              : std::string("there is no home folder for a cache")) +
      "; " + folder.string() +
      " is used instead; set MLX_ANE_CACHE_DIR to a folder that can.");
  return folder;
}

void warn_not_kept(
    const std::string& what, const fs::path& where, const std::string& why) {
  warn_once(
      what + " cannot be kept in " + where.string() + " (" + why +
      "); set MLX_ANE_CACHE_DIR to a folder with room.");
}

}  // namespace mlx_ane::host
