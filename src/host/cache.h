// The folder of what later processes can use again.
#pragma once

#include <filesystem>
#include <string>

namespace mlx_ane::host {

/// The folder of verdicts, measurements and compiled programs.
/// MLX_ANE_CACHE_DIR or else this user's cache folder or, where that cannot be
/// written, one of this user below the temporary folder, which one line on
/// stderr tells. Where even that is missing, a path that no file can have.
/// Whoever writes makes the folder, and goes on without it if that fails.
std::filesystem::path cache_directory();

/// One line on stderr, the first time in this process: what could not be kept
/// and why, and that MLX_ANE_CACHE_DIR chooses another folder.
void warn_not_kept(
    const std::string& what,
    const std::filesystem::path& where,
    const std::string& why);

}  // namespace mlx_ane::host
