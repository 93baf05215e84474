// Checks of programs and surfaces against the engine's limits.
#include <algorithm>
#include <map>
#include <set>

#include "device/emulated/rules.h"
#include "device/emulated/surface_io.h"

namespace mlx_ane::emulated {

namespace {

using mil::Operation;

class ProgramCheck {
 public:
  ProgramCheck(const Options& options, const Limits& limits)
      : options_(options), limits_(limits) {
  }

  void run(const mil::Program& program) {
    require(
        "dialect",
        !limits_.verbose_dialect || program.version == "1.0",
        "program(" + program.version + ") on " + limits_.chip);
    for (auto& function : program.functions) {
      constants_.clear();
      reduced_.clear();
      folded_.clear();
      check_function(function);
    }
    check_chunks();
  }

 private:
  void require(const char* rule, bool ok, const std::string& got) const {
    if (!ok && enforced(options_, rule)) {
      throw refusal(rule, got);
    }
  }

  static std::string at(const Operation& operation) {
    auto name = operation.outputs.empty() ? "" : operation.outputs[0].name;
    return "line " + std::to_string(operation.location.line) + ", " +
           operation.op + " " + name;
  }

  void check_type(const Type& type, const std::string& where) const {
    auto got = where + " is " + to_string(type);
    require(
        "rank",
        type.shape.size() <= static_cast<size_t>(limits_.max_rank),
        got);
    for (size_t d = 0; d < type.shape.size(); ++d) {
      bool channels = d == 1 && type.shape.size() >= 4;
      require(
          channels ? "channels" : "axis",
          type.shape[d] <= (channels ? limits_.max_channels : limits_.max_axis),
          got);
    }
  }

  void check_port(const mil::Value& port) const {
    auto got = "port " + port.name + " is " + to_string(port.type);
    auto dtype = port.type.dtype;
    require("fp32-io", limits_.fp32_io || dtype != DType::fp32, got);
    bool small = dtype == DType::int8 || dtype == DType::uint8 ||
                 dtype == DType::int16 || dtype == DType::uint16;
    require("int8-io", !small, got);
    require(
        "io-dtype", small || dtype == DType::fp16 || dtype == DType::fp32, got);
    auto& shape = port.type.shape;
    require(
        "narrow-channels",
        shape.size() != 4 || shape[1] <= limits_.narrow_channels ||
            shape[3] >= limits_.min_width,
        got);
  }

  void check_function(const mil::Function& function) {
    for (auto& input : function.inputs) {
      check_type(input.type, "input " + input.name);
      check_port(input);
    }
    int blobs = 0;
    bool scalar = false;
    for (auto& operation : function.operations) {
      for (auto& output : operation.outputs) {
        check_type(output.type, at(operation));
        if (std::find(
                function.outputs.begin(),
                function.outputs.end(),
                output.name) != function.outputs.end()) {
          check_port(output);
        }
      }
      blobs += count_blobs(operation);
      scalar = scalar || has_scalar_operand(operation);
      check_operation(operation);
    }
    auto most = scalar ? limits_.max_blobs_with_scalar : limits_.max_blobs;
    require(
        "blobs",
        blobs <= most,
        std::to_string(blobs) + " in function " + function.name);
  }

  /// Constants that lie in weight files; their places are kept for
  /// check_chunks.
  int count_blobs(const Operation& operation) {
    int blobs = 0;
    auto count = [&](const mil::Constant& constant) {
      if (auto* blob = std::get_if<mil::Blob>(&constant.data)) {
        chunks_[blob->path].insert(blob->offset);
        ++blobs;
      }
    };
    for (auto& [name, attribute] : operation.attributes) {
      count(attribute);
    }
    for (auto& [name, argument] : operation.inputs) {
      if (auto* constant = std::get_if<mil::Constant>(&argument.value)) {
        count(*constant);
      }
    }
    return blobs;
  }

  const mil::Constant* constant_of(const mil::Argument& argument) const {
    if (auto* constant = std::get_if<mil::Constant>(&argument.value)) {
      return constant;
    }
    auto* reference = std::get_if<mil::Reference>(&argument.value);
    auto found =
        reference ? constants_.find(reference->name) : constants_.end();
    return found == constants_.end() ? nullptr : found->second;
  }

  bool has_scalar_operand(const Operation& operation) const {
    for (auto name : {"x", "y"}) {
      auto* argument = mil::find_input(operation, name);
      auto* constant = argument ? constant_of(*argument) : nullptr;
      if (constant && constant->type.shape.empty() &&
          mil::is_float(constant->type.dtype)) {
        return true;
      }
    }
    return false;
  }

