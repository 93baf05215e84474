// Writes the bytes of a Core ML model.
#include "mil/spec.h"

#include <algorithm>
#include <map>
#include <set>

#include "mil/check.h"
#include "mil/ops.h"
#include "mil/protobuf.h"
#include "mil/spec_codes.h"

namespace mlx_ane::mil {

namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[mlx_ane.mil.spec] " + what + ".");
}

std::string name_or_output(const Operation& op) {
  std::string name(name_of(op));
  return !name.empty() ? name : op.outputs.empty() ? op.op : op.outputs[0].name;
}

std::string place(const Function& function, const Operation& op) {
  return function.name + ": " + name_or_output(op) + " = " + op.op;
}

/// Attributes that say who an operation is, not what it does.
bool is_label(std::string_view key) {
  return key == "name" || key == "milId";
}

/// Calls visit(key, argument) for what an operation is given, wherever it
/// stands.
template <typename Visit>
void each_argument(const Operation& op, const Visit& visit) {
  for (auto& [key, argument] : op.inputs) {
    visit(key, argument);
  }
  for (auto& [key, constant] : op.attributes) {
    if (!is_label(key)) {
      visit(key, Argument{constant, op.location});
    }
  }
}

template <typename Visit>
void each_item(const Argument& argument, const Visit& visit) {
  if (auto tuple = std::get_if<std::vector<Argument>>(&argument.value)) {
    for (auto& item : *tuple) {
      each_item(item, visit);
    }
  } else {
    visit(argument);
  }
}

bool is_constexpr(const Operation& op) {
  return op.op.starts_with("constexpr_");
}

bool has(const Operation& op, std::string_view key) {
  return find_input(op, key) || find_attribute(op, key);
}

/// The forms of macOS 13: operands are attributes, and `shape` tells what the
/// flat data is.
bool is_early_constexpr(const Operation& op) {
  return op.op == "constexpr_affine_dequantize" || op.op == "constexpr_cast" ||
         ((op.op == "constexpr_lut_to_dense" ||
           op.op == "constexpr_sparse_to_dense") &&
          has(op, "shape"));
}

/// Arguments that are younger than their operations (coremltools' definitions).
struct LateArgument {
  std::string_view ops;
  std::string_view key;
  int opset;
};
constexpr LateArgument late_arguments[] = {
    {"gather gather_nd", "batch_dims", 16},
    {"gather gather_along_axis gather_nd scatter scatter_along_axis scatter_nd",
     "validate_indices",
     17},
    {"constexpr_lut_to_dense", "vector_axis", 18},
    {"crop_resize", "pad_value", 16},
    {"crop_resize", "boxes", 17},
    {"crop_resize", "box_indices", 17},
    {"gru", "reset_after", 18},
    {"gru", "input_bias", 18},
    {"reduce_argmax reduce_argmin", "output_dtype", 17},
    {"topk", "sort", 16},
    {"topk", "return_indices", 16},
    {"topk", "output_indices_dtype", 17},
    {"upsample_bilinear", "half_pixel_centers", 16},
};

int opset_of(DType dtype) {
  int width = bits(dtype);
  if (dtype == DType::uint32 || (width > 0 && width < 8)) {
    return 18;
  }
  bool is_short = is_integer(dtype) && width < 32;
  return is_short ? 17 : 15;
}

/// The lowest opset that holds a program, and what asks for it.
class Need {
 public:
  explicit Need(const Program& program) {
    if (program.functions.size() > 1) {
      raise(18, "several functions");
    }
    for (auto& function : program.functions) {
      add(function);
    }
  }

  int opset = 15;
  std::string why;

 private:
  void raise(int to, const std::string& reason) {
    if (to > opset) {
      opset = to;
      why = reason;
    }
  }
  void add(const Function& function);
  void add(const Operation& op, const std::map<std::string_view, Type>& types);
  void add_port(const std::string& name, const Type& type);
};

