// What the fuzzers of MIL text and weight files do with one input.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "mil/check.h"
#include "mil/program.h"
#include "mil/weights.h"

namespace fuzz {

/// Ends the process with a message that a fuzzer and a test log both show.
inline void require(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "fuzz: %s\n", what);
    std::abort();
  }
}

/// A program's text, or none where ios16 lacks what it uses.
inline std::optional<std::string> text_in(
    const mlx_ane::mil::Program& program, mlx_ane::mil::Dialect dialect) {
  using namespace mlx_ane::mil;
  try {
    return write(program, dialect);
  } catch (const std::invalid_argument&) {
    require(dialect == Dialect::ios16, "ios18 refused what parses");
    return std::nullopt;
  }
}

/// Text parses or is refused; what parses keeps its meaning when written, and
/// can be checked for any chip.
inline void mil_text(std::string_view text) {
  using namespace mlx_ane::mil;
  Program program;
  try {
    program = parse(text);
  } catch (const ParseError& error) {
    require(error.location.line > 0, "an error without a line");
    return;
  }
  auto own = dialect_of(program);
  if (auto written = text_in(program, own)) {
    require(
        same_meaning(program, parse(*written)), "writing changed the meaning");
  }
  auto other = own == Dialect::ios16 ? Dialect::ios18 : Dialect::ios16;
  if (auto written = text_in(program, other)) {
    require(dialect_of(parse(*written)) == other, "writing kept the dialect");
  }
  check(program, {});
  check(program, {limits_of("h13"), 27});
}

/// Chunks lie within the file, and reading any of them stays within it.
inline void weight_file(std::span<const std::byte> bytes) {
  using namespace mlx_ane::mil;
  try {
    WeightFile file(bytes);
    for (auto& chunk : file.chunks()) {
      require(
          chunk.data_offset == 0 ||
              (chunk.data_offset <= bytes.size() &&
               chunk.bytes <= bytes.size() - chunk.data_offset),
          "a chunk beyond the file");
    }
    std::vector<uint64_t> offsets;
    for (auto& chunk : file.chunks()) {
      offsets.push_back(chunk.offset);
    }
    // Unused bytes of the file's header choose a place that is not listed.
    uint64_t any = 0;
    std::memcpy(&any, bytes.data() + 8, 8);
    offsets.push_back(any % (bytes.size() + 64));
    for (auto offset : offsets) {
      for (auto dtype : {DType::int4, DType::uint3, DType::fp16, DType::fp32}) {
        try {
          file.constant(offset, {dtype, {3, 5}, false});
        } catch (const std::invalid_argument&) {
          // Refused: fine.
        }
      }
    }
  } catch (const std::invalid_argument&) {
    return;
  }
}

}  // namespace fuzz