  void check_operation(const Operation& operation) {
    auto& op = operation.op;
    auto where = at(operation);
    if (op == "const") {
      if (auto* value = mil::find_attribute(operation, "val");
          value && !operation.outputs.empty()) {
        constants_[operation.outputs[0].name] = value;
      }
      return;
    }
    if (op.starts_with("constexpr_") && !operation.outputs.empty()) {
      folded_.insert(operation.outputs[0].name);
    }
    for (auto& [name, argument] : operation.inputs) {
      auto* constant = std::get_if<mil::Constant>(&argument.value);
      require(
          "inline-arguments",
          !constant || constant->type.dtype != DType::boolean,
          where + " has " + name + " in place");
    }
    static const std::set<std::string> rejected = {
        "gather", "tile", "stack", "l2_norm", "cumsum"};
    require("rejected-op", !rejected.contains(op), where);
    require("concat", op != "concat", where);
    require("gelu", op != "gelu", where);
    require("rsqrt", op != "rsqrt", where);
    if (op == "cast") {
      check_cast(operation);
    } else if (op == "conv") {
      check_conv(operation);
    } else if (op == "scaled_dot_product_attention") {
      require(
          "attention-mask",
          mil::find_input(operation, "attn_mask") == nullptr,
          where);
    } else if (op.starts_with("reduce_")) {
      for (auto& output : operation.outputs) {
        reduced_.insert(output.name);
      }
    } else if (op == "mul") {
      check_mul(operation);
    }
  }

  void check_cast(const Operation& operation) const {
    require("cast", limits_.cast, at(operation) + " on " + limits_.chip);
    auto dtype = operation.outputs.empty() ? DType::fp16
                                           : operation.outputs[0].type.dtype;
    require(
        "cast-dtype",
        dtype != DType::int32 && dtype != DType::int4,
        at(operation) + " to " + mil::to_string(dtype));
  }

  void check_conv(const Operation& operation) const {
    auto where = at(operation);
    require("conv-bias", !mil::find_input(operation, "bias"), where);
    auto* weight = mil::find_input(operation, "weight");
    if (!weight || operation.outputs.empty()) {
      return;
    }
    auto* constant = constant_of(*weight);
    bool computed = constant == nullptr;
    if (auto* name = std::get_if<mil::Reference>(&weight->value)) {
      computed = computed && !folded_.contains(name->name);
    }
    require("conv-weight", !computed, where);
    if (constant && !constant->type.shape.empty()) {
      require(
          "kernel-width",
          constant->type.shape.size() < 3 ||
              constant->type.shape.back() <= limits_.max_kernel_width,
          where + " with weight " + to_string(constant->type));
    }
    auto& shape = operation.outputs[0].type.shape;
    require(
        "conv-channels",
        shape.size() < 2 || shape[1] <= limits_.max_conv_channels,
        where + " is " + to_string(operation.outputs[0].type));
  }

  void check_mul(const Operation& operation) const {
    bool reduced = false, zero = false;
    for (auto& [name, argument] : operation.inputs) {
      auto* reference = std::get_if<mil::Reference>(&argument.value);
      reduced = reduced || (reference && reduced_.contains(reference->name));
      auto* constant = constant_of(argument);
      auto* bytes = constant
                        ? std::get_if<std::vector<uint8_t>>(&constant->data)
                        : nullptr;
      zero = zero || (bytes && constant->type.shape.empty() &&
                      std::all_of(bytes->begin(), bytes->end(), [](auto b) {
                        return b == 0;
                      }));
    }
    require("multiply-reduced-by-zero", !reduced || !zero, at(operation));
  }

  void check_chunks() const {
    for (auto& [path, offsets] : chunks_) {
      require(
          "chunks",
          limits_.multi_chunk_files || offsets.size() <= 1,
          std::to_string(offsets.size()) + " chunks of \"" + path + "\" on " +
              limits_.chip);
    }
  }

  const Options& options_;
  const Limits& limits_;
  std::map<std::string, const mil::Constant*> constants_;
  std::set<std::string> folded_;  // results of constexpr operations
  std::set<std::string> reduced_;
  std::map<std::string, std::set<uint64_t>> chunks_;
};

}  // namespace

void check_program(
    const mil::Program& program, const Options& options, const Limits& limits) {
  ProgramCheck(options, limits).run(program);
}

void check_surfaces(
    const std::vector<mil::Value>& inputs,
    const std::vector<mil::Value>& outputs,
    std::span<const SurfaceBytes> input_surfaces,
    std::span<const SurfaceBytes> output_surfaces,
    const Options& options,
    const Limits& limits) {
  auto check = [&](auto& ports, auto surfaces, const std::string& kind) {
    auto require = [&](const char* rule, bool ok, const std::string& got) {
      if (!ok && enforced(options, rule)) {
        throw refusal(rule, got);
      }
    };
    // Fewer surfaces than ports or short ones cannot be run under any option.
    if (surfaces.size() != ports.size()) {
      throw refusal(
          "port-count",
          std::to_string(surfaces.size()) + " " + kind + " surfaces for " +
              std::to_string(ports.size()) + " ports");
    }
    for (size_t i = 0; i < ports.size(); ++i) {
      auto& type = ports[i].type;
      Port port{{}, type.shape, surface_element_bytes(type.dtype)};
      auto got = kind + " " + ports[i].name + " of type " + to_string(type) +
                 " has a surface of " + std::to_string(surfaces[i].size) +
                 " bytes";
      auto needed = surface_bytes(port);
      if (surfaces[i].size < needed) {
        throw refusal(
            "surface-size", got + ", needs " + std::to_string(needed));
      }
      require(
          "minimum-surface", surfaces[i].size >= limits.min_surface_bytes, got);
      require("uniform-surfaces", surfaces[i].size == surfaces[0].size, got);
      require(
          "width",
          !type.shape.empty() && type.shape.back() >= limits.min_width,
          got);
    }
  };
  check(inputs, input_surfaces, "input");
  check(outputs, output_surfaces, "output");
}

}  // namespace mlx_ane::emulated
