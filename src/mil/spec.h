// Core ML models: a MIL program as the bytes of a `Model` message, and back.
//
// What Core ML's public API loads: +[MLModelAsset
// modelAssetWithSpecificationData:error:] takes these bytes, and an .mlpackage
// holds them as Data/com.apple.CoreML/model.mlmodel.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mil/program.h"
#include "mil/weights.h"

namespace mlx_ane::mil {

/// Where a package has its weights: the path of the constants in it.
inline constexpr const char* package_weights = "@model_path/weights/weight.bin";

struct SpecOptions {
  /// Version of the specification: 6 (macOS 12, opset CoreML5), 7 (macOS 13),
  /// 8 (macOS 14), 9 (macOS 15) or 10 (macOS 26). 0 is the lowest that has the
  /// program's operations, arguments and types.
  int version = 0;
  std::string description;
  std::string author;
  std::string license;
  /// Version of the model itself, as its author counts.
  std::string model_version;
  std::vector<std::pair<std::string, std::string>> user_defined;
  /// The shapes that an input with a `?` may have, the default one first.
  std::vector<std::pair<std::string, std::vector<std::vector<int64_t>>>> shapes;
  /// If given, numeric constants of at least ten elements are added to it and
  /// named by path and offset instead of being written in place. It may hold
  /// chunks that the program names already.
  WeightWriter* weights = nullptr;
};

/// Bytes of a Core ML `Model` with this program. Its functions' inputs and
/// outputs are the model's, multi-arrays of the same names and types; several
/// functions are those of a multi-function model, whose default is "main".
/// Constants that stand inside operations become const operations.
/// std::invalid_argument in one sentence if the program is no valid MIL (the
/// rules of `check` of stage parse), if a type cannot go in or out, or if
/// `version` is too low for it.
std::string model_spec(const Program& program, const SpecOptions& options = {});

/// The version that `model_spec` takes for 0.
int spec_version(const Program& program);

/// The program of a `Model`, which is not trusted; constants in weight files
/// stay there. std::invalid_argument if it is no ML Program, or one with what
/// Program cannot hold (nested blocks, lists, dictionaries).
Program read_spec(std::string_view model);

}  // namespace mlx_ane::mil
