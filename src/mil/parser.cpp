// Parses MIL text of both dialects, mixed as they are found.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>

#include "mil/cursor.h"
#include "mil/number.h"

namespace mlx_ane::mil {

namespace {

/// Bounds far above any program that a device takes; they keep hostile text
/// from costing more memory than a small multiple of its size.
constexpr int max_depth = 32;
constexpr size_t max_rank = 32;
constexpr size_t max_list = 65536;

/// What a literal without a type, such as `false` or `[1, 2]`, is read as.
enum class Bare { boolean, integer, real, string };

class Parser {
 public:
  explicit Parser(std::string_view text) : in_(text) {
  }
  Program program();

 private:
  void build_info(Program& program);
  std::string dictionary_string();
  Function function();
  std::vector<Value> parameters();
  std::vector<std::string> results();
  Operation operation();
  void outputs(Operation& op);
  void arguments(Operation& op);
  void attributes(Operation& op);
  Argument argument(const Type* hint);
  std::vector<Argument> tuple();
  Constant nested_const(const Type* hint);
  Constant bare_literal(const Type* hint);
  Constant constant();
  Constant constant_of(Type type);
  Blob blob();
  std::string blob_path();
  uint64_t blob_offset();
  Type type();
  Type tensor_type();
  std::vector<int64_t> shape();
  bool at_type();
  void elements(Constant& constant);
  void numbers(Constant& constant, int rank, int64_t count);
  void strings(Constant& constant);
  void number_list(
      const Type& type,
      std::vector<uint8_t>& bytes,
      int64_t& done,
      int level,
      int levels);
  void element(const Type& type, uint8_t* out);
  int brackets();
  void enter();

