// What check knows of a function while it walks through its operations.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "mil/check.h"

namespace mlx_ane::mil {

/// The values defined so far in one function, and where findings go.
class Scope {
 public:
  Scope(
      const Function& function,
      const CheckOptions& options,
      std::vector<Finding>& findings)
      : function(function), options(options), findings_(findings) {
  }

  const Function& function;
  const CheckOptions& options;

  /// Reports a finding at an operation, or of the whole function.
  void report(std::string_view rule, const Operation& op, std::string what);
  void report(std::string_view rule, std::string what);

  /// A value and the operation that gives it, nullptr for an input.
  struct Known {
    const Value* value;
    const Operation* op;
    bool at_run_time;
  };

  void define_input(const Value& value);
  void define(const Operation& op);
  /// nullptr for a name that is not defined so far.
  const Known* find(std::string_view name) const {
    auto known = values_.find(name);
    return known == values_.end() ? nullptr : &known->second;
  }
  /// Type of an argument; nullptr for tuples and undefined values.
  const Type* type_of(const Argument& argument) const;
  const Type* input_type(const Operation& op, std::string_view name) const;
  /// The constant behind an argument, inline or through a const; or nullptr.
  const Constant* constant_of(const Argument& argument) const;
  const Constant* constant(const Operation& op, std::string_view name) const;
  /// A short list of integers, such as axes or a shape.
  std::optional<std::vector<int64_t>> integers(
      const Operation& op, std::string_view name) const;
  /// The operation that gives an argument; nullptr for inputs and literals.
  const Operation* producer_of(const Argument& argument) const;
  /// Whether a value depends on the function's inputs.
  bool at_run_time(const Argument& argument) const;

 private:
  std::unordered_map<std::string_view, Known> values_;
  std::vector<Finding>& findings_;
};

/// Adds it if the chip has the rule and the rule is wanted.
void add_finding(
    std::vector<Finding>& findings,
    const CheckOptions& options,
    std::string_view rule,
    const Function* function,
    std::string where,
    std::string what,
    Location location);

/// An integer of 8 or 16 bits.
bool is_short_integer(DType dtype);

/// Rules of single operations: what the chip takes, and constants.
void check_operation(Scope& scope, const Operation& op);
/// Reports outputs whose declared type is not what the operation gives.
void check_shapes(Scope& scope, const Operation& op);

/// "[1, 64, 1, 32]", cut after 32 numbers.
std::string to_text(const std::vector<int64_t>& shape);
std::string to_text(const Type& type);

}  // namespace mlx_ane::mil
