// Access to the arguments of an operation, with errors that name both.
#include "device/emulated/op.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

namespace mlx_ane::emulated {

int64_t elements(const Shape& shape) {
  constexpr int64_t most = int64_t{1} << 40;
  int64_t n = 1;
  for (auto size : shape) {
    if (size < 0 || size > most || n * size > most) {
      throw std::invalid_argument(
          "shape " + to_string(shape) + " is unknown, negative or too large");
    }
    n *= size;
  }
  return n;
}

int64_t columns_of(const Shape& shape) {
  return shape.empty() ? 1 : shape.back();
}

int64_t rows_of(const Shape& shape) {
  auto columns = columns_of(shape);
  return columns == 0 ? 0 : elements(shape) / columns;
}

std::string to_string(const Shape& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    out += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return out + "]";
}

std::string to_string(const Type& type) {
  return mil::to_string(type.dtype) + to_string(type.shape);
}

Shape strides_of(const Shape& shape) {
  Shape strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i];
  }
  return strides;
}

void Call::fail(const std::string& why) const {
  throw std::invalid_argument(op + ": " + why);
}

const Call::Argument* Call::find(std::string_view name) const {
  for (auto& argument : arguments) {
    if (argument.name == name) {
      return &argument;
    }
  }
  return nullptr;
}

bool Call::has(std::string_view name) const {
  return find(name) != nullptr;
}

Operand Call::optional(std::string_view name) const {
  return has(name) ? operand(name) : Operand{};
}

const Operand& Call::operand(std::string_view name) const {
  auto* argument = find(name);
  need(argument != nullptr, "argument " + std::string(name) + " is missing");
  need(
      argument->operands.size() == 1 && !argument->tuple,
      "argument " + std::string(name) + " must be one value, not a tuple");
  return argument->operands[0];
}

const std::vector<Operand>& Call::list(std::string_view name) const {
  auto* argument = find(name);
  need(argument != nullptr, "argument " + std::string(name) + " is missing");
  need(
      !argument->operands.empty(),
      "argument " + std::string(name) + " is an empty tuple");
  return argument->operands;
}

static const Literal& literal_of(
    const Call& call, const Operand& operand, std::string_view name) {
  call.need(
      operand.literal != nullptr,
      "argument " + std::string(name) + " must be a constant");
  return *operand.literal;
}

std::vector<int64_t> Call::integers(std::string_view name) const {
  std::vector<int64_t> out;
  for (auto& operand : list(name)) {
    auto& ints = literal_of(*this, operand, name).ints;
    need(
        ints.size() == static_cast<size_t>(operand.size()),
        "argument " + std::string(name) + " must hold integers");
    out.insert(out.end(), ints.begin(), ints.end());
  }
  return out;
}

std::vector<int64_t> Call::integers(
    std::string_view name, std::vector<int64_t> otherwise) const {
  return has(name) ? integers(name) : std::move(otherwise);
}

int64_t Call::integer(std::string_view name) const {
  auto values = integers(name);
  need(values.size() == 1, "argument " + std::string(name) + " must be scalar");
  return values[0];
}

int64_t Call::integer(std::string_view name, int64_t otherwise) const {
  return has(name) ? integer(name) : otherwise;
}

float Call::number(std::string_view name) const {
  auto& value = literal_of(*this, operand(name), name);
  if (value.floats.size() == 1) {
    return value.floats[0];
  }
  return static_cast<float>(integer(name));
}

float Call::number(std::string_view name, float otherwise) const {
  return has(name) ? number(name) : otherwise;
}

bool Call::flag(std::string_view name, bool otherwise) const {
  return has(name) ? integer(name) != 0 : otherwise;
}

std::string Call::text(std::string_view name, std::string otherwise) const {
  if (!has(name)) {
    return otherwise;
  }
  auto& strings = literal_of(*this, operand(name), name).strings;
  need(
      strings.size() == 1,
      "argument " + std::string(name) + " must be one string");
  return strings[0];
}

int64_t Call::axis(int64_t axis, size_t rank) const {
  auto n = static_cast<int64_t>(rank);
  need(
      axis >= -n && axis < n,
      "axis " + std::to_string(axis) + " is outside rank " + std::to_string(n));
  return axis < 0 ? axis + n : axis;
}

std::vector<int64_t> Call::axes(std::string_view name, size_t rank) const {
  std::vector<int64_t> out;
  if (!has(name)) {
    for (size_t i = 0; i < rank; ++i) {
      out.push_back(static_cast<int64_t>(i));
    }
    return out;
  }
  for (auto value : integers(name)) {
    out.push_back(axis(value, rank));
  }
  std::sort(out.begin(), out.end());
  need(
      std::adjacent_find(out.begin(), out.end()) == out.end(),
      "an axis is named twice");
  return out;
}

std::vector<Op> all_ops() {
  std::vector<Op> out;
  for (auto family :
       {activation_ops(),
        attention_ops(),
        conv_ops(),
        elementwise_ops(),
        gather_ops(),
        generate_ops(),
        matmul_ops(),
        normalization_ops(),
        pool_ops(),
        quantization_ops(),
        reduce_ops(),
        resize_ops(),
        shape_ops(),
        slice_ops(),
        state_ops()}) {
    out.insert(out.end(), family.begin(), family.end());
  }
  return out;
}

const Op* find_op(std::string_view name) {
  static const auto* table = [] {
    auto* out = new std::unordered_map<std::string, Op>;
    for (auto& op : all_ops()) {
      out->emplace(op.name, op);
    }
    return out;
  }();
  auto found = table->find(std::string(name));
  return found == table->end() ? nullptr : &found->second;
}

}  // namespace mlx_ane::emulated