  Cursor in_;
  int depth_ = 0;
  bool shorthand_scalars_ = false;
  bool verbose_scalars_ = false;
  /// Reused, so that every operation keeps exactly what it needs.
  std::vector<std::pair<std::string, Argument>> scratch_inputs_;
  std::vector<std::pair<std::string, Constant>> scratch_attributes_;
};

template <typename T>
std::vector<T> take(std::vector<T>& scratch) {
  std::vector<T> taken(
      std::make_move_iterator(scratch.begin()),
      std::make_move_iterator(scratch.end()));
  scratch.clear();
  return taken;
}

void Parser::enter() {
  if (++depth_ > max_depth) {
    in_.fail("nesting is deeper than 32 levels; flatten the expression");
  }
}

Program Parser::program() {
  Program program;
  if (in_.peek_name() != "program") {
    in_.fail_expected("program(version) at the start");
  }
  in_.skip_name("program");
  in_.expect('(', "after program");
  auto version = in_.until_closing('(', ')');
  program.version.clear();
  // Some writers put a blank or a comma between the two numbers.
  for (char c : version) {
    bool digit = c >= '0' && c <= '9';
    if (digit || c == '.' || c == ',') {
      program.version += digit ? c : '.';
    } else if (c != ' ') {
      in_.fail_at(version.data(), "expected a version such as 1.3");
    }
  }
  if (program.version.empty() || program.version.size() > 16) {
    in_.fail_at(version.data(), "expected a version such as 1.3");
  }
  if (in_.accept('[')) {
    build_info(program);
  }
  in_.expect('{', "before the functions");
  while (!in_.accept('}')) {
    if (in_.peek_name() != "func") {
      in_.fail_expected("func or '}'");
    }
    program.functions.push_back(function());
  }
  if (!in_.at_end()) {
    in_.fail_expected("the end of the text after '}'");
  }
  program.shorthand_scalars = shorthand_scalars_;
  program.verbose_scalars = verbose_scalars_;
  return program;
}

/// buildInfo = dict<string, string>({{"key", "value"}, ...})]
void Parser::build_info(Program& program) {
  if (in_.peek_name() != "buildInfo") {
    in_.fail_expected("buildInfo");
  }
  in_.skip_name("buildInfo");
  in_.expect('=', "after buildInfo");
  if (in_.name("dict") != "dict") {
    in_.fail("buildInfo must be a dict<string, string>");
  }
  in_.expect('<', "after dict");
  for (const char* after : {"after the key type", "after the value type"}) {
    if (type() != Type{DType::string, {}, false}) {
      in_.fail("buildInfo must be a dict<string, string>");
    }
    in_.expect(after[10] == 'k' ? ',' : '>', after);
  }
  in_.expect('(', "after the type of buildInfo");
  in_.expect('{', "before the entries of buildInfo");
  while (!in_.accept('}')) {
    in_.expect('{', "before a key of buildInfo");
    auto key = dictionary_string();
    in_.expect(',', "after a key of buildInfo");
    auto value = dictionary_string();
    in_.expect('}', "after a value of buildInfo");
    program.build_info.emplace_back(std::move(key), std::move(value));
    if (!in_.accept(',') && in_.peek() != '}') {
      in_.fail_expected("',' or '}' after an entry of buildInfo");
    }
  }
  in_.expect(')', "after buildInfo");
  in_.expect(']', "after buildInfo");
}

std::string Parser::dictionary_string() {
  if (in_.peek() == '"') {
    return in_.string("a string");
  }
  auto value = constant();
  auto text = as_string(value);
  if (!text) {
    in_.fail("buildInfo holds strings only");
  }
  return std::string(*text);
}

Function Parser::function() {
  Function function;
  in_.skip_name("func");
  function.location = in_.location();
  function.name = in_.name("a function name");
  in_.expect('<', "after the function name");
  function.opset = in_.name("an opset such as ios18");
  in_.expect('>', "after the opset");
  function.inputs = parameters();
  if (in_.accept('[')) {
    function.attributes = in_.until_closing('[', ']');
  }
  in_.expect('{', "before the body of the function");
  // One allocation instead of copies; an operation takes 16 characters or more.
  auto rest = in_.end() - in_.position();
  auto statements = std::count(in_.position(), in_.end(), ';');
  function.operations.reserve(std::min(statements, rest / 16 + 1));
  while (!in_.accept('}')) {
    function.operations.push_back(operation());
  }
  in_.expect('-', "and '>' before the outputs of the function");
  in_.expect('>', "before the outputs of the function");
  function.outputs = results();
  in_.accept(';');
  return function;
}

std::vector<Value> Parser::parameters() {
  std::vector<Value> values;
  in_.expect('(', "before the inputs of the function");
  if (in_.accept(')')) {
    return values;
  }
  do {
    auto type = this->type();
    values.push_back({std::string(in_.name("an input name")), std::move(type)});
  } while (in_.accept(','));
  in_.expect(')', "after the inputs of the function");
  return values;
}

std::vector<std::string> Parser::results() {
  std::vector<std::string> names;
  in_.expect('(', "before the outputs of the function");
  if (in_.accept(')')) {
    return names;
  }
  do {
    if (names.size() == max_list) {
      in_.fail("a function has at most 65536 outputs");
    }
    names.emplace_back(in_.name("an output name"));
  } while (in_.accept(','));
  in_.expect(')', "after the outputs of the function");
  return names;
}

Operation Parser::operation() {
  Operation op;
  op.location = in_.location();
  outputs(op);
  in_.expect('=', "after the outputs of the operation");
  op.op = in_.name("an operation");
  in_.expect('(', "after the operation");
  arguments(op);
  if (in_.accept('[')) {
    attributes(op);
  }
  op.inputs = take(scratch_inputs_);
  op.attributes = take(scratch_attributes_);
  in_.expect(';', "after the operation");
  return op;
}

/// "type name, type name" with or without parentheses.
void Parser::outputs(Operation& op) {
  bool parentheses = in_.accept('(');
  do {
    if (op.outputs.size() == max_list) {
      in_.fail("an operation has at most 65536 outputs");
    }
    auto type = this->type();
    auto name = in_.name("an output name");
    op.outputs.push_back({std::string(name), std::move(type)});
  } while (in_.accept(','));
  if (parentheses) {
    in_.expect(')', "after the outputs of the operation");
  }
}

void Parser::arguments(Operation& op) {
  if (in_.accept(')')) {
    return;
  }
  bool is_const = op.op == "const";
  if (is_const && (at_type() || in_.peek() == '"')) {
    scratch_attributes_.emplace_back(
        "val", std::get<Constant>(argument(&op.outputs[0].type).value));
    in_.expect(')', "after the value of const");
    return;
  }
  do {
    if (scratch_inputs_.size() == max_list) {
      in_.fail("an operation has at most 65536 arguments");
    }
    auto key = in_.name("an argument name");
    in_.expect('=', "after the argument name");
    auto location = in_.location();
    bool is_val = is_const && key == "val";
    auto value = argument(is_val ? &op.outputs[0].type : nullptr);
    if (is_const) {
      auto constant = std::get_if<Constant>(&value.value);
      if (!constant) {
        in_.fail("const needs a literal value");
      }
      scratch_attributes_.emplace_back(key, std::move(*constant));
    } else {
      value.location = location;
      scratch_inputs_.emplace_back(key, std::move(value));
    }
  } while (in_.accept(','));
  in_.expect(')', "after the arguments");
}

void Parser::attributes(Operation& op) {
  if (in_.accept(']')) {
    return;
  }
  bool is_const = op.op == "const";
  do {
    if (scratch_attributes_.size() == max_list) {
      in_.fail("an operation has at most 65536 attributes");
    }
    auto key = in_.name("an attribute name");
    in_.expect('=', "after the attribute name");
    auto location = in_.location();
    bool is_val = is_const && key == "val";
    auto value = argument(is_val ? &op.outputs[0].type : nullptr);
    value.location = location;
    if (auto constant = std::get_if<Constant>(&value.value)) {
      scratch_attributes_.emplace_back(key, std::move(*constant));
    } else if (is_const) {
      in_.fail("const needs a literal value");
    } else {
      scratch_inputs_.emplace_back(key, std::move(value));
    }
  } while (in_.accept(','));
  in_.expect(']', "after the attributes");
}

/// A type comes next: tensor<, state<, or the name of an element type and '('.
bool Parser::at_type() {
  auto name = in_.peek_name();
  if (name.empty()) {
    return false;
  }
  char after = in_.peek_after(name);
  return after == '<' ? name == "tensor" || name == "state"
                      : after == '(' && dtype_named(name);
}

/// `hint`: the type that a literal without one gets.
Argument Parser::argument(const Type* hint) {
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

std::vector<Argument> Parser::tuple() {
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
Constant Parser::nested_const(const Type* hint) {
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
Constant Parser::bare_literal(const Type* hint) {
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

Constant Parser::constant() {
  auto type = this->type();
  return constant_of(std::move(type));
}

Constant Parser::constant_of(Type type) {
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
Blob Parser::blob() {
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

std::string Parser::blob_path() {
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

uint64_t Parser::blob_offset() {
  in_.peek();
  const char* start = in_.position();
  auto value = argument(nullptr);
  auto constant = std::get_if<Constant>(&value.value);
  auto offset = constant ? as_integer(*constant) : std::nullopt;
  if (!offset || *offset < 0) {
    in_.fail_at(
        start,
        "the offset of BLOBFILE must be a non-negative integer below 2^63");
  }
  return static_cast<uint64_t>(*offset);
}

Type Parser::type() {
  in_.peek();
  const char* start = in_.position();
  auto name = in_.name("a type");
  if (name == "tensor") {
    return tensor_type();
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
          "'; types are tensor<...>, state<tensor<...>> and scalars such as "
          "fp16, int32, bool and string");
}

Type Parser::tensor_type() {
  in_.expect('<', "after tensor");
  in_.peek();
  const char* start = in_.position();
  auto name = in_.name("an element type");
  auto dtype = dtype_named(name);
  if (!dtype) {
    in_.fail_at(
        start, "'" + std::string(name.substr(0, 40)) + "' is no element type");
  }
  Type type{*dtype, {}, false};
  in_.expect(',', "after the element type");
  type.shape = shape();
  verbose_scalars_ |= type.shape.empty();
  in_.expect('>', "after the shape");
  return type;
}

std::vector<int64_t> Parser::shape() {
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

void Parser::elements(Constant& constant) {
  in_.peek();
  const char* start = in_.position();
  auto& type = constant.type;
  if (std::count(type.shape.begin(), type.shape.end(), unknown_dim)) {
    in_.fail("a constant needs known dimensions");
  }
  int64_t count = element_count(type);
  // Two characters an element at least: checked before memory is taken.
  if (count > (in_.end() - in_.position()) / 2 + 1) {
    in_.fail_at(
        start,
        "the literal has fewer elements than its shape, which has " +
            std::to_string(count));
  }
  if (type.dtype == DType::string) {
    strings(constant);
  } else {
    numbers(constant, static_cast<int>(type.shape.size()), count);
  }
}

/// Counts the brackets that open a literal without reading them.
int Parser::brackets() {
  Cursor ahead = in_;
  int count = 0;
  while (count <= max_depth && ahead.accept('[')) {
    ++count;
  }
  return count;
}

void Parser::numbers(Constant& constant, int rank, int64_t count) {
  in_.peek();
  const char* start = in_.position();
  int levels = brackets();
  if (levels != rank && levels > 1) {
    in_.fail(
        "the literal is nested " + std::to_string(levels) +
        " deep, but its shape has " + std::to_string(rank) + " dimensions");
  }
  if (levels == 0 && count != 1) {
    in_.fail_expected("'[' before " + std::to_string(count) + " elements");
  }
  std::vector<uint8_t> bytes(count * element_bytes(constant.type.dtype));
  int64_t done = 0;
  if (levels == 0) {
    element(constant.type, bytes.data());
    done = 1;
  } else {
    number_list(constant.type, bytes, done, 0, levels);
  }
  if (done != count) {
    in_.fail_at(
        start,
        "the literal has " + std::to_string(done) +
            " elements, but its shape has " + std::to_string(count));
  }
  constant.data = std::move(bytes);
}

/// One bracket level: lists at all but the innermost, where elements stand. A
/// single level may hold all elements of any shape.
void Parser::number_list(
    const Type& type,
    std::vector<uint8_t>& bytes,
    int64_t& done,
    int level,
    int levels) {
  size_t size = element_bytes(type.dtype);
  int64_t count = static_cast<int64_t>(bytes.size() / size);
  int64_t expected = levels == 1 ? count : type.shape[level];
  in_.expect('[', "before the elements");
  int64_t items = 0;
  if (!in_.accept(']')) {
    do {
      if (items == expected || done == count) {
        in_.fail(
            "the literal has more than " + std::to_string(expected) +
            " elements here");
      }
      if (level + 1 < levels) {
        number_list(type, bytes, done, level + 1, levels);
        ++items;
        continue;
      }
      in_.peek();
      NumberError error = nullptr;
      auto read = read_numbers(
          in_.position(),
          in_.end(),
          type.dtype,
          bytes.data() + done * size,
          std::min(expected - items, count - done),
          error);
      if (error) {
        in_.fail(error);
      }
      if (read == 0) {
        element(type, bytes.data() + done * size);
        read = 1;
      }
      done += read;
      items += read;
    } while (in_.accept(','));
    in_.expect(']', "after the elements");
  }
  if (items != expected) {
    in_.fail_at(
        in_.position() - 1,
        "the literal has " + std::to_string(items) +
            " elements here, but its shape has " + std::to_string(expected));
  }
}

/// A number, or one wrapped in its type: fp16(0.5).
void Parser::element(const Type& type, uint8_t* out) {
  auto name = in_.peek_name();
  if (!name.empty() && in_.peek_after(name) == '(' && dtype_named(name)) {
    if (dtype_named(name) != type.dtype) {
      in_.fail(
          std::string("an element of type ") + to_string(*dtype_named(name)) +
          " stands in a literal of type " + to_string(type.dtype));
    }
    in_.skip_name(name);
    in_.expect('(', "after the type");
    in_.peek();
    if (auto error = read_number(in_.position(), in_.end(), type.dtype, out)) {
      in_.fail(error);
    }
    in_.expect(')', "after the element");
    return;
  }
  if (auto error = read_number(in_.position(), in_.end(), type.dtype, out)) {
    in_.fail(error);
  }
}

void Parser::strings(Constant& constant) {
  std::vector<std::string> values;
  in_.peek();
  const char* start = in_.position();
  if (in_.accept('[')) {
    if (!in_.accept(']')) {
      do {
        values.push_back(in_.string("a string"));
      } while (in_.accept(','));
      in_.expect(']', "after the strings");
    }
  } else {
    values.push_back(in_.string("a string"));
  }
  if (static_cast<int64_t>(values.size()) != element_count(constant.type)) {
    in_.fail_at(
        start,
        "the literal has " + std::to_string(values.size()) +
            " strings, but its shape has " +
            std::to_string(element_count(constant.type)));
  }
  constant.data = std::move(values);
}

}  // namespace

Program parse(std::string_view text) {
  return Parser(text).program();
}

}  // namespace mlx_ane::mil
