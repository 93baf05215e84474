// Checks a MIL program against what is reported about the engine and its
// compiler.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mil/program.h"

namespace mlx_ane::mil {

/// error: reported to be rejected or to give wrong values. warning: reported
/// for some shapes, chips or routes only. note: works, but slowly or
/// surprisingly.
enum class Severity { error, warning, note };
const char* to_string(Severity severity);

/// When the engine would notice.
enum class Moment { parse, compile, load, evaluate, never };
const char* to_string(Moment moment);

/// One reported limit that can be seen in the text of a program.
struct Rule {
  std::string_view id;
  Severity severity;
  Moment moment;
  /// Reports conflict: the stricter one holds unless the rule is allowed.
  bool disputed;
  std::string_view why;
  std::string_view source;
};

/// Every rule, sorted by id.
std::span<const Rule> rules();
/// nullptr for an unknown id.
const Rule* find_rule(std::string_view id);

struct Finding {
  const Rule* rule = nullptr;
  /// "main, line 12: y = concat" or "main".
  std::string where;
  std::string what;
  Location location;
};

/// What a chip and its macOS take. The numbers stand in the device's limits
/// alone; without them a chip takes nothing.
struct CheckOptions {
  std::string chip;
  /// 13 for h13 (M1) to 18.
  int generation = 0;
  int macos = 0;
  int64_t max_axis = 0;
  int64_t max_channels = 0;
  int max_rank = 0;
  int64_t min_width = 0;
  int64_t narrow_channels = 0;
  int64_t row_alignment = 1;
  int64_t max_conv_channels = 0;
  int64_t max_kernel_width = 0;
  int max_blobs = 0;
  int max_blobs_with_scalar = 0;
  int64_t max_contraction = 0;
  uint64_t address_window = 0;
  bool verbose_dialect = false;
  bool fp32_io = false;
  bool cast = false;
  bool multi_chunk_files = false;
  bool narrow_slices = false;
  /// Rules to leave out, by id; "disputed" leaves out all disputed ones.
  std::set<std::string, std::less<>> allow;
};

/// Findings in the order of the text, at most 1000.
std::vector<Finding> check(const Program& program, const CheckOptions& options);

}  // namespace mlx_ane::mil
