// A model as files: the .mlpackage that compileModelAtURL: takes.
#include "device/apple/coreml_package.h"

#include "device/apple/program_files.h"

namespace mlx_ane::apple::coreml {

namespace fs = std::filesystem;

namespace {

constexpr const char* manifest = R"({
  "fileFormatVersion": "1.0.0",
  "itemInfoEntries": {
    "6d6c785f-616e-4560-8000-000000000001": {
      "author": "com.apple.CoreML",
      "description": "CoreML Model Specification",
      "name": "model.mlmodel",
      "path": "com.apple.CoreML/model.mlmodel"
    },
    "6d6c785f-616e-4560-8000-000000000002": {
      "author": "com.apple.CoreML",
      "description": "CoreML Model Weights",
      "name": "weights",
      "path": "com.apple.CoreML/weights"
    }
  },
  "rootModelIdentifier": "6d6c785f-616e-4560-8000-000000000001"
}
)";

}  // namespace

fs::path write_package(
    const fs::path& directory, const std::string& spec, const Source& source) {
  auto package = directory / "model.mlpackage";
  auto data = package / "Data" / "com.apple.CoreML";
  fs::create_directories(data / "weights");
  write_file(
      package / "Manifest.json", manifest, std::string_view(manifest).size());
  write_file(data / "model.mlmodel", spec.data(), spec.size());
  write_weights(data, source);
  return package;
}

}  // namespace mlx_ane::apple::coreml
