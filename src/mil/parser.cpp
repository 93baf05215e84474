// Parses MIL text of both dialects, mixed as they are found.
#include <iterator>

#include "mil/value_reader.h"

namespace mlx_ane::mil {

namespace {

class Parser : private ValueReader {
 public:
  using ValueReader::ValueReader;
  Program program();

 private:
  bool build_info(Program& program);
  std::string dictionary_string();
  Function function();
  std::vector<Value> parameters();
  std::vector<std::string> results();
  Operation operation();
  void outputs(Operation& op);
  void arguments(Operation& op);
  void attributes(Operation& op);

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
    bool only = in_.peek_name() == "buildInfo" && build_info(program);
    program.attributes = only ? "" : in_.until_closing('[', ']');
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

/// buildInfo = dict<string, string>({{"key", "value"}, ...}); true if the
/// attributes end behind it.
bool Parser::build_info(Program& program) {
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
  if (in_.accept(',')) {
    return false;
  }
  in_.expect(']', "after buildInfo");
  return true;
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
  // write_state(...) gives nothing; its name stands where a type would.
  auto first = in_.peek_name();
  char after = first.empty() ? '(' : in_.peek_after(first);
  bool is_type = after == '<' ? at_type() : after != '(';
  if (first.empty() || is_type) {
    outputs(op);
    in_.expect('=', "after the outputs of the operation");
  }
  op.op = in_.name("an operation");
  if (in_.accept('<')) {
    op.opset = in_.name("an opset such as ios17");
    in_.expect('>', "after the opset of the operation");
  }
  if (op.op == "const" && op.outputs.empty()) {
    in_.fail("const needs an output");
  }
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

}  // namespace

Program parse(std::string_view text) {
  return Parser(text).program();
}

}  // namespace mlx_ane::mil
