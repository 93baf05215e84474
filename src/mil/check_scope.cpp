// Lookups of values and constants for check.
#include "mil/check_scope.h"

#include <algorithm>

namespace mlx_ane::mil {

namespace {

constexpr size_t max_findings = 1000;
constexpr size_t max_text = 300;

/// Names in a program may be of any length.
std::string shortened(std::string text) {
  if (text.size() > max_text) {
    text.resize(max_text);
    text += "...";
  }
  return text;
}

/// Calls visit(reference) for every value that an argument names.
template <typename Visit>
void each_reference(const Argument& argument, const Visit& visit) {
  if (auto reference = std::get_if<Reference>(&argument.value)) {
    visit(*reference);
  } else if (auto tuple = std::get_if<std::vector<Argument>>(&argument.value)) {
    for (auto& item : *tuple) {
      each_reference(item, visit);
    }
  }
}

}  // namespace

void add_finding(
    std::vector<Finding>& findings,
    const CheckOptions& options,
    std::string_view id,
    const Function* function,
    std::string where,
    std::string what,
    Location location) {
  auto rule = find_rule(id);
  if (findings.size() < max_findings &&
      rule->applies_to(options.limits.generation) &&
      (!options.wanted || options.wanted(*rule))) {
    findings.push_back(
        {rule,
         function,
         shortened(std::move(where)),
         shortened(std::move(what)),
         location});
  }
}

bool is_short_integer(DType dtype) {
  return dtype == DType::int8 || dtype == DType::uint8 ||
         dtype == DType::int16 || dtype == DType::uint16;
}

void Scope::report(
    std::string_view rule, const Operation& op, std::string what) {
  std::string where = function.name;
  if (op.location.line > 0) {
    where += ", line " + std::to_string(op.location.line);
  }
  where += ": ";
  where += op.outputs.empty() ? "" : op.outputs[0].name + " = ";
  add_finding(
      findings_,
      options,
      rule,
      &function,
      where + op.op,
      std::move(what),
      op.location);
}

void Scope::report(std::string_view rule, std::string what) {
  add_finding(
      findings_,
      options,
      rule,
      &function,
      function.name,
      std::move(what),
      function.location);
}

void Scope::define_input(const Value& value) {
  values_.emplace(value.name, Known{&value, nullptr, true});
}

void Scope::define(const Operation& op) {
  bool at_run_time = false;
  for (auto& input : op.inputs) {
    each_reference(input.second, [&](auto& reference) {
      auto known = find(reference.name);
      at_run_time |= !known || known->at_run_time;
    });
  }
  for (auto& output : op.outputs) {
    values_.emplace(output.name, Known{&output, &op, at_run_time});
  }
}

const Type* Scope::type_of(const Argument& argument) const {
  if (auto constant = std::get_if<Constant>(&argument.value)) {
    return &constant->type;
  }
  auto reference = std::get_if<Reference>(&argument.value);
  auto known = reference ? find(reference->name) : nullptr;
  return known ? &known->value->type : nullptr;
}

const Type* Scope::input_type(
    const Operation& op, std::string_view name) const {
  auto argument = find_input(op, name);
  return argument ? type_of(*argument) : nullptr;
}

const Operation* Scope::producer_of(const Argument& argument) const {
  auto reference = std::get_if<Reference>(&argument.value);
  auto known = reference ? find(reference->name) : nullptr;
  return known ? known->op : nullptr;
}

const Constant* Scope::constant_of(const Argument& argument) const {
  if (auto constant = std::get_if<Constant>(&argument.value)) {
    return constant;
  }
  auto op = producer_of(argument);
  return op && op->op == "const" ? find_attribute(*op, "val") : nullptr;
}

const Constant* Scope::constant(
    const Operation& op, std::string_view name) const {
  if (auto attribute = find_attribute(op, name)) {
    return attribute;
  }
  auto argument = find_input(op, name);
  return argument ? constant_of(*argument) : nullptr;
}

std::optional<std::vector<int64_t>> Scope::integers(
    const Operation& op, std::string_view name) const {
  auto found = constant(op, name);
  // A list longer than any rank is no list of axes; copying it would be slow.
  return found && element_count(found->type) <= 64 ? as_integers(*found)
                                                   : std::nullopt;
}

bool Scope::at_run_time(const Argument& argument) const {
  bool found = false;
  each_reference(argument, [&](auto& reference) {
    auto known = find(reference.name);
    found |= known && known->at_run_time;
  });
  return found;
}

std::string to_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < std::min<size_t>(shape.size(), 32); ++i) {
    text += i ? ", " : "";
    text += shape[i] == unknown_dim ? "?" : std::to_string(shape[i]);
  }
  return text + (shape.size() > 32 ? ", ...]" : "]");
}

std::string to_text(const Type& type) {
  auto text = std::string(to_string(type.dtype)) + " " + to_text(type.shape);
  return type.is_buffer() ? text + " with strides " + to_text(type.strides)
                          : text;
}

}  // namespace mlx_ane::mil