void Need::add_port(const std::string& name, const Type& type) {
  auto what = name + " is " + to_string(type.dtype);
  raise(type.dtype == DType::fp16 ? 16 : 15, what);
  raise(type.dtype == DType::int8 ? 26 : 15, what);
  raise(type.state ? 18 : 15, name + " is a state");
}

void Need::add(const Function& function) {
  std::map<std::string_view, Type> types;
  for (auto& input : function.inputs) {
    types[input.name] = input.type;
    add_port(input.name, input.type);
  }
  for (auto& op : function.operations) {
    add(op, types);
    for (auto& output : op.outputs) {
      types[output.name] = output.type;
    }
  }
  for (auto& name : function.outputs) {
    add_port(name, types[name]);
  }
}

void Need::add(
    const Operation& op, const std::map<std::string_view, Type>& types) {
  if (op.op == "const") {
    return;
  }
  raise(find_op(op.op)->opset, op.op);
  for (auto& late : late_arguments) {
    if (contains(late.ops, op.op) && has(op, late.key)) {
      raise(late.opset, op.op + " with " + std::string(late.key));
    }
  }
  if (is_early_constexpr(op)) {
    return;
  }
  raise(is_constexpr(op) ? 18 : 15, op.op + " of this form");
  auto see = [&](const Type& type) {
    raise(
        opset_of(type.dtype),
        op.op + " of " + std::string(to_string(type.dtype)));
  };
  each_argument(op, [&](auto&, const Argument& argument) {
    each_item(argument, [&](const Argument& item) {
      if (auto constant = std::get_if<Constant>(&item.value)) {
        see(constant->type);
      } else {
        see(types.at(std::get<Reference>(item.value).name));
      }
    });
  });
  for (auto& output : op.outputs) {
    see(output.type);
  }
}

int version_of_opset(int opset) {
  return opset >= 26 ? 10 : opset - 9;
}

Message type_message(const Type& type) {
  Message tensor;
  tensor.number(1, type_code(type.dtype)).number(2, type.shape.size());
  for (auto size : type.shape) {
    bool known = size != unknown_dim;
    tensor.message(
        3,
        known ? Message().message(1, Message().number(1, size))
              : Message().message(2, Message()));
  }
  auto plain = Message().message(1, tensor);
  return type.state ? Message().message(5, Message().message(1, plain)) : plain;
}

Message named_type(const Value& value) {
  return Message().item(1, value.name).message(2, type_message(value.type));
}

Message tensor_message(const Constant& constant) {
  Message values;
  auto kind = storage_of(constant.type.dtype);
  if (auto strings = std::get_if<std::vector<std::string>>(&constant.data)) {
    for (auto& string : *strings) {
      values.item(1, string);
    }
  } else if (
      kind == Storage::ints || kind == Storage::long_ints ||
      kind == Storage::bools) {
    Message list;
    auto integers = as_integers(constant);
    for (auto integer : *integers) {
      list.varint(static_cast<uint64_t>(integer));
    }
    values.text(1, list.bytes());
  } else {
    auto& elements = std::get<std::vector<uint8_t>>(constant.data);
    auto packed = pack(constant.type.dtype, elements);
    values.text(
        1, {reinterpret_cast<const char*>(packed.data()), packed.size()});
  }
  return Message().message(static_cast<int>(kind), values);
}

Message string_value(std::string_view text) {
  Constant constant{
      {DType::string, {}, false}, std::vector<std::string>{std::string(text)}};
  return Message()
      .message(2, type_message(constant.type))
      .message(3, Message().message(1, tensor_message(constant)));
}

class Writer {
 public:
  Writer(const Program& program, const SpecOptions& options, int version)
      : program_(program), options_(options), version_(version) {
  }

  std::string model();

 private:
  Message function(const Function& function);
  Message description();
  Message ports(const Function& function, int state, int input, int output);
  Message feature(const Value& value, bool is_input);
  Message array(const Value& value, bool is_input);
  Message metadata() const;

