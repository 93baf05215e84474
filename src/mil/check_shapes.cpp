// Compares declared types with what common operations give.
#include <algorithm>
#include <optional>

#include "mil/check_scope.h"

namespace mlx_ane::mil {

namespace {

using Shape = std::vector<int64_t>;

bool is_known(const Type* type) {
  return type &&
         !std::count(type->shape.begin(), type->shape.end(), unknown_dim);
}

std::optional<Shape> broadcast(const Shape& a, const Shape& b) {
  Shape result(std::max(a.size(), b.size()), 1);
  for (size_t i = 1; i <= result.size(); ++i) {
    auto x = i <= a.size() ? a[a.size() - i] : 1;
    auto y = i <= b.size() ? b[b.size() - i] : 1;
    if (x != y && x != 1 && y != 1) {
      return std::nullopt;
    }
    result[result.size() - i] = x == 1 ? y : x;
  }
  return result;
}

bool flag(const Scope& scope, const Operation& op, std::string_view name) {
  auto constant = scope.constant(op, name);
  return constant && as_integer(*constant).value_or(0) != 0;
}

/// Reports operands that do not fit.
void misfit(Scope& scope, const Operation& op, const Type& x, const Type& y) {
  scope.report(
      "shape-mismatch",
      op,
      "the operands are " + to_text(x) + " and " + to_text(y));
}

std::optional<Shape> binary(Scope& scope, const Operation& op) {
  auto x = scope.input_type(op, "x");
  auto y = scope.input_type(op, "y");
  if (!is_known(x) || !is_known(y)) {
    return std::nullopt;
  }
  auto shape = broadcast(x->shape, y->shape);
  if (!shape || x->dtype != y->dtype) {
    misfit(scope, op, *x, *y);
    return std::nullopt;
  }
  return shape;
}

std::optional<Shape> matmul(Scope& scope, const Operation& op) {
  auto x = scope.input_type(op, "x");
  auto y = scope.input_type(op, "y");
  if (!is_known(x) || !is_known(y) || x->shape.size() < 2 ||
      y->shape.size() < 2) {
    return std::nullopt;
  }
  // Operands as (batch..., rows, depth) and (batch..., depth, columns).
  auto a = x->shape;
  auto b = y->shape;
  if (flag(scope, op, "transpose_x")) {
    std::swap(a.end()[-1], a.end()[-2]);
  }
  if (flag(scope, op, "transpose_y")) {
    std::swap(b.end()[-1], b.end()[-2]);
  }
  auto batch = broadcast({a.begin(), a.end() - 2}, {b.begin(), b.end() - 2});
  if (!batch || a.end()[-1] != b.end()[-2] || x->dtype != y->dtype) {
    misfit(scope, op, *x, *y);
    return std::nullopt;
  }
  batch->push_back(a.end()[-2]);
  batch->push_back(b.end()[-1]);
  return batch;
}

std::optional<Shape> transpose(Scope& scope, const Operation& op) {
  auto x = scope.input_type(op, "x");
  auto perm = scope.integers(op, "perm");
  if (!is_known(x) || !perm) {
    return std::nullopt;
  }
  int64_t rank = static_cast<int64_t>(x->shape.size());
  Shape shape;
  std::vector<bool> used(x->shape.size());
  for (auto axis : *perm) {
    axis += axis < 0 ? rank : 0;
    if (axis < 0 || axis >= rank || used[axis]) {
      scope.report("shape-mismatch", op, "perm is " + to_text(*perm));
      return std::nullopt;
    }
    used[axis] = true;
    shape.push_back(x->shape[axis]);
  }
  if (shape.size() != x->shape.size()) {
    scope.report("shape-mismatch", op, "perm is " + to_text(*perm));
    return std::nullopt;
  }
  return shape;
}

std::optional<Shape> reduction(Scope& scope, const Operation& op) {
  auto x = scope.input_type(op, "x");
  auto axes = scope.integers(op, "axes");
  if (!is_known(x) || !axes || !scope.constant(op, "keep_dims")) {
    return std::nullopt;
  }
  int64_t rank = static_cast<int64_t>(x->shape.size());
  auto shape = x->shape;
  for (auto axis : *axes) {
    axis += axis < 0 ? rank : 0;
    if (axis < 0 || axis >= rank) {
      scope.report("shape-mismatch", op, "axes are " + to_text(*axes));
      return std::nullopt;
    }
    shape[axis] = flag(scope, op, "keep_dims") ? 1 : unknown_dim;
  }
  std::erase(shape, unknown_dim);
  return shape;
}

std::optional<Shape> reshape(Scope& scope, const Operation& op) {
  auto x = scope.input_type(op, "x");
  auto& y = op.outputs[0].type;
  if (is_known(x) && is_known(&y) && element_count(*x) != element_count(y)) {
    scope.report(
        "shape-mismatch",
        op,
        "x is " + to_text(*x) + ", the result " + to_text(y));
  }
  return std::nullopt;
}

std::optional<Shape> concat(Scope& scope, const Operation& op) {
  auto values = find_input(op, "values");
  auto tuple =
      values ? std::get_if<std::vector<Argument>>(&values->value) : nullptr;
  auto axis = scope.integers(op, "axis");
  auto first =
      tuple && !tuple->empty() ? scope.type_of(tuple->front()) : nullptr;
  if (!axis || axis->size() != 1 || !is_known(first)) {
    return std::nullopt;
  }
  int64_t rank = static_cast<int64_t>(first->shape.size());
  int64_t at = axis->front();
  at += at < 0 ? rank : 0;
  if (at < 0 || at >= rank) {
    scope.report("shape-mismatch", op, "axis is " + to_text(*axis));
    return std::nullopt;
  }
  auto shape = first->shape;
  for (size_t i = 1; i < tuple->size(); ++i) {
    auto type = scope.type_of((*tuple)[i]);
    if (!is_known(type)) {
      return std::nullopt;
    }
    auto aligned = type->shape;
    if (aligned.size() == shape.size()) {
      aligned[at] = shape[at];
    }
    if (aligned != shape) {
      misfit(scope, op, *first, *type);
      return std::nullopt;
    }
    shape[at] += type->shape[at];
  }
  return shape;
}

std::optional<Shape> same_as_x(Scope& scope, const Operation& op) {
  auto x = scope.input_type(op, "x");
  return is_known(x) ? std::optional(x->shape) : std::nullopt;
}

std::optional<Shape> size(Scope& scope, const Operation& op) {
  return scope.integers(op, "size");
}

struct Inference {
  std::string_view op;
  std::optional<Shape> (*shape)(Scope& scope, const Operation& op);
};

// Sorted by operation.
constexpr Inference inferences[] = {
    {"abs", same_as_x},
    {"add", binary},
    {"batch_norm", same_as_x},
    {"cast", same_as_x},
    {"ceil", same_as_x},
    {"clip", same_as_x},
    {"concat", concat},
    {"elu", same_as_x},
    {"equal", binary},
    {"erf", same_as_x},
    {"exp", same_as_x},
    {"floor", same_as_x},
    {"floor_div", binary},
    {"gelu", same_as_x},
    {"greater", binary},
    {"greater_equal", binary},
    {"identity", same_as_x},
    {"instance_norm", same_as_x},
    {"inverse", same_as_x},
    {"l2_norm", same_as_x},
    {"layer_norm", same_as_x},
    {"leaky_relu", same_as_x},
    {"less", binary},
    {"less_equal", binary},
    {"log", same_as_x},
    {"matmul", matmul},
    {"maximum", binary},
    {"minimum", binary},
    {"mod", binary},
    {"mul", binary},
    {"not_equal", binary},
    {"pow", binary},
    {"real_div", binary},
    {"reduce_l1_norm", reduction},
    {"reduce_l2_norm", reduction},
    {"reduce_log_sum", reduction},
    {"reduce_log_sum_exp", reduction},
    {"reduce_max", reduction},
    {"reduce_mean", reduction},
    {"reduce_min", reduction},
    {"reduce_prod", reduction},
    {"reduce_sum", reduction},
    {"reduce_sum_square", reduction},
    {"relu", same_as_x},
    {"relu6", same_as_x},
    {"reshape", reshape},
    {"round", same_as_x},
    {"rsqrt", same_as_x},
    {"sigmoid", same_as_x},
    {"sign", same_as_x},
    {"silu", same_as_x},
    {"slice_by_size", size},
    {"softmax", same_as_x},
    {"softplus", same_as_x},
    {"softsign", same_as_x},
    {"sqrt", same_as_x},
    {"square", same_as_x},
    {"sub", binary},
    {"tanh", same_as_x},
    {"transpose", transpose},
};
static_assert(std::is_sorted(
    std::begin(inferences), std::end(inferences), [](auto& a, auto& b) {
      return a.op < b.op;
    }));

std::optional<Shape> inferred(Scope& scope, const Operation& op) {
  auto found = std::lower_bound(
      std::begin(inferences),
      std::end(inferences),
      op.op,
      [](auto& inference, auto& op) { return inference.op < op; });
  bool known = found != std::end(inferences) && found->op == op.op;
  return known ? found->shape(scope, op) : std::nullopt;
}

}  // namespace

void check_shapes(Scope& scope, const Operation& op) {
  if (op.outputs.size() != 1) {
    return;
  }
  auto shape = inferred(scope, op);
  auto& declared = op.outputs[0].type;
  // A size of -1 takes the rest of its axis.
  if (!shape || std::count(shape->begin(), shape->end(), -1) ||
      !is_known(&declared) || *shape == declared.shape) {
    return;
  }
  scope.report(
      "shape-mismatch",
      op,
      "the result is " + to_text(*shape) + ", declared is " +
          to_text(declared.shape));
}

}  // namespace mlx_ane::mil
