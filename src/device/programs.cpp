// Builds the matmul programs in memory and writes them as MIL text.
#include "device/programs.h"

#include <algorithm>
#include <cstring>

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

Operation
operation(const std::string& op, const std::string& output, Shape shape) {
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

Operation matmul(
    const std::string& x,
    const std::string& y,
    const MatmulShape& shape) {
  auto out = operation("matmul", "o0_y", {1, 1, shape.s, shape.n});
  out.inputs = {
      {"transpose_x", ref("transpose_x")},
      {"transpose_y", ref("transpose_y")},
      {"x", ref(x)},
      {"y", ref(y)}};
  return out;
}

Shape input_shape(const MatmulShape& shape, int64_t rows) {
  return shape.layout == Layout::natural ? Shape{1, 1, rows, shape.k}
                                         : Shape{1, shape.k, 1, rows};
}

} // namespace

size_t input_surface_bytes(const MatmulShape& shape) {
  return surface_bytes({"", input_shape(shape, std::max(shape.s, shape.n)), 2});
}

mil::Program matmul_program(const MatmulShape& shape) {
  auto [s, k, n, layout] = shape;
  bool natural = layout == Layout::natural;
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
  if (natural) {
    main.operations.push_back(matmul("a0_x", "a1_w", shape));
  } else {
    auto dims = [](int64_t rows, int64_t cols) {
      return int32s(
          {1, 1, static_cast<int32_t>(rows), static_cast<int32_t>(cols)});
    };
    main.operations.push_back(constant("x_shape", dims(k, s)));
    main.operations.push_back(constant("w_shape", dims(k, n)));
    main.operations.push_back(reshape("x", "a0_x", "x_shape", {1, 1, k, s}));
    main.operations.push_back(reshape("w", "a1_w", "w_shape", {1, 1, k, n}));
    main.operations.push_back(matmul("x", "w", shape));
  }
  mil::Program program;
  program.functions = {std::move(main)};
  return program;
}

Source matmul_source(const MatmulShape& shape, mil::Dialect dialect) {
  auto program = matmul_program(shape);
  Source source;
  source.text = mil::write(program, dialect);
  auto& main = program.functions[0];
  for (auto& input : main.inputs) {
    source.inputs.push_back({input.name, input.type.shape, 2});
  }
  source.outputs = {{"o0_y", {1, 1, shape.s, shape.n}, 2}};
  return source;
}

} // namespace mlx_ane
