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

Shape input_shape(const MatmulShape& shape, int64_t rows) {
  return shape.layout == Layout::natural ? Shape{1, 1, rows, shape.k}
                                         : Shape{1, shape.k, 1, rows};
}

}  // namespace

size_t input_surface_bytes(const MatmulShape& shape) {
  return surface_bytes({"", input_shape(shape, std::max(shape.s, shape.n)), 2});
}

mil::Program matmul_program(const MatmulShape& shape) {
  auto s = shape.s, k = shape.k, n = shape.n;
  bool natural = shape.layout == Layout::natural;
  mil::Function main;
  main.inputs = {
      {"a0_x", {DType::fp16, input_shape(shape, s)}},
      {"a1_w", {DType::fp16, input_shape(shape, n)}},
  };
  main.outputs = {"o0_y"};
  // Both layouts contract the last two axes: x wᵀ, or xᵀ w after the reshape.
  main.operations = {
      constant("transpose_x", boolean(!natural)),
      constant("transpose_y", boolean(natural)),
  };
  auto product = [&](const char* x, const char* w) {
    return matmul("o0_y", x, w, "transpose_x", "transpose_y", {1, 1, s, n});
  };
  if (natural) {
    main.operations.push_back(product("a0_x", "a1_w"));
  } else {
    auto dims = [](int64_t rows, int64_t cols) {
      return int32s(
          {1, 1, static_cast<int32_t>(rows), static_cast<int32_t>(cols)});
    };
    main.operations.push_back(constant("x_shape", dims(k, s)));
    main.operations.push_back(constant("w_shape", dims(k, n)));
    main.operations.push_back(reshape("x", "a0_x", "x_shape", {1, 1, k, s}));
    main.operations.push_back(reshape("w", "a1_w", "w_shape", {1, 1, k, n}));
    main.operations.push_back(product("x", "w"));
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
  auto masked = operation("add", "masked", scores);
  masked.inputs = {{"x", ref("scores")}, {"y", ref("a2_mask")}};
  auto softmax = operation("softmax", "weights", scores);
  softmax.inputs = {{"axis", ref("axis")}, {"x", ref("masked")}};
  Constant last_axis = int32s({-1});
  last_axis.type.shape = {};
  main.operations = {
      constant("yes", boolean(true)),
      constant("no", boolean(false)),
      constant("axis", last_axis),
      matmul("scores", "a0_q", "a1_k", "no", "yes", scores),
      masked,
      softmax,
      matmul("o0_y", "weights", "a3_v", "no", "no", {1, heads, rows, values}),
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
  return source_of(matmul_program(shape), dialect, {1, 1, shape.s, shape.n});
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