  void operation(const Operation& op);
  void constant_operation(const std::string& name, const Constant& constant);
  Message binding(
      const Operation& op, std::string_view key, const Argument& argument);
  Message value(const Constant& constant);
  const Constant* constant_of(const Argument& argument) const;
  void find_embedded(const Function& function);
  std::string opset() const {
    return "CoreML" + std::to_string(version_ - 1);
  }

  const Program& program_;
  const SpecOptions& options_;
  int version_;

  // The function that is being written.
  const Function* function_ = nullptr;
  Message block_;
  std::set<std::string, std::less<>> names_;
  std::map<std::string_view, const Constant*> constants_;
  /// Consts that only constexpr operations read, which hold them themselves.
  std::set<std::string_view> embedded_;
};

std::string Writer::model() {
  Message program;
  program.number(1, 1);
  for (auto& function : program_.functions) {
    program.entry(2, function.name, this->function(function));
  }
  return Message()
      .number(1, version_)
      .message(2, description())
      .message(502, program)
      .bytes();
}

Message Writer::function(const Function& function) {
  function_ = &function;
  block_ = {};
  names_.clear();
  constants_.clear();
  Message message;
  for (auto& input : function.inputs) {
    names_.insert(input.name);
    message.message(1, named_type(input));
  }
  for (auto& op : function.operations) {
    for (auto& output : op.outputs) {
      names_.insert(output.name);
    }
    if (op.op == "const") {
      constants_[op.outputs[0].name] = find_attribute(op, "val");
    }
  }
  find_embedded(function);
  for (auto& name : function.outputs) {
    block_.item(2, name);
  }
  for (auto& op : function.operations) {
    operation(op);
  }
  return message.text(2, opset()).entry(3, opset(), block_);
}

void Writer::find_embedded(const Function& function) {
  embedded_.clear();
  std::set<std::string_view> read(
      function.outputs.begin(), function.outputs.end());
  for (auto& op : function.operations) {
    each_argument(op, [&](auto&, const Argument& argument) {
      each_item(argument, [&](const Argument& item) {
        if (auto reference = std::get_if<Reference>(&item.value)) {
          auto known = constants_.find(reference->name);
          if (known != constants_.end()) {
            (is_constexpr(op) ? embedded_ : read).insert(known->first);
          }
        }
      });
    });
  }
  std::erase_if(embedded_, [&](auto name) { return read.contains(name); });
}

const Constant* Writer::constant_of(const Argument& argument) const {
  if (auto constant = std::get_if<Constant>(&argument.value)) {
    return constant;
  }
  auto reference = std::get_if<Reference>(&argument.value);
  auto known = reference ? constants_.find(reference->name) : constants_.end();
  return known == constants_.end() ? nullptr : known->second;
}

void Writer::constant_operation(
    const std::string& name, const Constant& constant) {
  block_.message(
      3,
      Message()
          .item(1, "const")
          .message(3, named_type({name, constant.type}))
          .entry(5, "name", string_value(name))
          .entry(5, "val", value(constant)));
}

void Writer::operation(const Operation& op) {
  if (op.op == "const") {
    if (!embedded_.contains(op.outputs[0].name)) {
      constant_operation(op.outputs[0].name, *find_attribute(op, "val"));
    }
    return;
  }
  Message message;
  message.item(1, op.op);
  Message attributes;
  bool early = is_early_constexpr(op);
  each_argument(op, [&](const std::string& key, const Argument& argument) {
    if (early) {
      auto constant = constant_of(argument);
      if (!constant) {
        refuse(place(*function_, op) + " needs a constant as " + key);
      }
      attributes.entry(5, key, value(*constant));
      return;
    }
    Message bindings;
    auto tuple = std::get_if<std::vector<Argument>>(&argument.value);
    for (auto& item : tuple ? *tuple : std::vector<Argument>{argument}) {
      bindings.message(1, binding(op, key, item));
    }
    message.entry(2, key, bindings);
  });
  for (auto& output : op.outputs) {
    message.message(3, named_type(output));
  }
  attributes.entry(5, "name", string_value(name_or_output(op)));
  block_.message(3, message.append(attributes));
}

