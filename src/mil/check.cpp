// Walks a program and reports what the engine would refuse or get wrong.
#include "mil/check.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "mil/check_scope.h"
#include "mil/ops.h"
#include "mil/weights.h"

namespace mlx_ane::mil {

namespace {

int leading_number(std::string_view text) {
  int number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

bool has_blob(const Constant& constant) {
  return std::holds_alternative<Blob>(constant.data);
}

/// Calls visit(constant) for every constant of an operation.
template <typename Visit>
void each_constant(const Operation& op, const Visit& visit) {
  for (auto& attribute : op.attributes) {
    visit(attribute.second);
  }
  for (auto& input : op.inputs) {
    if (auto constant = std::get_if<Constant>(&input.second.value)) {
      visit(*constant);
    }
  }
}

void check_rank(
    Scope& scope,
    const Operation* op,
    std::string_view name,
    const Type& type) {
  if (static_cast<int64_t>(type.shape.size()) > Limits::max_rank) {
    auto text = std::string(name) + " is " + to_text(type);
    op ? scope.report("rank", *op, text) : scope.report("rank", text);
  }
}

/// Constants are no tensors of the engine: a table of constexpr_lut_to_dense
/// has more axes than the weight. Where others use them, they are operands.
bool is_constant(const Operation& op) {
  return op.op == "const" || op.op.starts_with("constexpr_");
}

void check_type(Scope& scope, const Operation* op, const Value& value) {
  auto& limits = scope.options.limits;
  auto& shape = value.type.shape;
  bool constant = op && is_constant(*op);
  if (!constant) {
    check_rank(scope, op, value.name, value.type);
  }
  auto report = [&](std::string_view rule, const std::string& what) {
    auto text = value.name + " is " + to_text(value.type) + what;
    op ? scope.report(rule, *op, text) : scope.report(rule, text);
  };
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    // The channel axis is the second of [N, C, H, W]; ANEForge names no other.
    bool channels = axis == 1 && shape.size() >= 4;
    auto largest = channels ? Limits::max_channels : limits.max_axis;
    if (shape[axis] == 0) {
      report("empty-axis", "");
    } else if (shape[axis] == unknown_dim) {
      report("unknown-axis", "");
    } else if (shape[axis] > largest && !constant) {
      report(
          channels ? "channels" : "axis",
          ", the largest is " + std::to_string(largest));
    } else {
      continue;
    }
    return;
  }
}

void check_port(Scope& scope, const Value& value, const char* kind) {
  auto dtype = value.type.dtype;
  auto text =
      std::string(kind) + " " + value.name + " is " + to_text(value.type);
  if (is_short_integer(dtype)) {
    scope.report("int8-io", text);
  } else if (dtype == DType::fp32) {
    scope.report("fp32-io", text);
  } else if (dtype != DType::fp16) {
    scope.report("io-dtype", text);
  }
  if (value.type.shape.empty() || element_count(value.type) == 0) {
    return;
  }
  auto& shape = value.type.shape;
  auto width = shape.back();
  bool strided = value.type.is_buffer() && shape.size() > 1;
  auto row = strided ? value.type.strides.end()[-2] : width;
  if (shape.size() == 4 && shape[1] > Limits::narrow_channels &&
      width < Limits::min_width) {
    scope.report("narrow-channels", text);
  } else if (width < Limits::min_width) {
    scope.report("width", text);
  } else if (row * bits(dtype) / 8 % Limits::row_alignment != 0) {
    scope.report("row-stride", text);
  }
}

/// Order of names and uniform sizes of the inputs or outputs.
void check_ports(
    Scope& scope, const std::vector<const Value*>& ports, const char* kind) {
  auto ordered = [](auto* a, auto* b) { return a->name < b->name; };
  if (!std::is_sorted(ports.begin(), ports.end(), ordered)) {
    scope.report(
        "port-order",
        std::string("the ") + kind + "s are declared from " +
            ports.front()->name + " to " + ports.back()->name);
  }
  auto bytes = [](auto* port) {
    return element_count(port->type) * bits(port->type.dtype);
  };
  auto differs =
      std::adjacent_find(ports.begin(), ports.end(), [&](auto* a, auto* b) {
        return bytes(a) != bytes(b);
      });
  if (differs != ports.end()) {
    scope.report(
        "uniform-surfaces",
        (*differs)->name + " is " + to_text((*differs)->type) + ", but " +
            (*(differs + 1))->name + " is " + to_text((*(differs + 1))->type));
  }
}

/// Values that an argument names are defined, and constants among them no
/// larger than operands may be.
void check_argument(
    Scope& scope,
    const Operation& op,
    const Argument& argument,
    const std::string& key) {
  if (auto reference = std::get_if<Reference>(&argument.value)) {
    auto known = scope.find(reference->name);
    if (!known) {
      scope.report("undefined-value", op, key + " = " + reference->name);
    } else if (known->op && !is_constant(op) && is_constant(*known->op)) {
      check_rank(scope, &op, reference->name, known->value->type);
    }
  } else if (auto constant = std::get_if<Constant>(&argument.value)) {
    if (!is_constant(op)) {
      check_rank(scope, &op, key, constant->type);
    }
  } else if (auto tuple = std::get_if<std::vector<Argument>>(&argument.value)) {
    for (auto& item : *tuple) {
      check_argument(scope, op, item, key);
    }
  }
}

/// Argument names and the opset, from the table of operations.
void check_known(Scope& scope, const Operation& op) {
  if (op.op == "const") {
    return;
  }
  auto info = find_op(op.op);
  if (!info) {
    scope.report("unknown-op", op, op.op + " is not a MIL operation");
    return;
  }
  bool own = !op.opset.empty();
  auto& written = own ? op.opset : scope.function.opset;
  auto opset = opset_number(written);
  if (opset > 0 && opset < info->opset) {
    scope.report(
        "newer-op",
        op,
        op.op + " needs ios" + std::to_string(info->opset) + ", the " +
            (own ? "operation" : "function") + " is " + written);
  }
  auto known = [&](const std::string& key) {
    return key == "name" || key == "milId" || contains(info->required, key) ||
           contains(info->optional, key);
  };
  for (auto& [key, value] : op.inputs) {
    if (!known(key)) {
      scope.report("unknown-argument", op, "the argument is " + key);
    }
  }
  for (auto& [key, value] : op.attributes) {
    if (!known(key)) {
      scope.report("unknown-argument", op, "the attribute is " + key);
    }
  }
  auto missing = [&](std::string_view names) {
    for (size_t start = 0; start < names.size();) {
      size_t stop = std::min(names.find(' ', start), names.size());
      auto key = names.substr(start, stop - start);
      if (!find_input(op, key) && !find_attribute(op, key)) {
        scope.report("missing-argument", op, std::string(key) + " is missing");
      }
      start = stop + 1;
    }
  };
  missing(info->required);
  missing(op.op == "log" ? "epsilon" : op.op == "gelu" ? "mode" : "");
}

/// Weight files of a function: how many constants, which paths and offsets.
class Blobs {
 public:
  void add(Scope& scope, const Operation& op, const Constant& constant);
  void finish(Scope& scope);
  void see_scalar() {
    scalar_operand_ = true;
  }

