// The _ANEInMemoryModel route: programs from MIL text in memory.
#include <unistd.h>

#include <atomic>

#include "device/apple/connection.h"
#include "device/apple/route.h"
#include "device/apple/surface.h"

namespace mlx_ane::apple {

namespace {

constexpr const char* evaluate_selector =
    "evaluateWithQoS:options:request:error:";

constexpr std::initializer_list<Selector> needed = {
    {"_ANEInMemoryModelDescriptor",
     true,
     "modelWithMILText:weights:optionsPlist:",
     "pppp"},
    {"_ANEInMemoryModel", true, "inMemoryModelWithDescriptor:", "pp"},
    {"_ANEInMemoryModel", false, "hexStringIdentifier", "p"},
    {"_ANEInMemoryModel", false, "compileWithQoS:options:error:", "iipp"},
    {"_ANEInMemoryModel", false, "loadWithQoS:options:error:", "iipp"},
    {"_ANEInMemoryModel", false, evaluate_selector, "iippp"},
    {"_ANEInMemoryModel", false, "unloadWithQoS:error:", "iip"},
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

class InMemoryConnection : public Connection {
 public:
  InMemoryConnection(std::string chip, bool by_id)
      : chip_(std::move(chip)), by_id_(by_id) {
  }

  // The class writes its own files incompletely, so they are written for it: in
  // a directory of ours where it takes one, else where it will look.
  Ref prepare(const Source& source, std::unique_ptr<ProgramFiles>& files)
      const override {
    if (!by_id_ && takes_directory()) {
      Ref model(make_model(source));
      files = ProgramFiles::in_cache(source, chip_);
      send<void>(
          model.get(), "setModelURL:", file_url(files->directory().string()));
      return model;
    }
    auto tagged = source;
    tagged.text = with_tag(std::move(tagged.text));
    Ref model(make_model(tagged));
    files = ProgramFiles::in_directory(
        tagged,
        to_text(NSTemporaryDirectory()) + "/" +
            to_text(send(model.get(), "hexStringIdentifier")));
    return model;
  }
  bool compiled(id model) const override {
    return !responds(model, "compiledModelExists") ||
           send<ObjcBool>(model, "compiledModelExists");
  }
  bool compile(id model, id* error) const override {
    return send<ObjcBool>(
        model, "compileWithQoS:options:error:", qos, dictionary(), error);
  }
  bool load(id model, id* error) const override {
    return send<ObjcBool>(
        model, "loadWithQoS:options:error:", qos, dictionary(), error);
  }
  bool evaluate(id model, id request, id* error) const override {
    return send<ObjcBool>(
        model, evaluate_selector, qos, dictionary(), request, error);
  }
  bool unload(id model, id* error) const override {
    return send<ObjcBool>(model, "unloadWithQoS:error:", qos, error);
  }
  void purge(id model) const override {
    if (responds(model, "purgeCompiledModel")) {
      send<void>(model, "purgeCompiledModel");
    }
  }

 private:
  std::string chip_;
  bool by_id_;
};

class InMemoryRoute : public Route {
 public:
  InMemoryRoute(std::string chip, bool by_id)
      : connection_(
            std::make_shared<InMemoryConnection>(std::move(chip), by_id)) {
  }
  std::string_view name() const override {
    return "in_memory";
  }
  std::optional<std::string> unavailable() const override {
    static const auto missing = [] {
      void* handle = nullptr;
      auto error = open_private_framework("AppleNeuralEngine", &handle);
      error = error ? error : find_missing(needed);
      return error ? error : find_missing(shared_selectors);
    }();
    return missing;
  }
  std::shared_ptr<Surface> make_surface(size_t bytes, const Port&) override {
    return std::make_shared<IOSurfaceMemory>(bytes);
  }
  std::shared_ptr<Executable> compile(const Source& source) override {
    return make_framework_executable(connection_, source);
  }

 private:
  std::shared_ptr<const Connection> connection_;
};

}  // namespace

std::unique_ptr<Route> make_in_memory_route(std::string chip, bool by_id) {
  return std::make_unique<InMemoryRoute>(std::move(chip), by_id);
}

}  // namespace mlx_ane::apple
