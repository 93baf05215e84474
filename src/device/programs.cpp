// The MIL programs for matmul and attention: built in memory, written as text.
#include "device/programs.h"

#include <algorithm>
#include <cstring>

#include "device/block.h"

namespace mlx_ane {

namespace {

using mil::Argument;
using mil::Constant;
using mil::DType;
using mil::Operation;
using mil::Reference;
using Shape = std::vector<int64_t>;

Argument ref(const std::string& name) {
  return {Reference{name}, {}};
}

Operation operation(
    const std::string& op, const std::string& output, Shape shape) {
  Operation out;
  out.op = op;
  out.outputs = {{output, {DType::fp16, std::move(shape)}}};
  out.attributes = {
      {"name",
       Constant{{DType::string, {}}, std::vector<std::string>{output}}}};
  return out;
}

// name = const()[val = value]: attributes must be named constants, as inline
// literals are rejected by the in-memory route (Orion).
Operation constant(const std::string& name, Constant value) {
  auto out = operation("const", name, {});
  out.outputs[0].type = value.type;
  out.attributes.emplace_back("val", std::move(value));
  return out;
}

Constant boolean(bool value) {
  return {{DType::boolean, {}}, std::vector<uint8_t>{value}};
}

Constant int32s(const std::vector<int32_t>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(int32_t));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return {{DType::int32, {static_cast<int64_t>(values.size())}}, bytes};
}

Operation reshape(
    const std::string& output,
    const std::string& input,
    const std::string& shape_name,
    Shape shape) {
  auto out = operation("reshape", output, std::move(shape));
  out.inputs = {{"shape", ref(shape_name)}, {"x", ref(input)}};
  return out;
}

/// Transposition is by the constants of these names.
Operation matmul(
    const std::string& output,
    const std::string& x,
    const std::string& y,
    const std::string& transpose_x,
    const std::string& transpose_y,
    Shape shape) {
  auto out = operation("matmul", output, std::move(shape));
  out.inputs = {
      {"transpose_x", ref(transpose_x)},
      {"transpose_y", ref(transpose_y)},
      {"x", ref(x)},
      {"y", ref(y)}};
  return out;
}

Operation transpose(
    const std::string& output, const std::string& input, Shape shape) {
  auto out = operation("transpose", output, std::move(shape));
  out.inputs = {{"perm", ref("m0_perm")}, {"x", ref(input)}};
  return out;
}

Operation slice(
    const std::string& output,
    const std::string& begin,
    const std::string& size,
    Shape shape) {
  auto out = operation("slice_by_size", output, std::move(shape));
  out.inputs = {
      {"begin", ref(begin)}, {"size", ref(size)}, {"x", ref("a0_xw")}};
  return out;
}

Shape operand_shape(const MatmulShape& shape, int64_t rows, bool transposed) {
  switch (shape.layout) {
    case Layout::channels_first:
    case Layout::transposed:
      return {1, shape.k, 1, rows};
    case Layout::rank3:
    case Layout::weight_first:
      return transposed ? Shape{1, shape.k, rows} : Shape{1, rows, shape.k};
    default:
      return {1, 1, rows, shape.k};
  }
}

/// The ports of x and w, or the one of both.
std::vector<Port> matmul_inputs(const MatmulShape& shape) {
  if (shape.layout == Layout::single) {
    return {{"a0_xw", operand_shape(shape, shape.s + shape.n, false)}};
  }
  bool first = shape.layout == Layout::weight_first;
  return {
      {first ? "a1_x" : "a0_x",
       operand_shape(shape, shape.s, x_transposed(shape.layout))},
      {first ? "a0_w" : "a1_w",
       operand_shape(shape, shape.n, w_transposed(shape.layout))}};
}

Shape matmul_output(const MatmulShape& shape) {
  switch (shape.layout) {
    case Layout::rank3:
      return {1, shape.s, shape.n};
    case Layout::weight_first:
      return {1, shape.n, shape.s};
    default:
      return {1, 1, shape.s, shape.n};
  }
}

}  // namespace

size_t input_surface_bytes(const MatmulShape& shape) {
  auto rows = shape.layout == Layout::single ? shape.s + shape.n
                                             : std::max(shape.s, shape.n);
  return std::max(
      surface_bytes({"", operand_shape(shape, rows, false), 2}),
      surface_bytes({"", operand_shape(shape, rows, true), 2}));
}

