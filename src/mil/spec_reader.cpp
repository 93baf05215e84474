// Reads the program of a Core ML model.
#include <algorithm>

#include "mil/protobuf.h"
#include "mil/spec.h"
#include "mil/spec_codes.h"

namespace mlx_ane::mil {

namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[mlx_ane.mil.spec] " + what + ".");
}

/// The last field of this number, as protobuf reads one that is not repeated.
std::string_view last(std::string_view message, int field) {
  std::string_view found;
  for (Fields fields(message); fields.next();) {
    if (fields.field == field) {
      found = fields.bytes();
    }
  }
  return found;
}

template <typename Visit>
void each(std::string_view message, int field, const Visit& visit) {
  for (Fields fields(message); fields.next();) {
    if (fields.field == field) {
      visit(fields.bytes());
    }
  }
}

DType dtype_of(uint64_t code) {
  auto found = std::find(type_codes.begin(), type_codes.end(), code);
  if (found == type_codes.end()) {
    refuse(
        "a value has the type " + std::to_string(code) + ", which MIL lacks");
  }
  return static_cast<DType>(found - type_codes.begin());
}

int64_t read_dimension(std::string_view dimension) {
  int64_t size = unknown_dim;
  for (Fields fields(dimension); fields.next();) {
    if (fields.field == 1) {
      size = 0;
      for (Fields constant(fields.bytes()); constant.next();) {
        if (constant.field == 1) {
          size = static_cast<int64_t>(constant.number());
        }
      }
      if (size < 0) {
        refuse("an axis has " + std::to_string(size) + " elements");
      }
    }
  }
  return size;
}

Type read_type(std::string_view message, bool state = false) {
  for (Fields fields(message); fields.next();) {
    if (fields.field == 5 && !state) {
      return read_type(last(fields.bytes(), 1), true);
    }
    if (fields.field != 1) {
      refuse("a value is a list, tuple or dictionary, need a tensor");
    }
    Type type;
    type.state = state;
    for (Fields tensor(fields.bytes()); tensor.next();) {
      if (tensor.field == 1) {
        type.dtype = dtype_of(tensor.number());
      } else if (tensor.field == 3) {
        type.shape.push_back(read_dimension(tensor.bytes()));
      }
    }
    return type;
  }
  refuse("a value has no type");
}

/// The elements of a TensorValue, as Constant keeps them.
void read_elements(std::string_view tensor, Constant& constant) {
  auto dtype = constant.type.dtype;
  auto count = static_cast<uint64_t>(element_count(constant.type));
  auto field = static_cast<int>(storage_of(dtype));
  auto values = last(tensor, field);
  if (dtype == DType::string) {
    std::vector<std::string> strings;
    each(values, 1, [&](auto text) { strings.emplace_back(text); });
    if (strings.size() != count) {
      refuse("a constant has fewer strings than its shape, or more");
    }
    constant.data = std::move(strings);
    return;
  }
  auto list = last(values, 1);
  std::vector<uint8_t> bytes;
  auto size = element_bytes(dtype);
  if (field == 2 || field == 3 || field == 5) {
    for (Fields numbers(list); !numbers.done();) {
      auto number = numbers.varint();
      auto first = reinterpret_cast<const uint8_t*>(&number);
      bytes.insert(bytes.end(), first, first + size);
    }
  } else if (packed_bytes(dtype, count) == list.size()) {
    bytes = unpack(dtype, std::as_bytes(std::span(list)), count);
  }
  if (bytes.size() / size != count) {
    refuse(
        "a constant has " + std::to_string(list.size()) +
        " bytes, which are not the " + std::to_string(count) + " " +
        to_string(dtype) + " of its shape");
  }
  constant.data = std::move(bytes);
}

Constant read_value(std::string_view message) {
  Constant constant{read_type(last(message, 2)), std::vector<uint8_t>()};
  for (Fields fields(message); fields.next();) {
    if (fields.field == 3) {
      auto tensor = last(fields.bytes(), 1);
      if (tensor.empty()) {
        refuse("a constant is a list, tuple or dictionary, need a tensor");
      }
      read_elements(tensor, constant);
    } else if (fields.field == 5) {
      Blob blob;
      for (Fields file(fields.bytes()); file.next();) {
        if (file.field == 1) {
          blob.path = file.bytes();
        } else if (file.field == 2) {
          blob.offset = file.number();
        }
      }
      constant.data = std::move(blob);
    }
  }
  return constant;
}

Value read_named(std::string_view message) {
  return {std::string(last(message, 1)), read_type(last(message, 2))};
}

Argument read_binding(std::string_view message) {
  for (Fields fields(message); fields.next();) {
    if (fields.field == 1) {
      return {Reference{std::string(fields.bytes())}, {}};
    }
    if (fields.field == 2) {
      return {read_value(fields.bytes()), {}};
    }
  }
  refuse("an argument is bound to nothing");
}

/// Arguments that are tuples however many values they have.
bool is_tuple(std::string_view op, std::string_view key) {
  return (key == "values" &&
          (op == "concat" || op == "stack" || op == "einsum")) ||
         key == "ref_tensors";
}

Operation read_operation(std::string_view message) {
  Operation op;
  op.op = last(message, 1);
  for (Fields fields(message); fields.next();) {
    if (fields.field == 2) {
      std::string key(last(fields.bytes(), 1));
      std::vector<Argument> bindings;
      each(last(fields.bytes(), 2), 1, [&](auto binding) {
        bindings.push_back(read_binding(binding));
      });
      bool one = bindings.size() == 1 && !is_tuple(op.op, key);
      op.inputs.emplace_back(
          std::move(key),
          one ? std::move(bindings[0]) : Argument{std::move(bindings), {}});
    } else if (fields.field == 3) {
      op.outputs.push_back(read_named(fields.bytes()));
    } else if (fields.field == 4) {
      refuse(op.op + " has blocks of its own, which a Program cannot hold");
    } else if (fields.field == 5) {
      op.attributes.emplace_back(
          last(fields.bytes(), 1), read_value(last(fields.bytes(), 2)));
    }
  }
  return op;
}

Function read_function(std::string_view name, std::string_view message) {
  Function function;
  function.name = name;
  function.opset = last(message, 2);
  each(message, 1, [&](auto input) {
    function.inputs.push_back(read_named(input));
  });
  bool found = false;
  each(message, 3, [&](auto entry) {
    if (last(entry, 1) != function.opset) {
      return;
    }
    found = true;
    auto block = last(entry, 2);
    each(block, 2, [&](auto output) { function.outputs.emplace_back(output); });
    each(block, 3, [&](auto op) {
      function.operations.push_back(read_operation(op));
    });
  });
  if (!found) {
    refuse(
        "the function " + function.name + " has no block for its opset " +
        function.opset);
  }
  return function;
}

}  // namespace

Program read_spec(std::string_view model) {
  auto message = last(model, 502);
  if (message.empty()) {
    refuse("the model is no ML Program");
  }
  Program program;
  each(message, 2, [&](auto entry) {
    program.functions.push_back(read_function(last(entry, 1), last(entry, 2)));
  });
  bool late = std::all_of(
      program.functions.begin(), program.functions.end(), [](auto& function) {
        return opset_number(function.opset) >= 18;
      });
  program.version = late ? "1.3" : "1.0";
  return program;
}

}  // namespace mlx_ane::mil
