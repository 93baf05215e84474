// A MIL program in memory: what the parser reads, the writer writes and devices run.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace mlx_ane::mil {

enum class DType : uint8_t {
  fp16,
  fp32,
  fp64,
  int4,
  int8,
  int16,
  int32,
  int64,
  uint1,
  uint2,
  uint3,
  uint4,
  uint6,
  uint8,
  uint16,
  uint32,
  uint64,
  boolean,
  string,
};
const char* to_string(DType type);

/// Type of a value: rank 0 is a scalar.
struct Type {
  DType dtype = DType::fp16;
  std::vector<int64_t> shape;
  bool operator==(const Type&) const = default;
};

/// A constant kept in a weight file: BLOBFILE(path = ..., offset = ...).
struct Blob {
  std::string path;
  uint64_t offset = 0;
  bool operator==(const Blob&) const = default;
};

/// A constant. Numbers are kept little-endian in row-major order, one element
/// in sizeof(dtype) bytes (sub-byte types: one element a byte).
struct Constant {
  Type type;
  std::variant<std::vector<uint8_t>, std::vector<std::string>, Blob> data;
  bool operator==(const Constant&) const = default;
};

/// Where in the text something stood; both 1-based, 0 when built in memory.
struct Location {
  int line = 0;
  int column = 0;
};

struct Argument;

/// The name of a value defined before.
struct Reference {
  std::string name;
};

/// A reference, a constant written in place, or a tuple of arguments.
struct Argument {
  std::variant<Reference, Constant, std::vector<Argument>> value;
  Location location;
};

struct Value {
  std::string name;
  Type type;
};

/// outputs = op(inputs)[attributes]
struct Operation {
  std::string op;
  std::vector<std::pair<std::string, Argument>> inputs;
  std::vector<std::pair<std::string, Constant>> attributes;
  std::vector<Value> outputs;
  Location location;
};

struct Function {
  std::string name = "main";
  std::string opset = "ios18";
  std::vector<Value> inputs;
  std::vector<Operation> operations;
  std::vector<std::string> outputs;
  Location location;
};

struct Program {
  std::string version = "1.3";
  std::vector<std::pair<std::string, std::string>> build_info;
  std::vector<Function> functions;
};

/// ios18: program(1.3), shorthand scalars. ios16: program(1.0), verbose scalars,
/// the form that M1 and M2 accept.
enum class Dialect { ios16, ios18 };

/// A malformed program: what() is one sentence with line, column and a caret.
class ParseError : public std::invalid_argument {
 public:
  ParseError(const std::string& what, Location location)
      : std::invalid_argument(what), location(location) {}
  const Location location;
};

Program parse(std::string_view text);
std::string write(const Program& program, Dialect dialect);

} // namespace mlx_ane::mil
