// Rules of single operations.
#include <algorithm>

#include "mil/check_scope.h"
#include "mil/ops.h"

namespace mlx_ane::mil {

namespace {

void check_family(Scope& scope, const Operation& op) {
  auto info = find_op(op.op);
  if (!info || info->since == Since::all) {
    return;
  }
  int needed = info->since == Since::h14 ? 14 : 15;
  if (info->since == Since::never) {
    scope.report("no-path", op, op.op + " has no path on any chip");
  } else if (scope.options.limits.generation < needed) {
    scope.report(
        "later-chip",
        op,
        op.op + " needs h" + std::to_string(needed) + ", the chip is " +
            scope.options.limits.chip);
  }
}

/// The offset of a slice in its last axis; 0 for other operations.
int64_t slice_offset(const Scope& scope, const Operation* op) {
  if (!op || !contains("slice_by_size slice_by_index", op->op)) {
    return 0;
  }
  auto starts = scope.integers(*op, "begin");
  return starts && !starts->empty() ? starts->back() : 0;
}

void check_concat(Scope& scope, const Operation& op) {
  auto argument = find_input(op, "values");
  auto values =
      argument ? std::get_if<std::vector<Argument>>(&argument->value) : nullptr;
  if (!values) {
    return;
  }
  if (values->size() != 2) {
    scope.report(
        "concat-inputs",
        op,
        std::to_string(values->size()) + " values are joined");
  }
  auto slices = std::count_if(values->begin(), values->end(), [&](auto& value) {
    return slice_offset(scope, scope.producer_of(value)) != 0;
  });
  if (slices >= 2) {
    scope.report(
        "slice-concat", op, std::to_string(slices) + " such slices are joined");
  }
}

bool is_given(const Operation& op, std::string_view key) {
  return find_input(op, key) || find_attribute(op, key);
}

void check_epsilon(Scope& scope, const Operation& op) {
  if (!is_given(op, "epsilon")) {
    scope.report("missing-epsilon", op, "epsilon is missing");
  }
}

void check_attention(Scope& scope, const Operation& op) {
  if (is_given(op, "attn_mask")) {
    scope.report("attention-mask", op, "attn_mask is given");
  }
}

void check_tile(Scope& scope, const Operation& op) {
  scope.report("tile-poison", op, "tile is used");
}

void check_const(Scope& scope, const Operation& op) {
  auto value = find_attribute(op, "val");
  if (!value) {
    scope.report("const-value", op, "there is no val");
  } else if (value->type != op.outputs[0].type) {
    scope.report(
        "const-type",
        op,
        "the value is " + to_text(value->type) + ", declared is " +
            to_text(op.outputs[0].type));
  }
}

void check_inline(Scope& scope, const Operation& op) {
  for (auto& [key, argument] : op.inputs) {
    auto constant = std::get_if<Constant>(&argument.value);
    if (!constant || op.op.compare(0, 9, "constexpr") == 0) {
      continue;
    }
    bool boolean = constant->type.dtype == DType::boolean;
    scope.report(
        boolean ? "inline-arguments" : "inline-values",
        op,
        key + " is written in place");
  }
}

void check_cast(Scope& scope, const Operation& op) {
  auto dtype = op.outputs[0].type.dtype;
  static constexpr DType taken[] = {
      DType::fp16,
      DType::fp32,
      DType::int8,
      DType::uint8,
      DType::int16,
      DType::boolean};
  if (std::find(std::begin(taken), std::end(taken), dtype) == std::end(taken)) {
    scope.report(
        "cast-dtype", op, std::string("the result is ") + to_string(dtype));
  }
}

/// Integers are stored and cast, not computed with.
void check_operands(Scope& scope, const Operation& op) {
  for (auto& [key, argument] : op.inputs) {
    auto type = scope.type_of(argument);
    if (type && is_short_integer(type->dtype)) {
      scope.report("operand-dtype", op, key + " is " + to_text(*type));
    }
  }
}

void check_conv(Scope& scope, const Operation& op) {
  check_operands(scope, op);
  auto& limits = scope.options.limits;
  if (find_input(op, "bias")) {
    scope.report("conv-bias", op, "bias is given");
  }
  auto argument = find_input(op, "weight");
  auto type = scope.input_type(op, "weight");
  if (!argument || !type || type->shape.size() < 3) {
    return;
  }
  // weight: (out, in / groups, [height,] width)
  auto width = type->shape.back();
  if (width > limits.max_kernel_width) {
    scope.report(
        "kernel-width",
        op,
        "the kernel is " + std::to_string(width) + " wide, the most is " +
            std::to_string(limits.max_kernel_width));
  }
  auto channels = op.op == "conv" ? type->shape[0] : type->shape[1];
  if (channels > Limits::max_conv_channels) {
    scope.report(
        "conv-channels", op, std::to_string(channels) + " output channels");
  }
  if (!scope.at_run_time(*argument)) {
    return;
  }
  auto groups = scope.constant(op, "groups");
  bool grouped = groups && as_integer(*groups).value_or(1) > 1;
  scope.report(
      grouped ? "conv-weight-grouped" : "conv-weight",
      op,
      "the weight depends on an input");
}

void check_blockwise(Scope& scope, const Operation& op) {
  auto data = scope.constant(op, "data");
  auto scale = scope.constant(op, "scale");
  if (data &&
      (data->type.dtype == DType::int4 || data->type.dtype == DType::uint4)) {
    scope.report("blockwise-int4", op, "data is " + to_text(data->type));
  }
  if (!scale) {
    return;
  }
  auto& shape = scale->type.shape;
  for (size_t axis = 1; axis < shape.size(); ++axis) {
    if (shape[axis] > 1) {
      scope.report("group-scale", op, "scale is " + to_text(scale->type));
      return;
    }
  }
}

void check_slice(Scope& scope, const Operation& op) {
  if (auto offset = slice_offset(scope, &op)) {
    scope.report(
        "slice-width", op, "the last axis begins at " + std::to_string(offset));
  }
}

void check_reduction(Scope& scope, const Operation& op) {
  auto list = scope.integers(op, "axes");
  auto type = scope.input_type(op, "x");
  if (!list || !type || type->shape.size() < 3) {
    return;
  }
  int64_t rank = static_cast<int64_t>(type->shape.size());
  for (auto axis : *list) {
    if (axis == 1 || axis == 1 - rank) {
      scope.report("reduce-channels", op, "axis 1 is reduced");
      return;
    }
  }
}

bool is_zero(const Constant& constant) {
  auto bytes = std::get_if<std::vector<uint8_t>>(&constant.data);
  // The sign bit is the highest of each element: -0 counts too.
  size_t size = element_bytes(constant.type.dtype);
  if (!bytes || bytes->empty() || bytes->size() > 4096 ||
      !is_float(constant.type.dtype)) {
    return false;
  }
  for (size_t i = 0; i < bytes->size(); ++i) {
    bool top = i % size == size - 1;
    if ((*bytes)[i] & (top ? 0x7f : 0xff)) {
      return false;
    }
  }
  return true;
}

/// Whether one shape is repeated along an axis of the other of equal rank.
bool repeats(const Type& a, const Type& b, size_t axis) {
  return a.shape.size() == b.shape.size() && a.shape[axis] != b.shape[axis] &&
         (a.shape[axis] == 1 || b.shape[axis] == 1);
}

void check_broadcast(
    Scope& scope, const Operation& op, const Argument& x, const Argument& y) {
  auto a = scope.type_of(x);
  auto b = scope.type_of(y);
  auto rank = a && b ? a->shape.size() : 0;
  bool last = rank == 3 && repeats(*a, *b, 2);
  bool first = rank == 4 && repeats(*a, *b, 0) && scope.at_run_time(x) &&
               scope.at_run_time(y);
  if (last || first) {
    scope.report(
        last ? "m1-broadcast" : "mul-batch",
        op,
        "the operands are " + to_text(*a) + " and " + to_text(*b));
  }
}

void check_product(Scope& scope, const Operation& op) {
  check_operands(scope, op);
  auto x = find_input(op, "x");
  auto y = find_input(op, "y");
  if (x && y) {
    check_broadcast(scope, op, *x, *y);
  }
  for (auto [one, other] : {std::pair{x, y}, {y, x}}) {
    auto producer = one ? scope.producer_of(*one) : nullptr;
    auto factor = other ? scope.constant_of(*other) : nullptr;
    if (producer && factor && producer->op.starts_with("reduce_") &&
        is_zero(*factor)) {
      scope.report(
          "multiply-reduced-by-zero", op, producer->op + " is multiplied by 0");
    }
  }
}

void check_contraction(Scope& scope, const Operation& op) {
  check_operands(scope, op);
  auto x = scope.input_type(op, "x");
  if (!x || x->shape.size() < 2) {
    return;
  }
  auto transpose = scope.constant(op, "transpose_x");
  bool swapped = transpose && as_integer(*transpose).value_or(0) != 0;
  auto depth = x->shape[x->shape.size() - (swapped ? 2 : 1)];
  if (depth % Limits::contraction_multiple != 0 && depth != unknown_dim) {
    scope.report(
        "m1-contraction", op, std::to_string(depth) + " products are summed");
  }
  if (depth > scope.options.limits.max_contraction) {
    scope.report(
        "deep-contraction", op, std::to_string(depth) + " products are summed");
  }
}

/// What an operation is looked at for.
struct Entry {
  std::string_view op;
  /// Reported whatever the arguments, if not empty.
  std::string_view rule;
  void (*look)(Scope& scope, const Operation& op) = nullptr;
};

// Sorted by operation.
constexpr Entry entries[] = {
    {"add", "", check_operands},
    {"avg_pool", "m3-op"},
    {"cast", "cast", check_cast},
    {"concat", "concat", check_concat},
    {"const", "", check_const},
    {"constexpr_blockwise_shift_scale", "", check_blockwise},
    {"conv", "", check_conv},
    {"conv_transpose", "", check_conv},
    {"cos", "m3-op"},
    {"cumsum", "rejected-op"},
    {"gather", "rejected-op"},
    {"gelu", "gelu"},
    {"inverse", "", check_epsilon},
    {"l2_norm", "rejected-op"},
    {"linear", "", check_contraction},
    {"matmul", "", check_contraction},
    {"maximum", "", check_operands},
    {"minimum", "", check_operands},
    {"mul", "", check_product},
    {"pow", "m1-op", check_operands},
    {"real_div", "", check_operands},
    {"rsqrt", "rsqrt", check_epsilon},
    {"scaled_dot_product_attention", "", check_attention},
    {"sigmoid", "inaccurate-op"},
    {"sin", "m3-op"},
    {"slice_by_index", "", check_slice},
    {"slice_by_size", "", check_slice},
    {"softplus", "inaccurate-op"},
    {"stack", "rejected-op"},
    {"sub", "", check_operands},
    {"tile", "rejected-op", check_tile},
    {"transpose", "m1-op"},
};
static_assert(std::is_sorted(
    std::begin(entries), std::end(entries), [](auto& a, auto& b) {
      return a.op < b.op;
    }));

}  // namespace

void check_operation(Scope& scope, const Operation& op) {
  check_family(scope, op);
  check_inline(scope, op);
  auto entry = std::lower_bound(
      std::begin(entries), std::end(entries), op.op, [](auto& entry, auto& op) {
        return entry.op < op;
      });
  if (entry != std::end(entries) && entry->op == op.op) {
    if (!entry->rule.empty()) {
      scope.report(entry->rule, op, op.op + " is used");
    }
    if (entry->look && !op.outputs.empty()) {
      entry->look(scope, op);
    }
  } else if (op.op.starts_with("reduce_") && !op.outputs.empty()) {
    check_reduction(scope, op);
  }
}

}  // namespace mlx_ane::mil
