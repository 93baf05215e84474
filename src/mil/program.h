// A MIL program in memory: what the parser reads, the writer writes and devices
// run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
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
  bf16,
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
/// The type of that name ("fp16", "bool", ...), or nothing.
std::optional<DType> dtype_named(std::string_view name);
/// Bits of one element in a weight file: 4 for int4, 1 for uint1, 8 for bool;
/// 0 for strings.
int bits(DType type);
/// Bytes of one element in a Constant: 1 for sub-byte types and bool; 0 for
/// strings.
size_t element_bytes(DType type);
bool is_float(DType type);
bool is_integer(DType type);

/// A dimension written `?`, known only at run time.
inline constexpr int64_t unknown_dim = -1;

/// Type of a value: rank 0 is a scalar.
struct Type {
  DType dtype = DType::fp16;
  std::vector<int64_t> shape;
  /// state<tensor<...>>: an input that a program may also write.
  bool state = false;
  /// Of a tensor_buffer<...>, which gives the layout of a surface; empty for
  /// tensors. Strides are in elements; element i of an axis with factor f
  /// stands at i / f * stride + i % f.
  std::vector<int64_t> strides = {};
  std::vector<int64_t> interleave_factors = {};
  bool is_buffer() const {
    return !strides.empty();
  }
  bool operator==(const Type&) const = default;
};
/// Elements of a type; 0 if a dimension is unknown. The parser rejects types
/// whose count overflows int64_t.
int64_t element_count(const Type& type);

/// A constant kept in a weight file: BLOBFILE(path = ..., offset = ...).
struct Blob {
  std::string path;
  uint64_t offset = 0;
  bool operator==(const Blob&) const = default;
};

/// A constant. Numbers are kept little-endian in row-major order, one element
/// in element_bytes(dtype) bytes (sub-byte types: one element a byte, signed
/// ones sign-extended).
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

/// outputs = op(inputs)[attributes]. A reference or tuple that stood in the
/// bracket is in `inputs`; `val` and `name` of a const are in `attributes`
/// wherever they stood, and both may be missing from other ops. write_state has
/// no outputs.
struct Operation {
  std::string op;
  /// Of op<opset>(...), for example "ios17"; empty without it.
  std::string opset = {};
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
  /// What stood in brackets between the inputs and the body, as written
  /// (FlexibleShapeInformation of compiled models), without the brackets.
  std::string attributes;
  Location location;
};

struct Program {
  std::string version = "1.3";
  std::vector<std::pair<std::string, std::string>> build_info;
  std::vector<Function> functions;
  /// Attributes beside buildInfo, as written.
  std::string attributes;
  /// Forms of scalars that the text used: fp16(1), tensor<fp16, []>(1).
  bool shorthand_scalars = false;
  bool verbose_scalars = false;
};

/// ios18: program(1.3), shorthand scalars. ios16: program(1.0), verbose
/// scalars, the form that M1 and M2 accept.
enum class Dialect { ios16, ios18 };
const char* to_string(Dialect dialect);
/// The dialect of that name; std::invalid_argument with the valid ones
/// otherwise.
Dialect dialect_named(std::string_view name);
/// The dialect of a program's version: ios18 from 1.2 on.
Dialect dialect_of(const Program& program);

/// 18 for "ios18" and for "CoreML8", which is the same set; 0 for other names.
int opset_number(std::string_view opset);

/// A malformed program: what() is one sentence with line, column and a caret.
class ParseError : public std::invalid_argument {
 public:
  ParseError(const std::string& what, Location location)
      : std::invalid_argument(what), location(location) {
  }
  const Location location;
};

/// Finds an argument or an attribute of an operation; nullptr without it.
const Argument* find_input(const Operation& op, std::string_view name);
const Constant* find_attribute(const Operation& op, std::string_view name);
/// The [name = ...] of an operation, or "" without it.
std::string_view name_of(const Operation& op);

/// A scalar of an integer or boolean constant, a string constant, or the
/// elements of an integer constant; nothing if the constant is of another kind.
std::optional<int64_t> as_integer(const Constant& constant);
std::optional<std::string_view> as_string(const Constant& constant);
std::optional<std::vector<int64_t>> as_integers(const Constant& constant);

/// Equal but for locations, the order of arguments and the dialect: version,
/// opsets and forms of scalars. NaNs are compared by their bits.
bool same_meaning(const Program& a, const Program& b);

/// Both dialects, mixed as they are found: see docs/mil.md. Throws ParseError.
Program parse(std::string_view text);
/// Text of a program. In another dialect than its own, the version changes, and
/// each opset that does not belong to the dialect; std::invalid_argument for
/// what ios16 does not have.
std::string write(const Program& program, Dialect dialect);

}  // namespace mlx_ane::mil
