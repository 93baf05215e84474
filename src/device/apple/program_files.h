// The files of one program: staged privately, or kept in the compiled cache.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "device/apple/staging.h"
#include "device/device.h"

namespace mlx_ane::apple {

/// Writes a file. Throws DeviceError{compile_failed} that says what to do.
void write_file(
    const std::filesystem::path& file, const void* bytes, size_t size);

/// Writes the weight files of a program below `directory`, which is what their
/// names call @model_path. Throws DeviceError{compile_failed}.
void write_weights(
    const std::filesystem::path& directory, const Source& source);

/// model.mil, the weight files and what the compiler leaves beside them. The
/// caller stages, compiles if it must, loads, and then settles.
class ProgramFiles {
 public:
  /// In this process's private directory; removed with the object.
  static std::unique_ptr<ProgramFiles> in_private(const Source& source);

  /// The same in a directory of somebody else's choice.
  static std::unique_ptr<ProgramFiles> in_directory(
      const Source& source, const std::filesystem::path& directory);

  /// In the compiled cache under `chip`, OS build and content, or in private
  /// where the same program is already live in this process or the cache cannot
  /// be written. Other processes wait for the same entry until settle().
  static std::unique_ptr<ProgramFiles> in_cache(
      const Source& source, const std::string& chip);

  ~ProgramFiles();

  const std::filesystem::path& directory() const {
    return directory_;
  }
  /// Every file of an earlier compile is there and intact.
  bool compiled() const {
    return compiled_;
  }
  bool cached() const {
    return !key_.empty();
  }
  /// Removes what is there and writes the source again.
  void restage(const Source& source);
  /// The program has loaded: records its files and unlocks the entry.
  void settle();

 private:
  ProgramFiles() = default;
  std::filesystem::path directory_;
  /// Name of the cache entry; empty for a private directory.
  std::string key_;
  FileLock lock_;
  bool compiled_ = false;
};

}  // namespace mlx_ane::apple
