// A program of AppleNeuralEngine.framework: compile, load, bind, evaluate,
// unload.
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "device/apple/binding.h"
#include "device/apple/bounds.h"
#include "device/apple/connection.h"
#include "device/apple/surface.h"
#include "device/apple/system.h"

namespace mlx_ane::apple {

namespace {

constexpr auto pause = std::chrono::milliseconds(100);

constexpr const char* request_selector =
    "requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:"
    "perfStats:procedureIndex:";

/// The error's own words, with domain and code, without the final full stop.
std::string reason(id error) {
  auto text = describe(error, "no reason given");
  if (responds(error, "code") && text.find("Code=") == text.npos) {
    text = to_text(send(error, "domain")) +
           " Code=" + std::to_string(send<long>(error, "code")) + " " + text;
  }
  if (text.ends_with('.')) {
    text.pop_back();
  }
  return text;
}

/// Reported texts of a full engine: too many programs, no memory.
Cause load_cause(const std::string& reason) {
  if (reason.find("0x50004") != std::string::npos) {
    return Cause::cap_reached;
  }
  if (reason.find("Code=53") != std::string::npos ||
      reason.find("no memory") != std::string::npos) {
    return Cause::out_of_memory;
  }
  return Cause::load_failed;
}

/// nullopt, or why the step failed; an exception is a failure.
template <class F>
std::optional<std::string> attempt(Cause cause, const char* what, F&& step) {
  std::optional<std::string> failure;
  try {
    guarded(cause, what, [&] {
      id error = nullptr;
      if (!step(&error)) {
        failure = reason(error);
      }
    });
  } catch (const DeviceError& error) {
    if (error.cause != cause) {
      throw;
    }
    failure = error.what();
  }
  return failure;
}

/// Everything that an abandoned call may still touch. Calls do not overlap.
class Program {
 public:
  explicit Program(std::shared_ptr<const Connection> connection)
      : connection_(std::move(connection)) {
  }
  ~Program() {
    close();
  }
  void open(const Source& source);
  void evaluate(
      std::span<Surface* const> inputs, std::span<Surface* const> outputs);
  const Binding& binding() const {
    return binding_;
  }

 private:
  void compile();
  /// Runs a step and adds its time to the facts.
  template <class F>
  void timed(const char* step, F&& body);
  std::optional<std::string> try_load();
  void load(const Source& source);
  void close();
  id make_request(
      std::span<Surface* const> inputs, std::span<Surface* const> outputs);

  std::shared_ptr<const Connection> connection_;
  Ref model_;
  std::unique_ptr<ProgramFiles> files_;
  Binding binding_;
  std::map<std::string, std::string> times_;
  bool loaded_ = false;
};

template <class F>
void Program::timed(const char* step, F&& body) {
  auto start = std::chrono::steady_clock::now();
  body();
  std::chrono::duration<double> taken =
      std::chrono::steady_clock::now() - start;
  times_[step] = std::to_string(taken.count());
}

void Program::open(const Source& source) {
  try {
    guarded(Cause::compile_failed, "compiling a program", [&] {
      model_ = connection_->prepare(source, files_);
      // The daemon owns what was compiled, not the folder (oMLX).
      bool compiled = files_->compiled() && connection_->compiled(model_.get());
      if (!compiled) {
        if (files_->compiled()) {
          files_->restage(source);
        }
        timed("compile seconds", [&] { compile(); });
      }
      timed("load seconds", [&] { load(source); });
      files_->settle();
      binding_ = bind_ports(model_.get(), source);
      binding_.facts.merge(times_);
    });
  } catch (const std::filesystem::filesystem_error& error) {
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] program files: " + std::string(error.what()) + ".");
  }
}

// Every second compile of one report fails at first and is right after 100 ms
// (maderix).
void Program::compile() {
  auto once = [&] {
    return attempt(
        Cause::compile_failed, "compiling a program", [&](id* error) {
          return connection_->compile(model_.get(), error);
        });
  };
  auto failure = once();
  if (failure) {
    std::this_thread::sleep_for(pause);
    failure = once();
  }
  if (failure) {
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] the engine's compiler rejected the program: " +
            *failure + ".");
  }
}

std::optional<std::string> Program::try_load() {
  return attempt(Cause::load_failed, "loading a program", [&](id* error) {
    return loaded_ = connection_->load(model_.get(), error);
  });
}

// A first load may fail for no lasting reason; a cached compile may be stale,
// which some frameworks tell by an exception. A full engine stays full.
void Program::load(const Source& source) {
  auto may_pass = [](const std::optional<std::string>& failure) {
    return failure && load_cause(*failure) == Cause::load_failed;
  };
  auto failure = try_load();
  if (may_pass(failure) && files_->compiled()) {
    connection_->purge(model_.get());
    files_->restage(source);
    compile();
    failure = try_load();
  }
  if (may_pass(failure)) {
    std::this_thread::sleep_for(pause);
    failure = try_load();
  }
  if (failure) {
    throw DeviceError(
        load_cause(*failure),
        "[mlx_ane.ane] the engine did not load the program: " + *failure + ".");
  }
}

