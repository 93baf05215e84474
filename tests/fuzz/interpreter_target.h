// What the fuzzer of the interpreter does with one program.
#pragma once

#include <stdexcept>
#include <string_view>

#include "device/emulated/dense.h"
#include "device/emulated/surface_io.h"
#include "mil/weights.h"

namespace fuzz {

/// Files that programs of the corpus name: fp16 and int8 chunks at 64 and 8320.
inline mlx_ane::emulated::Weights interpreter_weights() {
  mlx_ane::mil::WeightWriter writer;
  std::vector<uint8_t> bytes(8192);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<uint8_t>(i * 7 % 61);
  }
  writer.add(mlx_ane::mil::DType::fp16, bytes);
  writer.add(mlx_ane::mil::DType::int8, bytes);
  auto file = std::make_shared<const std::vector<std::byte>>(writer.bytes());
  return {{"@model_path/w.bin", file}, {"@model_path/weights/w.bin", file}};
}

/// Programs compile and run in both numerics, or are refused; memory is
/// bounded.
inline void interpreter(std::string_view text) {
  using namespace mlx_ane::emulated;
  static const auto weights = interpreter_weights();
  Options options;
  options.level = Level::off;
  options.memory_budget = 1 << 16;
  for (auto chip : {"h16g", "h15"}) {
    options.chip = chip;
    try {
      DenseProgram program(text, weights, options);
      for (size_t p = 0; p < program.engine().procedures(); ++p) {
        std::vector<std::vector<std::byte>> arrays;
        for (auto& input : program.engine().inputs(p)) {
          auto& array = arrays.emplace_back(dense_bytes(input.type));
          for (size_t i = 0; i < array.size(); ++i) {
            array[i] = static_cast<std::byte>(i * 37 % 251);
          }
        }
        std::vector<std::span<const std::byte>> inputs(
            arrays.begin(), arrays.end());
        program.run(p, inputs, false);
        program.run(p, inputs, true);
      }
    } catch (const EngineError&) {
      // Refused: fine.
    } catch (const std::invalid_argument&) {
      // A port of a type that surfaces cannot hold.
    }
  }
}

}  // namespace fuzz
