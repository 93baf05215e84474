// Stages of the emulated engine.
#include "device/emulated/engine.h"

#include <algorithm>
#include <numeric>

#include "device/emulated/surface_io.h"

namespace mlx_ane::emulated {

namespace {

constexpr auto engine_domain = "com.apple.appleneuralengine";

/// Positions of values in the order of their names.
std::vector<size_t> symbol_order(const std::vector<mil::Value>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return values[a].name < values[b].name;
  });
  return order;
}

std::vector<mil::Value> reorder(
    const std::vector<mil::Value>& values,
    const std::vector<size_t>& order) {
  std::vector<mil::Value> out;
  for (auto i : order) {
    out.push_back(values[i]);
  }
  return out;
}

struct Procedure {
  explicit Procedure(std::unique_ptr<Graph> ready)
      : graph(std::move(ready)),
        input_order(symbol_order(graph->inputs())),
        output_order(symbol_order(graph->outputs())),
        inputs(reorder(graph->inputs(), input_order)),
        outputs(reorder(graph->outputs(), output_order)) {}

  std::unique_ptr<Graph> graph;
  std::vector<size_t> input_order, output_order;
  std::vector<mil::Value> inputs, outputs;
};

class Loaded : public EngineProgram {
 public:
  explicit Loaded(std::vector<Procedure> procedures)
      : procedures_(std::move(procedures)) {}

  void load() override {}
  void unload() override {}
  size_t procedures() const override {
    return procedures_.size();
  }
  const std::vector<mil::Value>& inputs(size_t procedure) const override {
    return procedures_.at(procedure).inputs;
  }
  const std::vector<mil::Value>& outputs(size_t procedure) const override {
    return procedures_.at(procedure).outputs;
  }

  void evaluate(
      size_t procedure,
      std::span<const SurfaceBytes> inputs,
      std::span<const SurfaceBytes> outputs) override {
    auto& p = procedures_.at(procedure);
    for (size_t i = 0; i < p.inputs.size(); ++i) {
      load_surface(
          inputs[i].data,
          p.inputs[i].type,
          p.graph->input(p.input_order[i]));
    }
    p.graph->run(Numerics::fast);
    for (size_t i = 0; i < p.outputs.size(); ++i) {
      store_surface(
          p.graph->output(p.output_order[i]),
          p.outputs[i].type,
          outputs[i].data);
    }
  }

 private:
  std::vector<Procedure> procedures_;
};

} // namespace

const char* to_string(Stage stage) {
  constexpr const char* names[] = {"parse", "compile", "load", "evaluate"};
  return names[static_cast<int>(stage)];
}

std::unique_ptr<EngineProgram> compile_program(
    std::string_view text,
    const Weights& weights) {
  mil::Program program;
  try {
    program = mil::parse(text);
  } catch (const mil::ParseError& e) {
    throw EngineError(
        Stage::parse,
        "malformed",
        0,
        engine_domain,
        std::string("InvalidMILProgram: ") + e.what());
  }
  std::vector<Procedure> procedures;
  for (auto& function : program.functions) {
    try {
      procedures.emplace_back(std::make_unique<Graph>(
          function, weights, "h16g", int64_t{4} << 30));
    } catch (const GraphError& e) {
      throw EngineError(
          Stage::compile,
          "invalid-program",
          0,
          engine_domain,
          std::string("InvalidMILProgram: ") + e.what());
    }
  }
  return std::make_unique<Loaded>(std::move(procedures));
}

} // namespace mlx_ane::emulated
