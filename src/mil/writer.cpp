// Writes MIL text in either dialect.
#include <algorithm>
#include <charconv>

#include "mil/number.h"
#include "mil/ops.h"

namespace mlx_ane::mil {

namespace {

class Writer {
 public:
  explicit Writer(Dialect dialect) : dialect_(dialect) {
  }
  std::string program(const Program& program);

 private:
  void build_info(const Program& program);
  void function(const Function& function);
  void operation(const Operation& op);
  void type(const Type& type);
  void dimensions(const std::vector<int64_t>& dims);
  void values(const std::vector<Value>& values);
  void argument(const Argument& argument);
  void constant(const Constant& constant);
  void scalar_string(std::string_view value);
  void elements(const Constant& constant, size_t axis, size_t& next);
  void quoted(std::string_view value);
  std::string opset(const std::string& written) const;
  int opset_needed(const Function& function) const;

  bool verbose() const {
    return dialect_ == Dialect::ios16;
  }

  Dialect dialect_;
  bool own_ = true;
  std::string text_;
};

std::string Writer::program(const Program& program) {
  own_ = dialect_of(program) == dialect_;
  text_ += "program(";
  text_ += own_ ? program.version : verbose() ? "1.0" : "1.3";
  text_ += ")\n";
  build_info(program);
  text_ += "{\n";
  for (auto& function : program.functions) {
    this->function(function);
  }
  text_ += "}\n";
  return std::move(text_);
}

void Writer::build_info(const Program& program) {
  text_ += verbose()
               ? "[buildInfo = dict<tensor<string, []>, tensor<string, []>>({"
               : "[buildInfo = dict<string, string>({";
  const char* separator = "";
  for (auto& [key, value] : program.build_info) {
    text_ += separator;
    text_ += '{';
    quoted(key);
    text_ += ", ";
    quoted(value);
    text_ += '}';
    separator = ", ";
  }
  text_ += "})";
  if (!program.attributes.empty()) {
    text_ += ", " + program.attributes;
  }
  text_ += "]\n";
}

/// In another dialect than its own, a function keeps an opset that the dialect
/// allows (ios17 belongs to the verbose one).
std::string Writer::opset(const std::string& written) const {
  if (own_) {
    return written;
  }
  auto number = opset_number(written);
  bool newer = number >= 18;
  bool kept = number > 0 && newer != verbose();
  return kept ? written : to_string(dialect_);
}

/// The first opset that has everything in a function that another dialect
/// wrote; std::invalid_argument if ios16 has it not.
int Writer::opset_needed(const Function& function) const {
  auto refuse = [&](const std::string& what) {
    throw std::invalid_argument(
        "[mlx_ane.mil.text] function " + function.name + " has " + what +
        ", which ios16 does not have; write it as ios18.");
  };
  for (auto& input : function.inputs) {
    if (input.type.state) {
      refuse("the state " + input.name);
    }
  }
  int needed = 16;
  for (auto& op : function.operations) {
    auto info = find_op(op.op);
    needed = std::max(needed, info ? info->opset : 0);
    if (needed >= 18) {
      refuse(
          "the operation " + op.op +
          (op.location.line ? " in line " + std::to_string(op.location.line)
                            : ""));
    }
  }
  return needed;
}

void Writer::function(const Function& function) {
  auto opset = this->opset(function.opset);
  if (!own_ && verbose()) {
    auto needed = opset_needed(function);
    opset =
        opset_number(opset) < needed ? "ios" + std::to_string(needed) : opset;
  }
  text_ += "    func " + function.name + '<' + opset + ">(";
  values(function.inputs);
  text_ += ')';
  if (!function.attributes.empty()) {
    text_ += " [" + function.attributes + ']';
  }
  text_ += " {\n";
  for (auto& op : function.operations) {
    operation(op);
  }
  text_ += "    } -> (";
  const char* separator = "";
  for (auto& name : function.outputs) {
    text_ += separator + name;
    separator = ", ";
  }
  text_ += ");\n";
}

void Writer::values(const std::vector<Value>& values) {
  const char* separator = "";
  for (auto& value : values) {
    text_ += separator;
    type(value.type);
    text_ += ' ';
    text_ += value.name;
    separator = ", ";
  }
}

void Writer::operation(const Operation& op) {
  text_ += "        ";
  values(op.outputs);
  text_ += op.outputs.empty() ? "" : " = ";
  text_ += op.op;
  if (!op.opset.empty()) {
    text_ += '<' + op.opset + '>';
  }
  text_ += '(';
  const char* separator = "";
  for (auto& [name, value] : op.inputs) {
    text_ += separator + name + " = ";
    argument(value);
    separator = ", ";
  }
  text_ += ')';
  separator = "[";
  for (auto& [name, value] : op.attributes) {
    text_ += separator + name + " = ";
    constant(value);
    separator = ", ";
  }
  text_ += op.attributes.empty() ? ";\n" : "];\n";
}

void Writer::type(const Type& type) {
  if (type.is_buffer()) {
    text_ += "tensor_buffer<";
    text_ += to_string(type.dtype);
    text_ += ", shape=";
    dimensions(type.shape);
    text_ += ", strides=";
    dimensions(type.strides);
    text_ += ", interleave_factors=";
    dimensions(type.interleave_factors);
    text_ += '>';
    return;
  }
  if (type.shape.empty() && !verbose() && !type.state) {
    text_ += to_string(type.dtype);
    return;
  }
  text_ += type.state ? "state<tensor<" : "tensor<";
  text_ += to_string(type.dtype);
  text_ += ", ";
  dimensions(type.shape);
  text_ += type.state ? ">>" : ">";
}

void Writer::dimensions(const std::vector<int64_t>& dims) {
  text_ += '[';
  const char* separator = "";
  for (auto dim : dims) {
    text_ += separator;
    text_ += dim == unknown_dim ? "?" : std::to_string(dim);
    separator = ", ";
  }
  text_ += ']';
}

void Writer::argument(const Argument& argument) {
  if (auto reference = std::get_if<Reference>(&argument.value)) {
    text_ += reference->name;
  } else if (auto value = std::get_if<Constant>(&argument.value)) {
    constant(*value);
  } else {
    text_ += '(';
    const char* separator = "";
    for (auto& item : std::get<std::vector<Argument>>(argument.value)) {
      text_ += separator;
      this->argument(item);
      separator = ", ";
    }
    text_ += ')';
  }
}

void Writer::constant(const Constant& constant) {
  type(constant.type);
  text_ += '(';
  if (auto blob = std::get_if<Blob>(&constant.data)) {
    text_ += "BLOBFILE(path = ";
    scalar_string(blob->path);
    text_ += ", offset = ";
    type({DType::uint64, {}, false});
    text_ += '(' + std::to_string(blob->offset) + "))";
  } else {
    size_t next = 0;
    elements(constant, 0, next);
  }
  text_ += ')';
}

void Writer::scalar_string(std::string_view value) {
  type({DType::string, {}, false});
  text_ += '(';
  quoted(value);
  text_ += ')';
}

void Writer::elements(const Constant& constant, size_t axis, size_t& next) {
  auto& shape = constant.type.shape;
  if (axis == 0 && element_count(constant.type) == 0) {
    // One bracket for any rank: [1000000000000, 0] must not be spelled out.
    text_ += "[]";
    return;
  }
  if (axis < shape.size()) {
    text_ += '[';
    bool nested = constant.type.dtype != DType::string;
    int64_t items = nested ? shape[axis] : element_count(constant.type);
    for (int64_t i = 0; i < items; ++i) {
      text_ += i ? ", " : "";
      elements(constant, nested ? axis + 1 : shape.size(), next);
    }
    text_ += ']';
    return;
  }
  if (auto strings = std::get_if<std::vector<std::string>>(&constant.data)) {
    quoted(strings->at(next++));
    return;
  }
  auto& bytes = std::get<std::vector<uint8_t>>(constant.data);
  size_t size = element_bytes(constant.type.dtype);
  if ((next + 1) * size > bytes.size()) {
    throw std::invalid_argument(
        "[mlx_ane.mil] a constant has " + std::to_string(bytes.size() / size) +
        " elements, need those of its shape.");
  }
  append_number(text_, constant.type.dtype, &bytes[next++ * size]);
}

void Writer::quoted(std::string_view value) {
  text_ += '"';
  for (char c : value) {
    switch (c) {
      case '\n':
        text_ += "\\n";
        break;
      case '\r':
        text_ += "\\r";
        break;
      case '\t':
        text_ += "\\t";
        break;
      case '"':
      case '\\':
        text_ += '\\';
        [[fallthrough]];
      default:
        text_ += c;
    }
  }
  text_ += '"';
}

}  // namespace

std::string write(const Program& program, Dialect dialect) {
  return Writer(dialect).program(program);
}

}  // namespace mlx_ane::mil
