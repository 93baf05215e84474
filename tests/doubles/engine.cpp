// Stands the emulated engine behind the doubles of Apple's frameworks.
#include "device/emulated/engine.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <vector>

#include "device/emulated/emulated.h"
#include "device/emulated/faults.h"
#include "doubles.h"
#include "mil/limits.h"
#include "mil/program.h"
#include "mil/spec.h"

namespace mlx_ane {

namespace {

using emulated::EngineError;
using emulated::EngineProgram;
using emulated::SurfaceBytes;

void report(
    double_status* status, int code, const char* domain, const char* text) {
  status->failed = 1;
  status->code = code;
  std::snprintf(status->domain, sizeof(status->domain), "%s", domain);
  std::snprintf(status->text, sizeof(status->text), "%s", text);
}

/// Runs body; what it throws goes to *status.
template <class F>
void checked(double_status* status, F&& body) {
  try {
    body();
  } catch (const EngineError& error) {
    report(status, error.code, error.domain.c_str(), error.what());
  } catch (const std::exception& error) {
    report(status, 0, "", error.what());
  }
}

/// A program and what this machine does to it.
struct Made {
  std::unique_ptr<EngineProgram> engine;
  bool zeros = false;  // by its names
  double wait = 0;     // milliseconds of each call
  std::vector<std::vector<std::byte>> inputs, outputs;  // in rows of 64 bytes
};

Made& made(void* handle) {
  return *static_cast<Made*>(handle);
}

EngineProgram& program(void* handle) {
  return *made(handle).engine;
}

/// The emulated engine of this machine.
emulated::Options machine_options() {
  auto options = emulated::options();
  if (auto chip = double_machine("chip")) {
    options.chip = chip;
  }
  if (double_machine("exact")) {
    options.exact = true;
  }
  auto words = [](const char* list) {
    std::vector<std::string> out;
    std::istringstream stream(list ? list : "");
    for (std::string word; std::getline(stream, word, '|');) {
      out.push_back(word);
    }
    return out;
  };
  for (auto& rule : words(double_machine("allow"))) {
    options.allow.insert(rule);
  }
  for (auto& rule : words(double_machine("enforce"))) {
    options.allow.erase(rule);
  }
  return emulated::checked(options);
}

[[noreturn]] void refuse(const std::string& text) {
  throw EngineError(
      emulated::Stage::compile,
      "machine",
      1,
      "com.apple.appleneuralengine.compiler",
      "_ANECompiler : ANECCompile() FAILED: " + text);
}

/// A flag of an operation, by the constant of its name.
bool is_true(
    const mil::Function& main, const mil::Operation& op, const char* flag) {
  auto argument = mil::find_input(op, flag);
  auto name =
      argument ? std::get_if<mil::Reference>(&argument->value) : nullptr;
  for (auto& other : main.operations) {
    if (name && other.op == "const" && other.outputs[0].name == name->name) {
      auto value = mil::find_attribute(other, "val");
      return value && mil::as_integer(*value).value_or(0) != 0;
    }
  }
  return false;
}

/// What this machine refuses, delays or silently gets wrong.
void deviate(const mil::Function& main, Made& made) {
  int wide = 0;
  for (auto& input : main.inputs) {
    wide += input.type.shape.size() >= 4;
  }
  if (double_machine("rank4_pair") && wide >= 2) {
    refuse("CompilationFailure");
  }
  for (auto& op : main.operations) {
    if (double_machine_lists("refuse", op.op.c_str())) {
      refuse("InvalidMILProgram " + op.op);
    }
    for (auto& output : op.outputs) {
      for (auto name : {"x", "y", "mul", "add", "c", "var", "mean", "diff"}) {
        made.zeros |= double_machine("zero_names") && output.name == name;
      }
    }
    if (op.op == "matmul" && double_machine("slow_last_axis") &&
        !is_true(main, op, "transpose_x") && is_true(main, op, "transpose_y")) {
      double_wait(std::atof(double_machine("slow_last_axis")));
      made.wait = 100;
    }
  }
}

void* create(
    const char* text,
    size_t size,
    const double_weight* weights,
    size_t weight_count,
    double_status* status) {
  std::unique_ptr<Made> made;
  checked(status, [&] {
    emulated::Weights files;
    for (size_t i = 0; i < weight_count; ++i) {
      auto bytes = static_cast<const std::byte*>(weights[i].bytes);
      files[weights[i].name] = std::make_shared<const std::vector<std::byte>>(
          bytes, bytes + weights[i].size);
    }
    auto one = std::make_unique<Made>();
    one->engine = emulated::compile_program(
        std::string_view(text, size), files, machine_options());
    deviate(mil::parse(std::string_view(text, size)).functions.at(0), *one);
    made = std::move(one);
  });
  return made.release();
}

void load(void* handle, double_status* status) {
  checked(status, [&] { program(handle).load(); });
}

int64_t rows_of(const mil::Value& value) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < value.type.shape.size(); ++i) {
    rows *= value.type.shape[i];
  }
  return rows;
}

