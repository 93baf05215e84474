// What the self-test found on this machine, kept between processes.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

namespace mlx_ane::apple {

/// By key: "passed" (yes or no), "route", "staging", "layout", "dialect",
/// "row_alignment", "max_contraction", "reason" and what the self-test keeps
/// for itself. Values are one line each.
using Verdict = std::map<std::string, std::string>;

/// This machine's file: keyed by OS build, chip and version of this package, so
/// that an update of any of them asks for a new self-test.
std::filesystem::path verdict_file();

/// The verdict for this OS build, chip and version, if the self-test has run.
std::optional<Verdict> stored_verdict();

/// Replaces it; one line on stderr where the cache cannot be written.
void store_verdict(const Verdict& verdict);

}  // namespace mlx_ane::apple