mil::Program matmul_program(const MatmulShape& shape) {
  auto s = shape.s, k = shape.k, n = shape.n;
  auto layout = shape.layout;
  mil::Function main;
  for (auto& port : matmul_inputs(shape)) {
    main.inputs.push_back({port.name, {DType::fp16, port.shape}});
  }
  if (layout == Layout::weight_first) {
    std::swap(main.inputs[0], main.inputs[1]);
  }
  main.outputs = {"o0_y"};
  bool flag_x = layout == Layout::channels_first;
  bool flag_w = layout == Layout::natural || layout == Layout::rank3 ||
                layout == Layout::single;
  auto& operations = main.operations;
  operations = {
      constant("m0_transpose_x", boolean(flag_x)),
      constant("m0_transpose_y", boolean(flag_w)),
  };
  auto dims = [](std::vector<int64_t> sizes) {
    return int32s({sizes.begin(), sizes.end()});
  };
  auto product = [&](const char* x, const char* y) {
    operations.push_back(matmul(
        "o0_y",
        x,
        y,
        "m0_transpose_x",
        "m0_transpose_y",
        matmul_output(shape)));
  };
  switch (layout) {
    case Layout::natural:
    case Layout::rank3:
      product("a0_x", "a1_w");
      break;
    case Layout::weight_first:
      product("a0_w", "a1_x");
      break;
    case Layout::channels_first:
    case Layout::transposed: {
      operations.push_back(constant("m0_x_shape", dims({1, 1, k, s})));
      operations.push_back(constant("m0_w_shape", dims({1, 1, k, n})));
      operations.push_back(
          reshape("m0_xt", "a0_x", "m0_x_shape", {1, 1, k, s}));
      operations.push_back(reshape("m0_w", "a1_w", "m0_w_shape", {1, 1, k, n}));
      if (layout == Layout::transposed) {
        operations.push_back(constant("m0_perm", dims({0, 1, 3, 2})));
        operations.push_back(transpose("m0_x", "m0_xt", {1, 1, s, k}));
        product("m0_x", "m0_w");
      } else {
        product("m0_xt", "m0_w");
      }
      break;
    }
    case Layout::single:
      // Along the rows: at an offset of the last axis slices of large values
      // go wrong before M4 (ANEForge).
      operations.push_back(constant("m0_x_begin", dims({0, 0, 0, 0})));
      operations.push_back(constant("m0_x_size", dims({1, 1, s, k})));
      operations.push_back(constant("m0_w_begin", dims({0, 0, s, 0})));
      operations.push_back(constant("m0_w_size", dims({1, 1, n, k})));
      operations.push_back(
          slice("m0_x", "m0_x_begin", "m0_x_size", {1, 1, s, k}));
      operations.push_back(
          slice("m0_w", "m0_w_begin", "m0_w_size", {1, 1, n, k}));
      product("m0_x", "m0_w");
      break;
  }
  mil::Program program;
  program.functions = {std::move(main)};
  return program;
}

mil::Program attention_program(const AttentionShape& shape) {
  auto [heads, rows, keys, features, values, mask_per_head] = shape;
  Shape scores{1, heads, rows, keys};
  mil::Function main;
  main.inputs = {
      {"a0_q", {DType::fp16, {1, heads, rows, features}}},
      {"a1_k", {DType::fp16, {1, heads, keys, features}}},
      {"a2_mask", {DType::fp16, {1, mask_per_head ? heads : 1, rows, keys}}},
      {"a3_v", {DType::fp16, {1, heads, keys, values}}},
  };
  main.outputs = {"o0_y"};
  auto masked = operation("add", "m0_masked", scores);
  masked.inputs = {{"x", ref("m0_scores")}, {"y", ref("a2_mask")}};
  auto softmax = operation("softmax", "m0_weights", scores);
  softmax.inputs = {{"axis", ref("m0_axis")}, {"x", ref("m0_masked")}};
  Constant last_axis = int32s({-1});
  last_axis.type.shape = {};
  main.operations = {
      constant("m0_yes", boolean(true)),
      constant("m0_no", boolean(false)),
      constant("m0_axis", last_axis),
      matmul("m0_scores", "a0_q", "a1_k", "m0_no", "m0_yes", scores),
      masked,
      softmax,
      matmul(
          "o0_y",
          "m0_weights",
          "a3_v",
          "m0_no",
          "m0_no",
          {1, heads, rows, values}),
  };
  mil::Program program;
  program.functions = {std::move(main)};
  return program;
}

namespace {

Source source_of(
    const mil::Program& program, mil::Dialect dialect, Shape output_shape) {
  Source source;
  source.text = mil::write(program, dialect);
  for (auto& input : program.functions[0].inputs) {
    source.inputs.push_back({input.name, input.type.shape, 2});
  }
  source.outputs = {{"o0_y", std::move(output_shape), 2}};
  return source;
}

}  // namespace

Source matmul_source(const MatmulShape& shape, mil::Dialect dialect) {
  auto source = source_of(matmul_program(shape), dialect, matmul_output(shape));
  source.inputs = matmul_inputs(shape);  // x first, whatever the names
  return source;
}

Source attention_source(const AttentionShape& shape, mil::Dialect dialect) {
  return source_of(
      attention_program(shape),
      dialect,
      {1, shape.heads, shape.rows, shape.values});
}

Source program_source(const ProgramShape& shape, mil::Dialect dialect) {
  if (auto* matmul = std::get_if<MatmulShape>(&shape)) {
    return matmul_source(*matmul, dialect);
  }
  if (auto* attention = std::get_if<AttentionShape>(&shape)) {
    return attention_source(*attention, dialect);
  }
  return std::get<BlockShape>(shape).program->source(dialect);
}

std::strong_ordering BlockShape::operator<=>(const BlockShape& other) const {
  return program->id <=> other.program->id;
}

}  // namespace mlx_ane
