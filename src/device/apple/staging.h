// This process's directory of program files, and locks between processes.
#pragma once

#include <filesystem>
#include <string>

namespace mlx_ane::apple {

/// An exclusive lock on a file, held against other processes and threads.
class FileLock {
 public:
  enum class Wait { yes, no };
  FileLock() = default;
  /// Creates the file if needed. Not held if it is taken (Wait::no) or cannot
  /// be opened.
  FileLock(const std::filesystem::path& file, Wait wait);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();
  bool held() const {
    return descriptor_ >= 0;
  }

 private:
  int descriptor_ = -1;
};

/// A new empty directory (0700) for one program, inside the one of this
/// process. That one is removed at exit; those that crashed processes left are
/// removed when it is made.
std::filesystem::path make_private_directory();

/// The directory of this process, made on first use.
const std::filesystem::path& process_directory();

}  // namespace mlx_ane::apple
