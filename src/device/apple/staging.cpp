// This process's directory of program files, and locks between processes.
#include "device/apple/staging.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "device/apple/system.h"
#include "device/device.h"

namespace mlx_ane::apple {

namespace fs = std::filesystem;

namespace {

constexpr const char* prefix = "mlx_ane-";
constexpr const char* unborn = "mlx_ane_new-";

/// The file that `descriptor` locks is still the one at `file`.
bool current(int descriptor, const fs::path& file) {
  struct stat held;
  struct stat found;
  return fstat(descriptor, &held) == 0 && stat(file.c_str(), &found) == 0 &&
         held.st_ino == found.st_ino && held.st_dev == found.st_dev;
}

bool ours(const fs::path& directory) {
  struct stat info;
  return lstat(directory.c_str(), &info) == 0 && S_ISDIR(info.st_mode) &&
         info.st_uid == getuid();
}

/// A directory whose lock is free belongs to a process that is gone.
void remove_survivors(const fs::path& base) {
  std::error_code ignored;
  for (auto& entry : fs::directory_iterator(base, ignored)) {
    auto name = entry.path().filename().string();
    if (name.starts_with(prefix) && ours(entry.path()) &&
        FileLock(entry.path() / "lock", FileLock::Wait::no).held()) {
      fs::remove_all(entry.path(), ignored);
    }
  }
}

fs::path make_directory(const fs::path& base) {
  auto pattern = (base / (std::string(unborn) + "XXXXXX")).string();
  if (mkdtemp(pattern.data()) == nullptr) {
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] got \"" + std::string(std::strerror(errno)) +
            "\" for a directory in " + base.string() +
            ", need a writable one, set TMPDIR.");
  }
  return pattern;
}

struct ProcessDirectory {
  fs::path path;
  FileLock lock;
  std::atomic<int> next{0};

  ProcessDirectory() {
    auto base = fs::temp_directory_path();
    remove_survivors(base);
    auto made = make_directory(base);
    // Locked before it gets the name that others look for.
    lock = FileLock(made / "lock", FileLock::Wait::yes);
    path =
        base / (prefix + made.filename().string().substr(std::strlen(unborn)));
    fs::rename(made, path);
  }
};

/// Leaked: abandoned workers may outlive static destructors.
ProcessDirectory& process() {
  static auto* directory = [] {
    auto made = new ProcessDirectory;
    std::atexit([] {
      std::error_code ignored;
      if (in_same_process()) {
        fs::remove_all(process().path, ignored);
      }
    });
    return made;
  }();
  return *directory;
}

}  // namespace

FileLock::FileLock(const fs::path& file, Wait wait) {
  while (true) {
    int descriptor =
        open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0) {
      return;
    }
    int code;
    do {
      code = flock(descriptor, LOCK_EX | (wait == Wait::no ? LOCK_NB : 0));
    } while (code != 0 && errno == EINTR);
    if (code == 0 && current(descriptor, file)) {
      descriptor_ = descriptor;
      return;
    }
    close(descriptor);
    if (code != 0) {
      return;
    }
  }
}

FileLock::FileLock(FileLock&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)) {
}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) {
    close(descriptor_);
  }
}

const fs::path& process_directory() {
  return process().path;
}

fs::path make_private_directory() {
  auto& owner = process();
  auto directory = owner.path / std::to_string(owner.next++);
  fs::create_directory(directory);
  return directory;
}

}  // namespace mlx_ane::apple
