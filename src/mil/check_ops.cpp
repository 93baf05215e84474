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
  } else if (scope.options.generation < needed) {
    scope.report(
        "later-chip",
        op,
        op.op + " needs h" + std::to_string(needed) + ", the chip is " +
            scope.options.chip);
  }
}

void check_refused(Scope& scope, const Operation& op) {
  if (contains("concat gelu rsqrt", op.op)) {
    scope.report(op.op, op, op.op + " is used");
  }
  if (op.op == "tile") {
    scope.report("tile-poison", op, "tile is used");
  }
  if (contains("gather stack l2_norm cumsum", op.op)) {
    scope.report("rejected-op", op, op.op + " is used");
  }
  if (contains("softplus sigmoid", op.op)) {
    scope.report("inaccurate-op", op, op.op + " is used");
  }
  if (op.op == "scaled_dot_product_attention" &&
      (find_input(op, "attn_mask") || find_attribute(op, "attn_mask"))) {
    scope.report("attention-mask", op, "attn_mask is given");
  }
  auto values = find_input(op, "values");
  auto tuple =
      values ? std::get_if<std::vector<Argument>>(&values->value) : nullptr;
  if (op.op == "concat" && tuple && tuple->size() != 2) {
    scope.report(
        "concat-inputs",
        op,
        std::to_string(tuple->size()) + " values are joined");
  }
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
  if (!scope.options.cast) {
    scope.report("cast", op, "the chip is " + scope.options.chip);
  }
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

void check_conv(Scope& scope, const Operation& op) {
  auto& limits = scope.options;
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
  if (channels > limits.max_conv_channels) {
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

void check_constexpr(Scope& scope, const Operation& op) {
  if (op.op != "constexpr_blockwise_shift_scale") {
    return;
  }
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
  auto starts = scope.integers(op, "begin");
  if (scope.options.narrow_slices && starts && !starts->empty() &&
      starts->back() != 0) {
    scope.report(
        "slice-width",
        op,
        "the last axis begins at " + std::to_string(starts->back()));
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

void check_product(Scope& scope, const Operation& op) {
  auto x = find_input(op, "x");
  auto y = find_input(op, "y");
  for (auto [one, other] : {std::pair{x, y}, {y, x}}) {
    auto producer = one ? scope.producer_of(*one) : nullptr;
    auto factor = other ? scope.constant_of(*other) : nullptr;
    if (producer && factor &&
        contains("reduce_sum reduce_mean", producer->op) && is_zero(*factor)) {
      scope.report(
          "multiply-reduced-by-zero", op, producer->op + " is multiplied by 0");
    }
  }
}

void check_contraction(Scope& scope, const Operation& op) {
  auto x = scope.input_type(op, "x");
  if (!x || x->shape.size() < 2) {
    return;
  }
  auto transpose = scope.constant(op, "transpose_x");
  bool swapped = transpose && as_integer(*transpose).value_or(0) != 0;
  auto depth = x->shape[x->shape.size() - (swapped ? 2 : 1)];
  if (depth > scope.options.max_contraction) {
    scope.report(
        "deep-contraction", op, std::to_string(depth) + " products are summed");
  }
}

}  // namespace

void check_operation(Scope& scope, const Operation& op) {
  check_family(scope, op);
  check_refused(scope, op);
  check_inline(scope, op);
  check_constexpr(scope, op);
  if (op.outputs.empty()) {
    return;
  }
  if (op.op == "const") {
    check_const(scope, op);
  } else if (op.op == "cast") {
    check_cast(scope, op);
  } else if (op.op == "conv" || op.op == "conv_transpose") {
    check_conv(scope, op);
  } else if (contains("slice_by_size slice_by_index", op.op)) {
    check_slice(scope, op);
  } else if (op.op.compare(0, 7, "reduce_") == 0) {
    check_reduction(scope, op);
  } else if (op.op == "mul") {
    check_product(scope, op);
  } else if (contains("matmul linear", op.op)) {
    check_contraction(scope, op);
  }
}

}  // namespace mlx_ane::mil
