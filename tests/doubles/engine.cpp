// Stands the emulated engine behind the doubles of Apple's frameworks.
#include "device/emulated/engine.h"

#include <cstdio>
#include <memory>
#include <vector>

#include "device/emulated/emulated.h"
#include "device/emulated/faults.h"
#include "doubles.h"
#include "mil/limits.h"
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

EngineProgram& program(void* handle) {
  return *static_cast<EngineProgram*>(handle);
}

void* create(
    const char* text,
    size_t size,
    const double_weight* weights,
    size_t weight_count,
    double_status* status) {
  std::unique_ptr<EngineProgram> made;
  checked(status, [&] {
    emulated::Weights files;
    for (size_t i = 0; i < weight_count; ++i) {
      auto bytes = static_cast<const std::byte*>(weights[i].bytes);
      files[weights[i].name] = std::make_shared<const std::vector<std::byte>>(
          bytes, bytes + weights[i].size);
    }
    made = emulated::compile_program(
        std::string_view(text, size), files, emulated::options());
  });
  return made.release();
}

void load(void* handle, double_status* status) {
  checked(status, [&] { program(handle).load(); });
}

void run(
    void* handle,
    const double_memory* inputs,
    const double_memory* outputs,
    double_status* status,
    bool exact) {
  auto gather = [](const double_memory* memory, size_t count) {
    std::vector<SurfaceBytes> bytes;
    for (size_t i = 0; i < count; ++i) {
      bytes.push_back(
          {static_cast<std::byte*>(memory[i].bytes), memory[i].size});
    }
    return bytes;
  };
  auto& loaded = program(handle);
  checked(status, [&] {
    loaded.evaluate(
        0,
        gather(inputs, loaded.inputs(0).size()),
        gather(outputs, loaded.outputs(0).size()),
        exact);
  });
}

void evaluate(
    void* handle,
    const double_memory* inputs,
    const double_memory* outputs,
    double_status* status) {
  run(handle, inputs, outputs, status, emulated::options().exact);
}

void evaluate_as_cpu(
    void* handle,
    const double_memory* inputs,
    const double_memory* outputs,
    double_status* status) {
  run(handle, inputs, outputs, status, false);
}

void unload(void* handle) {
  program(handle).unload();
}

void destroy(void* handle) {
  delete static_cast<EngineProgram*>(handle);
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
    auto limits = mil::limits_of(emulated::options().chip);
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
    port_shape,
    evaluate_as_cpu,
    read_model,
    model_operations,
    model_operation,
    model_text,
    free_model,
};

[[maybe_unused]] const bool registered = (double_set_engine(&engine), true);

}  // namespace

}  // namespace mlx_ane
