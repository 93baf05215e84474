// Names, sizes and lookups of MIL programs in memory.
#include "mil/program.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <limits>

namespace mlx_ane::mil {

namespace {

struct DTypeInfo {
  std::string_view name;
  int bits;
  size_t bytes;
};

/// In the order of DType.
constexpr std::array<DTypeInfo, 20> dtypes = {{
    {"fp16", 16, 2},   {"fp32", 32, 4},   {"fp64", 64, 8},  {"bf16", 16, 2},
    {"int4", 4, 1},    {"int8", 8, 1},    {"int16", 16, 2}, {"int32", 32, 4},
    {"int64", 64, 8},  {"uint1", 1, 1},   {"uint2", 2, 1},  {"uint3", 3, 1},
    {"uint4", 4, 1},   {"uint6", 6, 1},   {"uint8", 8, 1},  {"uint16", 16, 2},
    {"uint32", 32, 4}, {"uint64", 64, 8}, {"bool", 8, 1},   {"string", 0, 0},
}};
static_assert(static_cast<size_t>(DType::string) + 1 == dtypes.size());

const DTypeInfo& info(DType type) {
  return dtypes[static_cast<size_t>(type)];
}

bool is_signed(DType type) {
  return type >= DType::int4 && type <= DType::int64;
}

/// Element i of an integer or boolean constant.
int64_t integer_at(const Type& type, const uint8_t* data, int64_t i) {
  size_t size = element_bytes(type.dtype);
  uint64_t value = 0;
  std::memcpy(&value, data + i * size, size);
  int shift = is_signed(type.dtype) ? 64 - 8 * static_cast<int>(size) : 0;
  return static_cast<int64_t>(value << shift) >> shift;
}

const std::vector<uint8_t>* integer_bytes(const Constant& constant) {
  auto dtype = constant.type.dtype;
  if (!is_integer(dtype) && dtype != DType::boolean) {
    return nullptr;
  }
  auto bytes = std::get_if<std::vector<uint8_t>>(&constant.data);
  // Constants may be built by hand: their bytes are not taken on trust.
  return bytes && bytes->size() % element_bytes(dtype) == 0 ? bytes : nullptr;
}

bool same(const Argument& a, const Argument& b);

/// The same pairs in any order.
template <typename Pairs, typename Equal>
bool same_pairs(const Pairs& a, const Pairs& b, Equal equal) {
  if (a.size() != b.size()) {
    return false;
  }
  auto sorted = [](const Pairs& pairs) {
    std::vector<const typename Pairs::value_type*> order;
    for (auto& pair : pairs) {
      order.push_back(&pair);
    }
    std::stable_sort(order.begin(), order.end(), [](auto* x, auto* y) {
      return x->first < y->first;
    });
    return order;
  };
  auto x = sorted(a);
  auto y = sorted(b);
  return std::equal(x.begin(), x.end(), y.begin(), [&](auto* p, auto* q) {
    return p->first == q->first && equal(p->second, q->second);
  });
}

bool same(const Argument& a, const Argument& b) {
  if (a.value.index() != b.value.index()) {
    return false;
  }
  if (auto reference = std::get_if<Reference>(&a.value)) {
    return reference->name == std::get<Reference>(b.value).name;
  }
  if (auto constant = std::get_if<Constant>(&a.value)) {
    return *constant == std::get<Constant>(b.value);
  }
  auto& x = std::get<std::vector<Argument>>(a.value);
  auto& y = std::get<std::vector<Argument>>(b.value);
  return std::equal(x.begin(), x.end(), y.begin(), y.end(), same);
}

bool same_values(const std::vector<Value>& a, const std::vector<Value>& b) {
  return std::equal(
      a.begin(), a.end(), b.begin(), b.end(), [](auto& x, auto& y) {
        return x.name == y.name && x.type == y.type;
      });
}

bool same_operation(const Operation& a, const Operation& b) {
  return a.op == b.op && same_values(a.outputs, b.outputs) &&
         same_pairs(a.inputs, b.inputs, same) &&
         same_pairs(a.attributes, b.attributes, std::equal_to<Constant>());
}

bool same_function(const Function& a, const Function& b) {
  return a.name == b.name && a.outputs == b.outputs &&
         a.attributes == b.attributes && same_values(a.inputs, b.inputs) &&
         std::equal(
             a.operations.begin(),
             a.operations.end(),
             b.operations.begin(),
             b.operations.end(),
             same_operation);
}

}  // namespace

const char* to_string(DType type) {
  return info(type).name.data();
}

std::optional<DType> dtype_named(std::string_view name) {
  for (size_t i = 0; i < dtypes.size(); ++i) {
    if (name == dtypes[i].name) {
      return static_cast<DType>(i);
    }
  }
  return std::nullopt;
}

int bits(DType type) {
  return info(type).bits;
}

size_t element_bytes(DType type) {
  return info(type).bytes;
}

bool is_float(DType type) {
  return type <= DType::bf16;
}

bool is_integer(DType type) {
  return type >= DType::int4 && type <= DType::uint64;
}

int64_t element_count(const Type& type) {
  int64_t count = 1;
  for (auto dim : type.shape) {
    if (dim <= 0) {
      return 0;
    }
    if (count > std::numeric_limits<int64_t>::max() / dim) {
      return std::numeric_limits<int64_t>::max();
    }
    count *= dim;
  }
  return count;
}

const char* to_string(Dialect dialect) {
  return dialect == Dialect::ios16 ? "ios16" : "ios18";
}

Dialect dialect_named(std::string_view name) {
  if (name == "ios16") {
    return Dialect::ios16;
  }
  if (name == "ios18") {
    return Dialect::ios18;
  }
  throw std::invalid_argument(
      "[mlx_ane.mil] dialect is '" + std::string(name) +
      "', need \"ios16\" or \"ios18\".");
}

int opset_number(std::string_view opset) {
  auto after = [&](std::string_view prefix) {
    int number = 0;
    if (opset.starts_with(prefix)) {
      std::from_chars(
          opset.data() + prefix.size(), opset.data() + opset.size(), number);
    }
    return number;
  };
  if (auto ios = after("ios")) {
    return ios;
  }
  // CoreML5 to CoreML8 are the sets of ios15 to ios18, CoreML9 is ios26's.
  auto version = after("CoreML");
  return version == 0 ? 0 : version == 9 ? 26 : version + 10;
}

Dialect dialect_of(const Program& program) {
  return program.version == "1.0" || program.version == "1.1" ? Dialect::ios16
                                                              : Dialect::ios18;
}

const Argument* find_input(const Operation& op, std::string_view name) {
  for (auto& [key, argument] : op.inputs) {
    if (key == name) {
      return &argument;
    }
  }
  return nullptr;
}

const Constant* find_attribute(const Operation& op, std::string_view name) {
  for (auto& [key, constant] : op.attributes) {
    if (key == name) {
      return &constant;
    }
  }
  return nullptr;
}

std::string_view name_of(const Operation& op) {
  auto constant = find_attribute(op, "name");
  return constant ? as_string(*constant).value_or("") : "";
}

std::optional<int64_t> as_integer(const Constant& constant) {
  auto bytes = integer_bytes(constant);
  if (!bytes || bytes->size() != element_bytes(constant.type.dtype)) {
    return std::nullopt;
  }
  return integer_at(constant.type, bytes->data(), 0);
}

std::optional<std::vector<int64_t>> as_integers(const Constant& constant) {
  auto bytes = integer_bytes(constant);
  if (!bytes) {
    return std::nullopt;
  }
  std::vector<int64_t> values(
      bytes->size() / element_bytes(constant.type.dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = integer_at(constant.type, bytes->data(), i);
  }
  return values;
}

std::optional<std::string_view> as_string(const Constant& constant) {
  auto strings = std::get_if<std::vector<std::string>>(&constant.data);
  if (!strings || strings->size() != 1) {
    return std::nullopt;
  }
  return strings->front();
}

bool same_meaning(const Program& a, const Program& b) {
  return a.build_info == b.build_info && a.attributes == b.attributes &&
         std::equal(
             a.functions.begin(),
             a.functions.end(),
             b.functions.begin(),
             b.functions.end(),
             same_function);
}

}  // namespace mlx_ane::mil