/// Bytes between rows: this machine's, or 64 at a time as everywhere else.
size_t stride(const mil::Value& value, size_t alignment) {
  auto bytes = static_cast<size_t>(value.type.shape.back()) * 2;
  return (bytes + alignment - 1) / alignment * alignment;
}

size_t alignment() {
  auto given = double_machine("row_stride");
  return given ? static_cast<size_t>(std::atoi(given)) : 64;
}

/// Memory as the emulated engine reads it; through `copies` where the machine's
/// rows lie otherwise.
std::vector<SurfaceBytes> gather(
    const double_memory* memory,
    const std::vector<mil::Value>& values,
    std::vector<std::vector<std::byte>>& copies) {
  std::vector<SurfaceBytes> bytes;
  copies.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    auto data = static_cast<std::byte*>(memory[i].bytes);
    auto from = stride(values[i], alignment()), to = stride(values[i], 64);
    if (from != to) {
      auto rows = static_cast<size_t>(rows_of(values[i]));
      copies[i].assign(memory[i].size, std::byte{0});
      for (size_t r = 0; r < rows && (r + 1) * from <= memory[i].size; ++r) {
        std::memcpy(copies[i].data() + r * to, data + r * from, to);
      }
      data = copies[i].data();
    }
    bytes.push_back({data, memory[i].size});
  }
  return bytes;
}

void scatter(
    const double_memory* memory,
    const std::vector<mil::Value>& values,
    const std::vector<std::vector<std::byte>>& copies) {
  for (size_t i = 0; i < values.size(); ++i) {
    auto from = stride(values[i], 64), to = stride(values[i], alignment());
    auto data = static_cast<std::byte*>(memory[i].bytes);
    auto rows = static_cast<size_t>(rows_of(values[i]));
    for (size_t r = 0;
         !copies[i].empty() && r < rows && (r + 1) * to <= memory[i].size;
         ++r) {
      std::memcpy(data + r * to, copies[i].data() + r * from, from);
    }
  }
}

/// Each half of the outputs, as this machine gives it.
template <class F>
void change(
    const double_memory* memory, const std::vector<mil::Value>& values, F f) {
  for (size_t i = 0; i < values.size(); ++i) {
    auto step = stride(values[i], alignment());
    for (int64_t r = 0; r < rows_of(values[i]); ++r) {
      auto row = reinterpret_cast<uint16_t*>(
          static_cast<std::byte*>(memory[i].bytes) + r * step);
      for (int64_t c = 0; c < values[i].type.shape.back(); ++c) {
        row[c] = f(row[c]);
      }
    }
  }
}

