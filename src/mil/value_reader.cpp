// Types, references, constants and tuples of MIL text.
#include "mil/value_reader.h"

#include <algorithm>
#include <optional>

namespace mlx_ane::mil {

namespace {

/// What a literal without a type, such as `false` or `[1, 2]`, is read as.
enum class Bare { boolean, integer, real, string };

}  // namespace

void ValueReader::enter() {
  if (++depth_ > max_depth) {
    in_.fail("nesting is deeper than 32 levels; flatten the expression");
  }
}

/// A type comes next: tensor<, tensor_buffer<, state<, or the name of an
/// element type and '('.
bool ValueReader::at_type() {
  auto name = in_.peek_name();
  if (name.empty()) {
    return false;
  }
  char after = in_.peek_after(name);
  return after == '<'
             ? name == "tensor" || name == "state" || name == "tensor_buffer"
             : after == '(' && dtype_named(name);
}

/// `hint`: the type that a literal without one gets.
Argument ValueReader::argument(const Type* hint) {
  char c = in_.peek();
  if (c == '(') {
    return {tuple(), {}};
  }
  if (c == '"' || c == '[' || c == '-' || c == '+' || c == '.' ||
      (c >= '0' && c <= '9')) {
    return {bare_literal(hint), {}};
  }
  auto name = in_.peek_name();
  if (name.empty()) {
    in_.fail_expected("a value");
  }
  if (at_type()) {
    return {constant(), {}};
  }
  char after = in_.peek_after(name);
  if (name == "const" && after == '(') {
    return {nested_const(hint), {}};
  }
  if (name == "true" || name == "false") {
    return {bare_literal(hint), {}};
  }
  if (after == '<' || after == '(') {
    in_.fail(
        "values of the form " + std::string(name.substr(0, 40)) + after +
        "... are not supported; use a tensor or a scalar type");
  }
  in_.skip_name(name);
  return {Reference{std::string(name)}, {}};
}

std::vector<Argument> ValueReader::tuple() {
  enter();
  std::vector<Argument> items;
  in_.expect('(', "before the tuple");
  if (!in_.accept(')')) {
    do {
      if (items.size() == max_list) {
        in_.fail("a tuple has at most 65536 values");
      }
      auto location = in_.location();
      items.push_back(argument(nullptr));
      items.back().location = location;
    } while (in_.accept(','));
    in_.expect(')', "after the tuple");
  }
  --depth_;
  return items;
}

/// const(literal), const(val = literal) or const()[val = literal].
Constant ValueReader::nested_const(const Type* hint) {
  enter();
  in_.skip_name("const");
  in_.expect('(', "after const");
  std::optional<Constant> value;
  auto read = [&] {
    auto name = in_.peek_name();
    bool named = !name.empty() && in_.peek_after(name) == '=';
    if (named) {
      in_.skip_name(name);
      in_.accept('=');
    }
    auto item = argument(hint);
    auto constant = std::get_if<Constant>(&item.value);
    if (!constant) {
      in_.fail("const needs a literal value");
    }
    if (!named || name == "val") {
      value = std::move(*constant);
    }
  };
  char close = ')';
  do {
    if (!in_.accept(close)) {
      do {
        read();
      } while (in_.accept(','));
      in_.expect(close, "after the value of const");
    }
    close = ']';
  } while (in_.accept('['));
  if (!value) {
    in_.fail("const has no value; write const(val = ...)");
  }
  --depth_;
  return std::move(*value);
}

/// A literal without a type: false, 1, 1.5, "text" or a flat list of them.
Constant ValueReader::bare_literal(const Type* hint) {
  if (hint) {
    Constant constant{*hint, {}};
    elements(constant);
    return constant;
  }
  bool list = in_.peek() == '[';
  const char* p = in_.position();
  const char* stop = list ? std::find(p, in_.end(), ']') : in_.end();
  p += list;
  while (p < stop && (*p == ' ' || *p == '\n')) {
    ++p;
  }
  int64_t count = p < stop;
  char first = count ? *p : '0';
  Bare kind = first == '"'                   ? Bare::string
              : first == 't' || first == 'f' ? Bare::boolean
                                             : Bare::integer;
  for (; kind != Bare::string && p < stop; ++p) {
    if (!list && (*p == ',' || *p == ')' || *p == ']')) {
      break;
    }
    bool fraction = *p == '.' || *p == 'e' || *p == 'p' || *p == 'n';
    kind = fraction && kind == Bare::integer ? Bare::real : kind;
    count += list && *p == ',';
  }
  if (list && kind == Bare::string) {
    in_.fail("a list of strings needs a type: tensor<string, [n]>([...])");
  }
  static constexpr DType types[] = {
      DType::boolean, DType::int32, DType::fp32, DType::string};
  Constant constant{{types[static_cast<int>(kind)], {}, false}, {}};
  if (list) {
    constant.type.shape = {count};
  }
  elements(constant);
  return constant;
}

Constant ValueReader::constant() {
  auto type = this->type();
  return constant_of(std::move(type));
}

Constant ValueReader::constant_of(Type type) {
  Constant constant{std::move(type), {}};
  in_.expect('(', "before the value");
  if (in_.peek_name() == "BLOBFILE") {
    constant.data = blob();
  } else {
    elements(constant);
  }
  in_.expect(')', "after the value");
  return constant;
}

/// BLOBFILE(path = string("@model_path/..."), offset = uint64(64))
Blob ValueReader::blob() {
  in_.skip_name("BLOBFILE");
  in_.expect('(', "after BLOBFILE");
  Blob blob;
  bool has_path = false;
  do {
    auto key = in_.name("path or offset");
    in_.expect('=', "after path or offset");
    if (key == "path" || key == "@path") {
      blob.path = blob_path();
      has_path = true;
    } else if (key == "offset" || key == "@offset") {
      blob.offset = blob_offset();
    } else {
      in_.fail_at(key.data(), "BLOBFILE has path and offset only");
    }
  } while (in_.accept(','));
  if (!has_path) {
    in_.fail("BLOBFILE has no path");
  }
  in_.expect(')', "after the operands of BLOBFILE");
  return blob;
}

std::string ValueReader::blob_path() {
  in_.peek();
  const char* start = in_.position();
  auto value = argument(nullptr);
  auto constant = std::get_if<Constant>(&value.value);
  auto text = constant ? as_string(*constant) : std::nullopt;
  if (!text || text->empty()) {
    in_.fail_at(start, "the path of BLOBFILE must be a string");
  }
  std::string path(*text);
  bool climbs = path.front() == '/';
  for (size_t i = 0; i < path.size();) {
    size_t next = std::min(path.find_first_of("/\\", i), path.size());
    climbs |= path.substr(i, next - i) == "..";
    i = next + 1;
  }
  if (climbs || path.find('\0') != std::string::npos) {
    in_.fail_at(
        start,
        "the path of BLOBFILE leaves the model's folder; start it with "
        "@model_path/ and do not use '..'");
  }
  return path;
}

uint64_t ValueReader::blob_offset() {
  const Type hint{DType::uint64, {}, false};
  bool negative = in_.peek() == '-';
  const char* start = in_.position();
  auto value = negative ? Argument{} : argument(&hint);
  auto constant = std::get_if<Constant>(&value.value);
  auto offset = constant ? as_integer(*constant) : std::nullopt;
  if (!offset || *offset < 0) {
    in_.fail_at(
        start,
        "the offset of BLOBFILE must be a non-negative integer below 2^63");
  }
  return static_cast<uint64_t>(*offset);
}

Type ValueReader::type() {
  in_.peek();
  const char* start = in_.position();
  auto name = in_.name("a type");
  if (name == "tensor") {
    return tensor_type();
  }
  if (name == "tensor_buffer") {
    return buffer_type();
  }
  if (name == "state") {
    in_.expect('<', "after state");
    if (in_.name("tensor") != "tensor") {
      in_.fail("a state must hold a tensor");
    }
    auto type = tensor_type();
    type.state = true;
    in_.expect('>', "after the type of the state");
    return type;
  }
  if (auto dtype = dtype_named(name)) {
    shorthand_scalars_ = true;
    return {*dtype, {}, false};
  }
  in_.fail_at(
      start,
      "expected a type, got '" + std::string(name.substr(0, 40)) +
          "'; types are tensor<...>, tensor_buffer<...>, state<tensor<...>> "
          "and "
          "scalars such as fp16, int32, bool and string");
}

DType ValueReader::element_type() {
  in_.peek();
  const char* start = in_.position();
  auto name = in_.name("an element type");
  auto dtype = dtype_named(name);
  if (!dtype) {
    in_.fail_at(
        start,
        "'" + std::string(name.substr(0, 40)) + "' is not an element type");
  }
  return *dtype;
}

Type ValueReader::tensor_type() {
  in_.expect('<', "after tensor");
  Type type{element_type(), {}, false};
  in_.expect(',', "after the element type");
  type.shape = shape();
  verbose_scalars_ |= type.shape.empty();
  in_.expect('>', "after the shape");
  return type;
}

/// tensor_buffer<fp16, shape=[...], strides=[...], interleave_factors=[...]>
Type ValueReader::buffer_type() {
  in_.expect('<', "after tensor_buffer");
  Type type{element_type(), {}, false};
  while (in_.accept(',')) {
    auto key = in_.name("shape, strides or interleave_factors");
    in_.expect('=', "after the name");
    auto list = shape();
    if (key == "shape") {
      type.shape = std::move(list);
    } else if (key == "strides") {
      type.strides = std::move(list);
    } else if (key == "interleave_factors") {
      type.interleave_factors = std::move(list);
    } else {
      in_.fail_at(
          key.data(),
          "a tensor_buffer has shape, strides and interleave_factors only");
    }
  }
  auto rank = type.shape.size();
  if (rank == 0 || type.strides.size() != rank ||
      type.interleave_factors.size() != rank) {
    in_.fail(
        "a tensor_buffer needs shape, strides and interleave_factors, with one "
        "number an axis each");
  }
  auto positive = [](int64_t number) { return number > 0; };
  if (!std::all_of(type.strides.begin(), type.strides.end(), positive) ||
      !std::all_of(
          type.interleave_factors.begin(),
          type.interleave_factors.end(),
          positive)) {
    in_.fail("strides and interleave_factors must be positive numbers");
  }
  in_.expect('>', "after the layout");
  return type;
}

std::vector<int64_t> ValueReader::shape() {
  in_.expect('[', "before the dimensions");
  const char* start = in_.position();
  int64_t dims[max_rank];
  size_t rank = 0;
  int64_t count = 1;
  if (!in_.accept(']')) {
    do {
      if (rank == max_rank) {
        in_.fail("a tensor has at most 32 dimensions");
      }
      int64_t dim = in_.accept('?') ? unknown_dim : in_.integer("a dimension");
      dims[rank++] = dim;
      if (dim > 0 && count > (INT64_MAX / 16) / dim) {
        in_.fail_at(start, "the tensor is too large; its size overflows");
      }
      count *= dim > 0 ? dim : 1;
    } while (in_.accept(','));
    in_.expect(']', "after the dimensions");
  }
  return {dims, dims + rank};
}

}  // namespace mlx_ane::mil
