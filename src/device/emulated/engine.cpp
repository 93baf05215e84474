// The emulated engine: compile, load and evaluate with their limits and faults.
#include "device/emulated/engine.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "device/emulated/faults.h"
#include "device/emulated/rules.h"
#include "device/emulated/state.h"
#include "device/emulated/surface_io.h"

namespace mlx_ane::emulated {

namespace {

/// FNV-1a over eight bytes at a time.
uint64_t hash_bytes(uint64_t hash, const void* data, size_t size) {
  constexpr uint64_t prime = 0x100000001b3;
  auto* bytes = static_cast<const unsigned char*>(data);
  for (; size >= 8; size -= 8, bytes += 8) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    hash = (hash ^ word) * prime;
    hash ^= hash >> 32;
  }
  for (; size > 0; --size, ++bytes) {
    hash = (hash ^ *bytes) * prime;
  }
  return hash;
}

uint64_t identity_of(std::string_view text, const Weights& weights) {
  auto hash = hash_bytes(0xcbf29ce484222325, text.data(), text.size());
  for (auto& [path, bytes] : weights) {
    hash = hash_bytes(hash, path.data(), path.size());
    if (bytes) {
      hash = hash_bytes(hash, bytes->data(), bytes->size());
    }
  }
  return hash;
}

/// Carries out the faults of a call that do not touch its results, and returns
/// those that do.
std::vector<InjectedFault> suffer(
    Site site, uint64_t program, const std::string& shapes) {
  auto stage = site == Site::compile    ? Stage::compile
               : site == Site::evaluate ? Stage::evaluate
                                        : Stage::load;
  std::vector<InjectedFault> rest;
  for (auto& injected : injected_faults(site, program, shapes)) {
    std::string name = to_string(injected.fault);
    auto refuse = [&](Answer answer) {
      return refusal(stage, answer, name, "injected fault");
    };
    switch (injected.fault) {
      case Fault::compile_error:
        throw refuse(Answer::compilation_failure);
      case Fault::load_fails:
      case Fault::load_fails_once:
      case Fault::out_of_memory:
        throw refuse(Answer::no_addresses);
      case Fault::cap_reached:
        throw refuse(Answer::too_many_programs);
      case Fault::evaluate_false:
      case Fault::first_call_fails:
      case Fault::device_gone:
        throw refuse(Answer::inference_error);
      default:
        if (!wait_out(injected)) {
          rest.push_back(injected);
        }
    }
  }
  return rest;
}

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
    const std::vector<mil::Value>& values, const std::vector<size_t>& order) {
  std::vector<mil::Value> out;
  for (auto i : order) {
    out.push_back(values[i]);
  }
  return out;
}

std::string shapes_of(const std::vector<mil::Value>& values) {
  std::string out;
  for (auto& value : values) {
    out += (out.empty() ? "" : ",") + value.name + "=";
    for (size_t d = 0; d < value.type.shape.size(); ++d) {
      out += (d ? "x" : "") + std::to_string(value.type.shape[d]);
    }
  }
  return out;
}

struct Procedure {
  /// `breaks`: what check_program found in the whole program.
  Procedure(
      std::unique_ptr<Graph> ready,
      const mil::Function& function,
      const std::vector<mil::Finding>& breaks)
      : graph(std::move(ready)),
        input_order(symbol_order(graph->inputs())),
        output_order(symbol_order(graph->outputs())),
        inputs(reorder(graph->inputs(), input_order)),
        outputs(reorder(graph->outputs(), output_order)),
        shapes(shapes_of(inputs) + "," + shapes_of(outputs)),
        name(function.name) {
    for (auto& finding : breaks) {
      if (finding.function != &function) {
        continue;
      }
      if (finding.rule->id == "sole-identity") {
        sole_identity = true;
      } else if (!refused && finding.rule->id != "tile-poison") {
        refused = finding;
      }
    }
  }

  std::unique_ptr<Graph> graph;
  std::vector<size_t> input_order, output_order;
  std::vector<mil::Value> inputs, outputs;
  std::string shapes;
  std::string name;
  bool sole_identity = false;
  std::optional<mil::Finding> refused;  // at every evaluation
};

/// Changes the share of a result that a fault asks for.
void corrupt(float* values, int64_t n, const InjectedFault& injected) {
  auto state = injected.random;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    if (static_cast<double>(state >> 11) * 0x1p-53 >= injected.share) {
      continue;
    }
    switch (injected.fault) {
      case Fault::nan:
        values[i] = __builtin_nanf("");
        break;
      case Fault::zeros:
        values[i] = 0.0f;
        break;
      default:
        values[i] = values[i] * 1.5f + 1.0f;
    }
  }
}

class Loaded : public EngineProgram {
 public:
  Loaded(
      std::vector<Procedure> procedures,
      const Options& options,
      uint64_t identity,
      uint64_t weight_bytes)
      : procedures_(std::move(procedures)),
        options_(options),
        limits_(limits_of_chip(options.chip)),
        identity_(identity),
        weight_bytes_(weight_bytes) {
  }
  ~Loaded() override {
    unload();
  }