Message Writer::binding(
    const Operation& op, std::string_view key, const Argument& argument) {
  auto constant = constant_of(argument);
  bool literal = is_constexpr(op) || (op.op == "reshape_like" &&
                                      contains("begins ends end_masks", key));
  if (literal && constant) {
    return Message().message(2, value(*constant));
  }
  if (auto reference = std::get_if<Reference>(&argument.value)) {
    return Message().item(1, reference->name);
  }
  if (!constant) {
    refuse(
        place(*function_, op) + " has a tuple in a tuple as " +
        std::string(key));
  }
  auto base = name_or_output(op) + "_" + std::string(key);
  auto name = base;
  for (int i = 0; !names_.insert(name).second; ++i) {
    name = base + "_" + std::to_string(i);
  }
  constant_operation(name, *constant);
  return Message().item(1, name);
}

Message Writer::value(const Constant& constant) {
  auto count = static_cast<size_t>(element_count(constant.type));
  auto bytes = std::get_if<std::vector<uint8_t>>(&constant.data);
  if (bytes && bytes->size() != count * element_bytes(constant.type.dtype)) {
    refuse(
        "a constant of " + function_->name + " has " +
        std::to_string(bytes->size()) + " bytes, need those of its shape");
  }
  auto message = Message().message(2, type_message(constant.type));
  auto dtype = constant.type.dtype;
  auto file = [&](const std::string& path, uint64_t offset) {
    return message.message(5, Message().item(1, path).number(2, offset));
  };
  if (auto blob = std::get_if<Blob>(&constant.data)) {
    return file(blob->path, blob->offset);
  }
  // As coremltools decides: before macOS 15, files hold floats and bytes only.
  bool in_files = dtype == DType::fp16 || dtype == DType::fp32 ||
                  (is_integer(dtype) &&
                   (bits(dtype) <= 8 || (bits(dtype) <= 32 && version_ >= 9)));
  if (options_.weights && in_files && bytes && count >= 10) {
    return file(package_weights, options_.weights->add(dtype, *bytes));
  }
  return message.message(3, Message().message(1, tensor_message(constant)));
}

Message Writer::array(const Value& value, bool is_input) {
  auto& type = value.type;
  auto code = array_code(type.dtype);
  auto kind = is_input ? "input " : "output ";
  if (code == 0 || (type.state && type.dtype != DType::fp16)) {
    refuse(
        kind + value.name + " is " + to_string(type.dtype) + ", need fp16" +
        (type.state ? " for a state" : ", fp32 or int32"));
  }
  if (is_input && type.shape.empty()) {
    refuse(
        kind + value.name +
        " is a scalar, need one axis or more; a scalar is "
        "a tensor of shape [1] outside");
  }
  auto shape_message = [](const std::vector<int64_t>& shape) {
    Message sizes;
    for (auto size : shape) {
      sizes.varint(static_cast<uint64_t>(size));
    }
    return Message().text(1, sizes.bytes());
  };
  auto unknown = [](auto& shape) {
    return std::count(shape.begin(), shape.end(), unknown_dim) > 0;
  };
  auto found = std::find_if(
      options_.shapes.begin(), options_.shapes.end(), [&](auto& shapes) {
        return shapes.first == value.name;
      });
  bool listed = is_input && found != options_.shapes.end();
  if (is_input && unknown(type.shape) != listed) {
    refuse(
        kind + value.name +
        (listed ? " has a fixed shape, need none in `shapes`"
                : " has an axis of unknown size, need its sizes in `shapes`"));
  }
  if (!listed) {
    auto sizes = unknown(type.shape) ? Message() : shape_message(type.shape);
    return sizes.number(2, code);
  }
  Message enumerated;
  for (auto& shape : found->second) {
    bool fits = std::equal(
        shape.begin(),
        shape.end(),
        type.shape.begin(),
        type.shape.end(),
        [](auto size, auto declared) {
          return size > 0 && (size == declared || declared == unknown_dim);
        });
    if (!fits) {
      refuse(
          "a shape of " + value.name +
          " in `shapes` is not one that the program declares");
    }
    enumerated.message(1, shape_message(shape));
  }
  if (found->second.empty()) {
    refuse("`shapes` of " + value.name + " is empty, need a shape or more");
  }
  return shape_message(found->second[0])
      .number(2, code)
      .message(21, enumerated);
}

