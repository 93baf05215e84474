// The operations of MIL: their arguments and the chips that execute them.
#pragma once

#include <string_view>

namespace mlx_ane::mil {

/// The first chip whose engine executes an operation itself.
enum class Since { all, h14, h15, never };

struct OpInfo {
  std::string_view name;
  /// Argument names, separated by blanks.
  std::string_view required;
  std::string_view optional;
  /// The first opset with it; 15 stands for that and every earlier one.
  int opset;
  Since since;
};

/// nullptr for an unknown operation.
const OpInfo* find_op(std::string_view name);

/// Whether `name` is one of the blank-separated `names`.
bool contains(std::string_view names, std::string_view name);

}  // namespace mlx_ane::mil