void evaluate(
    void* handle,
    int on_cpu,
    const double_memory* inputs,
    const double_memory* outputs,
    double_status* status) {
  auto& one = made(handle);
  auto& run = *one.engine;
  double_wait(one.wait);
  checked(status, [&] {
    if (double_machine("single_input") && run.inputs(0).size() > 1) {
      throw EngineError(
          emulated::Stage::evaluate,
          "machine",
          8,
          "com.apple.appleneuralengine",
          "ANEProgramProcessRequestDirect() Failed with status=0x1d : "
          "statusType=0x9 : Program Inference error");
    }
    auto in = gather(inputs, run.inputs(0), one.inputs);
    auto out = gather(outputs, run.outputs(0), one.outputs);
    if (double_machine("writes_nothing")) {
      return;
    }
    run.evaluate(0, in, out, machine_options().exact && !on_cpu);
    scatter(outputs, run.outputs(0), one.outputs);
    bool descending = false;
    for (size_t i = 0; i + 1 < run.inputs(0).size(); ++i) {
      descending |= inputs[i].size > inputs[i + 1].size;
    }
    if (one.zeros || (double_machine("ascending") && descending)) {
      change(outputs, run.outputs(0), [](uint16_t) { return uint16_t{0}; });
    }
    if (double_machine("overflow_zero") && !on_cpu) {
      change(outputs, run.outputs(0), [](uint16_t half) {
        return (half & 0x7fff) >= 0x7800 ? uint16_t{0} : half;  // 2^15
      });
    }
  });
}

void unload(void* handle) {
  program(handle).unload();
}

void destroy(void* handle) {
  delete static_cast<Made*>(handle);
}

const std::vector<mil::Value>& ports(void* handle, int output) {
  return output ? program(handle).outputs(0) : program(handle).inputs(0);
}

size_t port_count(void* handle, int output) {
  return ports(handle, output).size();
}

const char* port_name(void* handle, int output, size_t index) {
  return ports(handle, output).at(index).name.c_str();
}

const int64_t* port_shape(
    void* handle, int output, size_t index, size_t* rank) {
  auto& shape = ports(handle, output).at(index).type.shape;
  *rank = shape.size();
  return shape.data();
}

/// A Core ML model in memory.
struct Model {
  mil::Program program;
  std::string text;
};

void* read_model(const void* bytes, size_t size, double_status* status) {
  std::unique_ptr<Model> made;
  checked(status, [&] {
    auto program = mil::read_spec({static_cast<const char*>(bytes), size});
    // Core ML takes every dialect: the one that the engine here wants.
    auto limits = mil::limits_of(machine_options().chip);
    auto text = mil::write(
        program,
        limits.verbose_dialect ? mil::Dialect::ios16 : mil::Dialect::ios18);
    made = std::make_unique<Model>(Model{std::move(program), std::move(text)});
  });
  return made.release();
}

const Model& model(void* handle) {
  return *static_cast<Model*>(handle);
}

size_t model_operations(void* handle) {
  return model(handle).program.functions.at(0).operations.size();
}

const char* model_operation(void* handle, size_t index) {
  return model(handle).program.functions.at(0).operations.at(index).op.c_str();
}

const char* model_text(void* handle, size_t* size) {
  *size = model(handle).text.size();
  return model(handle).text.data();
}

void free_model(void* handle) {
  delete static_cast<Model*>(handle);
}

size_t row_bytes(void* handle, int output, size_t index) {
  return stride(ports(handle, output).at(index), alignment());
}

int refuses_surface() {
  bool refused = false;
  for (auto& injected : emulated::injected_faults(emulated::Site::surface)) {
    refused |= !emulated::wait_out(injected);
  }
  return refused;
}

constexpr double_engine engine = {
    refuses_surface,
    create,
    load,
    evaluate,
    unload,
    destroy,
    port_count,
    port_name,
    row_bytes,
    port_shape,
    read_model,
    model_operations,
    model_operation,
    model_text,
    free_model,
};

[[maybe_unused]] const bool registered = (double_set_engine(&engine), true);

}  // namespace

}  // namespace mlx_ane