id Program::make_request(
    std::span<Surface* const> inputs, std::span<Surface* const> outputs) {
  auto wrappers = [](std::span<Surface* const> surfaces,
                     const std::vector<Symbol>& symbols) {
    auto objects = array();
    for (auto& symbol : symbols) {
      auto surface = dynamic_cast<IOSurfaceMemory*>(surfaces[symbol.port]);
      if (surface == nullptr) {
        throw DeviceError(
            Cause::evaluate_failed,
            "[mlx_ane.ane] got a surface of another device, need one of "
            "this route's make_surface.");
      }
      append(objects, surface->wrapper());
    }
    return objects;
  };
  auto indices = [](const std::vector<Symbol>& symbols) {
    auto numbers = array();
    for (auto& symbol : symbols) {
      append(numbers, number(symbol.index));
    }
    return numbers;
  };
  auto request = send(
      class_named("_ANERequest"),
      request_selector,
      wrappers(inputs, binding_.inputs),
      indices(binding_.inputs),
      wrappers(outputs, binding_.outputs),
      indices(binding_.outputs),
      id(nullptr),
      id(nullptr),
      number(0));
  if (request == nullptr) {
    throw DeviceError(
        Cause::evaluate_failed,
        "[mlx_ane.ane] the framework gave no request for the surfaces.");
  }
  return request;
}

void Program::evaluate(
    std::span<Surface* const> inputs, std::span<Surface* const> outputs) {
  guarded(Cause::evaluate_failed, "evaluating a program", [&] {
    id error = nullptr;
    if (!connection_->evaluate(
            model_.get(), make_request(inputs, outputs), &error)) {
      throw DeviceError(
          Cause::evaluate_failed,
          "[mlx_ane.ane] the engine failed to evaluate the program: " +
              reason(error) + ".");
    }
  });
}

void Program::close() {
  if (!in_same_process()) {
    model_.leak();
    return;
  }
  try {
    guarded(Cause::load_failed, "unloading a program", [&] {
      id error = nullptr;
      if (std::exchange(loaded_, false)) {
        connection_->unload(model_.get(), &error);
      }
      model_ = Ref();
    });
  } catch (const DeviceError&) {
    // A failed unload leaves nothing to do.
  }
  files_.reset();
}

class FrameworkExecutable : public Executable {
 public:
  FrameworkExecutable(
      std::shared_ptr<const Connection> connection, const Source& source)
      : program_(std::make_shared<Program>(std::move(connection))) {
    // A call that was given up ends, and unloads, on its own worker.
    within(
        bounds().open,
        "compiling and loading a program",
        [program = program_, source] { program->open(source); });
  }

  ~FrameworkExecutable() override {
    if (!in_same_process()) {
      return;
    }
    let_go([program = std::move(program_)]() mutable { program.reset(); });
  }

  size_t row_bytes(const Port& port) const override {
    auto& known = program_->binding().row_bytes;
    auto found = known.find(port.name);
    return found == known.end() ? Executable::row_bytes(port) : found->second;
  }

  std::map<std::string, std::string> facts() const override {
    return program_->binding().facts;
  }

  void evaluate(
      std::span<Surface* const> inputs,
      std::span<Surface* const> outputs) override;

 private:
  std::mutex mutex_;
  std::shared_ptr<Program> program_;
};

void FrameworkExecutable::evaluate(
    std::span<Surface* const> inputs, std::span<Surface* const> outputs) {
  require_same_process();
  auto& binding = program_->binding();
  if (inputs.size() != binding.inputs.size() ||
      outputs.size() != binding.outputs.size()) {
    throw DeviceError(
        Cause::evaluate_failed,
        "[mlx_ane.ane] got " + std::to_string(inputs.size()) + " inputs and " +
            std::to_string(outputs.size()) + " outputs, need " +
            std::to_string(binding.inputs.size()) + " and " +
            std::to_string(binding.outputs.size()) + ".");
  }
  std::lock_guard lock(mutex_);
  program_->evaluate(inputs, outputs);
}

}  // namespace

const std::initializer_list<Selector> shared_selectors = {
    {"_ANEIOSurfaceObject", true, "objectWithIOSurface:", "pp"},
    {"_ANERequest", true, request_selector, "pppppppp"},
};

std::shared_ptr<Executable> make_framework_executable(
    std::shared_ptr<const Connection> connection, const Source& source) {
  return std::make_shared<FrameworkExecutable>(std::move(connection), source);
}

}  // namespace mlx_ane::apple