Message Writer::feature(const Value& value, bool is_input) {
  auto array = this->array(value, is_input);
  auto type = value.type.state
                  ? Message().message(8, Message().message(1, array))
                  : Message().message(5, array);
  return Message().item(1, value.name).message(3, type);
}

/// Inputs, outputs and states under these field numbers.
Message Writer::ports(
    const Function& function, int input, int output, int state) {
  std::map<std::string_view, const Value*> results;
  for (auto& op : function.operations) {
    for (auto& value : op.outputs) {
      results[value.name] = op.op == "const" ? nullptr : &value;
    }
  }
  Message message, states;
  for (auto& value : function.inputs) {
    auto& to = value.type.state ? states : message;
    to.message(value.type.state ? state : input, feature(value, true));
  }
  std::set<std::string_view> given;
  for (auto& name : function.outputs) {
    auto result = results[name];
    if (!result) {
      refuse(
          "output " + name +
          " is an input or a constant; give it out through an identity");
    }
    if (!given.insert(name).second) {
      refuse("output " + name + " is given twice");
    }
    message.message(output, feature(*result, false));
  }
  return message.append(states);
}

Message Writer::metadata() const {
  Message message;
  message.text(1, options_.description)
      .text(2, options_.model_version)
      .text(3, options_.author)
      .text(4, options_.license);
  for (auto& [key, text] : options_.user_defined) {
    message.message(100, Message().item(1, key).item(2, text));
  }
  return message;
}

Message Writer::description() {
  auto& functions = program_.functions;
  Message message;
  if (functions.size() == 1) {
    message = ports(functions[0], 1, 10, 13);
  } else {
    for (auto& function : functions) {
      auto ports = this->ports(function, 2, 3, 6);
      message.message(20, Message().item(1, function.name).append(ports));
    }
    message.text(21, "main");
  }
  auto metadata = this->metadata();
  return metadata.empty() ? message : message.message(100, metadata);
}

/// Refuses what is no MIL whatever runs it.
void check_language(const Program& program) {
  CheckOptions options{limits_of("h16g")};
  options.wanted = [](const Rule& rule) {
    // The opset is chosen here; epsilon and mode have defaults in Core ML.
    return rule.stage == Stage::parse && rule.severity == Severity::error &&
           rule.id != "newer-op";
  };
  for (auto& finding : check(program, options)) {
    bool has_default = finding.what == "epsilon is missing" ||
                       finding.what == "mode is missing";
    if (!has_default) {
      refuse(
          finding.where + ": " + finding.what + "; " +
          std::string(finding.rule->why));
    }
  }
}

}  // namespace

int spec_version(const Program& program) {
  check_language(program);
  return version_of_opset(Need(program).opset);
}

std::string model_spec(const Program& program, const SpecOptions& options) {
  check_language(program);
  bool has_main = std::any_of(
      program.functions.begin(), program.functions.end(), [](auto& function) {
        return function.name == "main";
      });
  if (!has_main) {
    refuse("the program has no function main, which Core ML calls by default");
  }
  Need need(program);
  int lowest = version_of_opset(need.opset);
  int version = options.version == 0 ? lowest : options.version;
  if (version < 6 || version > 10) {
    refuse(
        "version is " + std::to_string(version) +
        ", need 6 to 10, or 0 for the lowest that the program allows");
  }
  if (version < lowest) {
    refuse(
        "version is " + std::to_string(version) + ", need " +
        std::to_string(lowest) + " or more for " + need.why);
  }
  return Writer(program, options, version).model();
}

}  // namespace mlx_ane::mil
