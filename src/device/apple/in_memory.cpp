// The _ANEInMemoryModel route: compile, load, bind by name, evaluate, unload.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

#include "device/apple/binding.h"
#include "device/apple/objc.h"
#include "device/apple/program_files.h"
#include "device/apple/route.h"
#include "device/apple/surface.h"
#include "device/apple/system.h"

namespace mlx_ane::apple {

namespace {

constexpr unsigned qos = 21;
constexpr const char* evaluate_selector =
    "evaluateWithQoS:options:request:error:";
constexpr const char* request_selector =
    "requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:"
    "perfStats:procedureIndex:";

/// The classes and selectors that this route needs.
constexpr Selector needed[] = {
    {"_ANEInMemoryModelDescriptor",
     true,
     "modelWithMILText:weights:optionsPlist:"},
    {"_ANEInMemoryModel", true, "inMemoryModelWithDescriptor:"},
    {"_ANEInMemoryModel", false, "hexStringIdentifier"},
    {"_ANEInMemoryModel", false, "compileWithQoS:options:error:"},
    {"_ANEInMemoryModel", false, "loadWithQoS:options:error:"},
    {"_ANEInMemoryModel", false, evaluate_selector},
    {"_ANEInMemoryModel", false, "unloadWithQoS:error:"},
    {"_ANEIOSurfaceObject", true, "objectWithIOSurface:"},
    {"_ANERequest", true, request_selector},
};

/// "the error's description" without its final full stop, for our sentence.
std::string reason(id error) {
  auto text = describe(error, "no reason given");
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

class InMemoryExecutable : public Executable {
 public:
  InMemoryExecutable(const Source& source, const std::string& chip);
  ~InMemoryExecutable() override;
  void evaluate(
      std::span<Surface* const> inputs,
      std::span<Surface* const> outputs) override;

 private:
  void open(const Source& source, const std::string& chip);
  void stage(const Source& source, const std::string& chip);
  void compile();
  /// nullopt, or why the load failed.
  std::optional<std::string> try_load();
  void load(const Source& source);
  void close();
  id make_request(
      std::span<Surface* const> inputs, std::span<Surface* const> outputs);

  std::mutex mutex_;
  Ref model_;
  std::unique_ptr<ProgramFiles> files_;
  Binding binding_;
  bool loaded_ = false;
};

id make_model(const Source& source) {
  auto weights = dictionary();
  for (auto& [path, bytes] : source.weights) {
    auto entry = dictionary();
    set(entry, string("offset"), number(0));
    set(entry, string("data"), data(bytes->data(), bytes->size()));
    set(weights, string(path), entry);
  }
  auto descriptor = send(
      class_named("_ANEInMemoryModelDescriptor"),
      "modelWithMILText:weights:optionsPlist:",
      data(source.text.data(), source.text.size()),
      weights,
      id(nullptr));
  auto model = descriptor == nullptr ? nullptr
                                     : send(
                                           class_named("_ANEInMemoryModel"),
                                           "inMemoryModelWithDescriptor:",
                                           descriptor);
  if (model == nullptr) {
    throw DeviceError(
        Cause::compile_failed,
        descriptor == nullptr
            ? "[mlx_ane.ane] the framework gave no descriptor for the program."
            : "[mlx_ane.ane] the framework gave no model for the descriptor.");
  }
  return model;
}

InMemoryExecutable::InMemoryExecutable(
    const Source& source, const std::string& chip) {
  try {
    guarded(Cause::compile_failed, "compiling a program", [&] {
      open(source, chip);
    });
  } catch (const std::filesystem::filesystem_error& error) {
    close();
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] program files: " + std::string(error.what()) + ".");
  } catch (...) {
    close();
    throw;
  }
}

bool takes_directory() {
  return class_respondsToSelector(
      reinterpret_cast<Class>(class_named("_ANEInMemoryModel")),
      sel_registerName("setModelURL:"));
}

/// The text with a buildInfo pair of its own: the framework names its directory
/// by content, and two live models must not share one.
std::string with_tag(std::string text) {
  static std::atomic<int> next{0};
  auto at = text.find("({", text.find("buildInfo"));
  if (at != std::string::npos) {
    auto tag = std::to_string(getpid()) + "-" + std::to_string(next++);
    auto separator = text.compare(at + 2, 1, "{") == 0 ? ", " : "";
    text.insert(at + 2, "{\"mlx_ane\", \"" + tag + "\"}" + separator);
  }
  return text;
}

void InMemoryExecutable::open(const Source& given, const std::string& chip) {
  auto source = given;
  if (!takes_directory()) {
    source.text = with_tag(std::move(source.text));
  }
  model_ = Ref(make_model(source));
  stage(source, chip);
  if (!files_->compiled()) {
    compile();
  }
  load(source);
  files_->settle();
  binding_ = bind_ports(model_.get(), source);
}

// The class writes its own files incompletely, so they are written for it: in a
// directory of ours where it takes one, else where it will look.
void InMemoryExecutable::stage(const Source& source, const std::string& chip) {
  if (takes_directory()) {
    files_ = ProgramFiles::in_cache(source, chip);
    send<void>(
        model_.get(), "setModelURL:", file_url(files_->directory().string()));
  } else {
    files_ = ProgramFiles::in_directory(
        source,
        to_text(NSTemporaryDirectory()) + "/" +
            to_text(send(model_.get(), "hexStringIdentifier")));
  }
}

void InMemoryExecutable::compile() {
  id error = nullptr;
  if (!send<ObjcBool>(
          model_.get(),
          "compileWithQoS:options:error:",
          qos,
          dictionary(),
          &error)) {
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] the engine's compiler rejected the program: " +
            reason(error) + ".");
  }
}