  void load() override {
    if (resident_) {
      return;
    }
    suffer(Site::load, identity_, procedures_[0].shapes);
    if (options_.level == Level::off) {
      return;
    }
    auto cap = [&](const char* rule, auto most, auto none) {
      return enforced(options_, rule) ? most : none;
    };
    auto granted = acquire(
        identity_,
        weight_bytes_,
        cap("resident", int64_t{Limits::resident_programs}, INT64_MAX),
        cap("address-window", Limits::address_window, UINT64_MAX));
    if (granted == Residence::too_many_programs) {
      throw refusal("resident", "one program more");
    }
    if (granted == Residence::no_addresses) {
      throw refusal(
          "address-window",
          std::to_string(weight_bytes_) + " bytes of weights more");
    }
    resident_ = true;
  }

  void unload() override {
    if (resident_) {
      release(identity_);
      resident_ = false;
    }
  }

  size_t procedures() const override {
    return procedures_.size();
  }
  const std::string& name(size_t procedure) const override {
    return procedures_.at(procedure).name;
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
      std::span<const SurfaceBytes> outputs,
      bool exact) override {
    auto& p = procedures_.at(procedure);
    auto faults = suffer(Site::evaluate, identity_, p.shapes);
    if (poisoned() && enforced(options_, "tile-poison")) {
      throw refusal("tile-poison", "a program with tile was compiled before");
    }
    check_surfaces(p.inputs, p.outputs, inputs, outputs, options_);
    if (p.refused) {
      throw refusal(
          *p.refused->rule, p.refused->where + ": " + p.refused->what);
    }
    for (auto& fault : faults) {
      if (fault.fault == Fault::writes_nothing) {
        return;
      }
    }
    for (size_t i = 0; i < p.inputs.size(); ++i) {
      load_surface(
          inputs[i].data, p.inputs[i].type, p.graph->input(p.input_order[i]));
    }
    p.graph->run(exact ? numerics_of(limits_.generation) : Numerics::fast);
    if (p.sole_identity) {
      faults.push_back({Fault::nan, 0, 1.0, 0});
    }
    store(p, outputs, faults);
    for (size_t i = 0; i < p.inputs.size(); ++i) {
      if (p.inputs[i].type.state) {
        store_surface(
            p.graph->input(p.input_order[i]), p.inputs[i].type, inputs[i].data);
      }
    }
  }

 private:
  void store(
      Procedure& p,
      std::span<const SurfaceBytes> surfaces,
      const std::vector<InjectedFault>& faults) {
    for (size_t i = 0; i < p.outputs.size(); ++i) {
      auto& type = p.outputs[i].type;
      auto* values = p.graph->output(p.output_order[i]);
      if (faults.empty() || !mil::is_float(type.dtype)) {
        store_surface(values, type, surfaces[i].data);
        continue;
      }
      // A copy: the values may be constants or another output's.
      auto* from = static_cast<const float*>(values);
      std::vector<float> changed(from, from + elements(type.shape));
      for (auto& fault : faults) {
        corrupt(changed.data(), elements(type.shape), fault);
      }
      store_surface(changed.data(), type, surfaces[i].data);
    }
  }

  std::vector<Procedure> procedures_;
  const Options options_;
  const Limits& limits_;
  uint64_t identity_;
  uint64_t weight_bytes_;
  bool resident_ = false;
};

mil::Program parse_program(std::string_view text) {
  try {
    return mil::parse(text);
  } catch (const mil::ParseError& e) {
    throw refusal(Stage::parse, Answer::invalid_program, "malformed", e.what());
  }
}

std::unique_ptr<Graph> build_graph(
    const mil::Function& function,
    const Weights& weights,
    const Options& options,
    const Limits& limits) {
  try {
    return std::make_unique<Graph>(
        function, weights, limits.generation, options.memory_budget);
  } catch (const GraphError& e) {
    throw refusal(
        Stage::compile,
        Answer::invalid_program,
        e.op.empty() ? "invalid-program" : "invalid-operation",
        e.what());
  } catch (const MemoryError& e) {
    throw refusal(Stage::load, Answer::no_addresses, "memory-budget", e.what());
  }
}

}  // namespace

std::unique_ptr<EngineProgram> compile_program(
    std::string_view text, const Weights& weights, const Options& options) {
  auto& limits = limits_of_chip(options.chip);
  auto program = parse_program(text);
  if (program.functions.empty()) {
    throw refusal(
        Stage::parse, Answer::invalid_program, "malformed", "no function");
  }
  auto identity = identity_of(text, weights);
  suffer(Site::compile, identity, shapes_of(program.functions[0].inputs));
  if (options.level == Level::strict) {
    auto most = enforced(options, "compiles") ? int64_t{Limits::max_compiles}
                                              : INT64_MAX;
    if (!count_compile(most)) {
      throw refusal("compiles", "one compilation more");
    }
  }
  for (auto& function : program.functions) {
    for (auto& operation : function.operations) {
      if (options.refuse.contains(operation.op)) {
        throw refusal(
            Stage::compile,
            Answer::compilation_failure,
            "refused-operation",
            operation.op);
      }
    }
  }
  auto breaks = check_program(program, options, limits);
  std::vector<Procedure> procedures;
  for (auto& function : program.functions) {
    procedures.emplace_back(
        build_graph(function, weights, options, limits), function, breaks);
  }
  uint64_t weight_bytes = 0;
  for (auto& [path, bytes] : weights) {
    weight_bytes += bytes ? bytes->size() : 0;
  }
  return std::make_unique<Loaded>(
      std::move(procedures), options, identity, weight_bytes);
}

}  // namespace mlx_ane::emulated