 private:
  int count_ = 0;
  bool scalar_operand_ = false;
  uint64_t bytes_ = 0;
  std::map<std::string_view, uint64_t> first_offset_;
};

void Blobs::add(Scope& scope, const Operation& op, const Constant& constant) {
  auto& blob = std::get<Blob>(constant.data);
  ++count_;
  auto count = static_cast<uint64_t>(element_count(constant.type));
  bytes_ += packed_bytes(constant.type.dtype, count).value_or(0);
  if (blob.path.compare(0, 12, "@model_path/") != 0) {
    scope.report("blob-path", op, "the path is " + blob.path.substr(0, 80));
  }
  if (blob.offset < 64 || blob.offset >= Limits::address_window) {
    scope.report(
        "blob-offset", op, "the offset is " + std::to_string(blob.offset));
  } else if (blob.offset % 64 != 0) {
    scope.report(
        "blob-alignment", op, "the offset is " + std::to_string(blob.offset));
  }
  auto [first, is_new] = first_offset_.emplace(blob.path, blob.offset);
  if (!is_new && first->second != blob.offset) {
    scope.report(
        "chunks",
        op,
        blob.path.substr(0, 80) + " is used at " +
            std::to_string(first->second) + " and " +
            std::to_string(blob.offset));
  }
}

void Blobs::finish(Scope& scope) {
  int most =
      scalar_operand_ ? Limits::max_blobs_with_scalar : Limits::max_blobs;
  if (count_ > most) {
    scope.report(
        "blobs",
        std::to_string(count_) + " constants come from weight files, at most " +
            std::to_string(most) + " may");
  }
  if (bytes_ > Limits::address_window) {
    scope.report(
        "address-window", std::to_string(bytes_) + " bytes of weights");
  }
}

void check_names(Scope& scope) {
  size_t unnamed = 0;
  for (auto& op : scope.function.operations) {
    auto name = find_attribute(op, "name");
    unnamed += !name;
    if (name && as_string(*name) == "") {
      scope.report("empty-name", op, "name is \"\"");
    }
  }
  if (unnamed > 0) {
    scope.report(
        "missing-name",
        std::to_string(unnamed) + " of " +
            std::to_string(scope.function.operations.size()) +
            " operations have no name");
  }
}

/// The operations without constants are one that is not taken alone.
void check_lone(Scope& scope) {
  const Operation* lone = nullptr;
  for (auto& op : scope.function.operations) {
    if (is_constant(op)) {
      continue;
    }
    if (lone) {
      return;
    }
    lone = &op;
  }
  if (lone && contains("reshape slice_by_index tile", lone->op)) {
    scope.report("lone-op", *lone, "there is no other operation");
  }
}

void check_outputs(Scope& scope) {
  auto& function = scope.function;
  if (function.outputs.empty()) {
    scope.report("no-output", "the function returns nothing");
    return;
  }
  std::vector<const Value*> ports;
  std::set<std::string_view> outputs;
  for (auto& name : function.outputs) {
    auto known = scope.find(name);
    if (!known) {
      scope.report("undefined-value", "the output " + name + " is not defined");
      continue;
    }
    if (outputs.insert(name).second) {
      check_port(scope, *known->value, "output");
      ports.push_back(known->value);
    }
    auto op = known->op;
    if (op && op->op == "identity" && function.outputs.size() == 1) {
      scope.report("sole-identity", *op, "the only output is a copy");
    }
  }
  check_ports(scope, ports, "output");
  if (function.outputs.size() < 2) {
    return;
  }
  for (auto& op : function.operations) {
    for (auto& [key, argument] : op.inputs) {
      auto reference = std::get_if<Reference>(&argument.value);
      if (reference && outputs.count(reference->name) && op.op != "identity") {
        scope.report(
            "consumed-output", op, key + " is the output " + reference->name);
      }
    }
  }
}

/// A float constant without axes: it lowers the budget of weight files.
bool is_scalar_operand(const Scope& scope, const Operation& op) {
  return contains("add sub mul real_div pow maximum minimum", op.op) &&
         std::any_of(op.inputs.begin(), op.inputs.end(), [&](auto& input) {
           auto constant = scope.constant_of(input.second);
           return constant && is_float(constant->type.dtype) &&
                  constant->type.shape.empty();
         });
}

void check_function(
    const Function& function,
    const CheckOptions& options,
    std::vector<Finding>& findings) {
  Scope scope(function, options, findings);
  auto opset = opset_number(function.opset);
  if (opset < 15 || opset > 26) {
    scope.report("opset", "the opset is " + function.opset);
  }
  std::vector<const Value*> ports;
  for (auto& value : function.inputs) {
    if (scope.find(value.name)) {
      scope.report("redefined-value", "two inputs are " + value.name);
    }
    scope.define_input(value);
    check_type(scope, nullptr, value);
    check_port(scope, value, "input");
    ports.push_back(&value);
  }
  check_ports(scope, ports, "input");
  Blobs blobs;
  for (auto& op : function.operations) {
    if (options.language) {
      check_known(scope, op);
    }
    for (auto& [key, argument] : op.inputs) {
      check_argument(scope, op, argument, key);
    }
    each_constant(op, [&](const Constant& constant) {
      if (has_blob(constant)) {
        blobs.add(scope, op, constant);
      }
    });
    for (auto& value : op.outputs) {
      check_type(scope, &op, value);
      if (scope.find(value.name)) {
        scope.report("redefined-value", op, value.name + " is defined before");
      }
    }
    check_operation(scope, op);
    if (options.language) {
      check_shapes(scope, op);
    }
    if (is_scalar_operand(scope, op)) {
      blobs.see_scalar();
    }
    scope.define(op);
  }
  blobs.finish(scope);
  if (options.language) {
    check_names(scope);
  }
  check_lone(scope);
  check_outputs(scope);
}

}  // namespace

std::vector<Finding> check(
    const Program& program, const CheckOptions& options) {
  std::vector<Finding> findings;
  auto report = [&](std::string_view rule, std::string what) {
    add_finding(findings, options, rule, nullptr, "program", what, {});
  };
  if (program.functions.empty()) {
    report("no-function", "the program has no function");
  }
  bool shorthand =
      dialect_of(program) == Dialect::ios18 || program.shorthand_scalars;
  if (shorthand) {
    report("dialect", "the program is program(" + program.version + ")");
  }
  if (program.shorthand_scalars && program.verbose_scalars) {
    report("mixed-dialects", "the text has both forms of scalars");
  }
  if (program.functions.size() > 1 && options.macos >= 27) {
    report(
        "banks",
        "the program has " + std::to_string(program.functions.size()) +
            " functions");
  }
  std::set<std::string_view> names;
  for (auto& function : program.functions) {
    if (!names.insert(function.name).second) {
      report("duplicate-function", "two functions are " + function.name);
    }
    check_function(function, options, findings);
  }
  return findings;
}

std::vector<Finding> check(
    const Program& program,
    const std::string& chip,
    const std::string& macos,
    const Allow& allow) {
  CheckOptions options{limits_of(chip), leading_number(macos)};
  if (options.macos < 12) {
    throw std::invalid_argument(
        "[mlx_ane.mil.check] macos is '" + macos +
        "', need a version such as \"26\".");
  }
  check_allow(allow, "mlx_ane.mil");
  options.wanted = [&](const Rule& rule) { return !allows(allow, rule); };
  return check(program, options);
}

}  // namespace mlx_ane::mil