std::optional<std::string> InMemoryExecutable::try_load() {
  id error = nullptr;
  loaded_ = send<ObjcBool>(
      model_.get(), "loadWithQoS:options:error:", qos, dictionary(), &error);
  return loaded_ ? std::nullopt : std::optional(reason(error));
}

// A first load may fail for no lasting reason; a cached compile may be stale. A
// full engine stays full.
void InMemoryExecutable::load(const Source& source) {
  auto may_pass = [](const std::optional<std::string>& failure) {
    return failure && load_cause(*failure) == Cause::load_failed;
  };
  auto failure = try_load();
  if (may_pass(failure) && files_->compiled()) {
    files_->restage(source);
    compile();
    failure = try_load();
  }
  if (may_pass(failure)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    failure = try_load();
  }
  if (failure) {
    throw DeviceError(
        load_cause(*failure),
        "[mlx_ane.ane] the engine did not load the program: " + *failure + ".");
  }
}

id InMemoryExecutable::make_request(
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

void InMemoryExecutable::evaluate(
    std::span<Surface* const> inputs, std::span<Surface* const> outputs) {
  require_same_process();
  if (inputs.size() != binding_.inputs.size() ||
      outputs.size() != binding_.outputs.size()) {
    throw DeviceError(
        Cause::evaluate_failed,
        "[mlx_ane.ane] got " + std::to_string(inputs.size()) + " inputs and " +
            std::to_string(outputs.size()) + " outputs, need " +
            std::to_string(binding_.inputs.size()) + " and " +
            std::to_string(binding_.outputs.size()) + ".");
  }
  std::lock_guard lock(mutex_);
  guarded(Cause::evaluate_failed, "evaluating a program", [&] {
    id error = nullptr;
    if (!send<ObjcBool>(
            model_.get(),
            evaluate_selector,
            qos,
            dictionary(),
            make_request(inputs, outputs),
            &error)) {
      throw DeviceError(
          Cause::evaluate_failed,
          "[mlx_ane.ane] the engine failed to evaluate the program: " +
              reason(error) + ".");
    }
  });
}

InMemoryExecutable::~InMemoryExecutable() {
  close();
}

void InMemoryExecutable::close() {
  if (!in_same_process()) {
    model_.leak();
    return;
  }
  try {
    guarded(Cause::load_failed, "unloading a program", [&] {
      id error = nullptr;
      if (std::exchange(loaded_, false)) {
        send<ObjcBool>(model_.get(), "unloadWithQoS:error:", qos, &error);
      }
      model_ = Ref();
    });
  } catch (const DeviceError&) {
    // A failed unload leaves nothing to do.
  }
  files_.reset();
}

class InMemoryRoute : public Route {
 public:
  explicit InMemoryRoute(std::string chip) : chip_(std::move(chip)) {
  }
  std::string_view name() const override {
    return "in_memory";
  }
  std::optional<std::string> unavailable() const override {
    static const auto missing = find_missing();
    return missing;
  }
  std::shared_ptr<Surface> make_surface(size_t bytes, const Port&) override {
    return std::make_shared<IOSurfaceMemory>(bytes);
  }
  std::shared_ptr<Executable> compile(const Source& source) override {
    return std::make_shared<InMemoryExecutable>(source, chip_);
  }

 private:
  static std::optional<std::string> find_missing();
  std::string chip_;
};

std::optional<std::string> InMemoryRoute::find_missing() {
  void* handle = nullptr;
  if (auto error = open_private_framework("AppleNeuralEngine", &handle)) {
    return error;
  }
  return missing_selector(needed);
}

}  // namespace

std::unique_ptr<Route> make_in_memory_route(std::string chip) {
  return std::make_unique<InMemoryRoute>(std::move(chip));
}

}  // namespace mlx_ane::apple
