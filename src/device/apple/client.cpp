// The _ANEClient route: programs from a folder of files, without the wrapper
// whose compiles are reported to leak (maderix#54).
#include "device/apple/connection.h"
#include "device/apple/route.h"
#include "device/apple/surface.h"

namespace mlx_ane::apple {

namespace {

constexpr const char* evaluate_selector =
    "evaluateWithModel:options:request:qos:error:";

constexpr std::initializer_list<Selector> needed = {
    {"_ANEModel", true, "modelAtURL:key:", "ppp"},
    {"_ANEClient", true, "sharedConnection", "p"},
    {"_ANEClient", false, "compileModel:options:qos:error:", "ippip"},
    {"_ANEClient", false, "loadModel:options:qos:error:", "ippip"},
    {"_ANEClient", false, evaluate_selector, "ipppip"},
    {"_ANEClient", false, "unloadModel:options:qos:error:", "ippip"},
};

id client() {
  return send(class_named("_ANEClient"), "sharedConnection");
}

class ClientConnection : public Connection {
 public:
  explicit ClientConnection(std::string chip) : chip_(std::move(chip)) {
  }

  Ref prepare(const Source& source, std::unique_ptr<ProgramFiles>& files)
      const override {
    files = ProgramFiles::in_cache(source, chip_);
    auto path = files->directory().string();
    Ref model(send(
        class_named("_ANEModel"),
        "modelAtURL:key:",
        file_url(path),
        string(path)));
    if (!model || client() == nullptr) {
      throw DeviceError(
          Cause::compile_failed,
          model ? "[mlx_ane.ane] the framework gave no connection."
                : "[mlx_ane.ane] the framework gave no model for the folder.");
    }
    return model;
  }
  bool compiled(id model) const override {
    return !responds(client(), "compiledModelExistsFor:") ||
           send<ObjcBool>(client(), "compiledModelExistsFor:", model);
  }
  bool compile(id model, id* error) const override {
    auto options = dictionary();
    set(options, string("kANEFModelType"), string("kANEFModelMIL"));
    set(options, string("kANEFNetPlistFilenameKey"), string("model.mil"));
    return send<ObjcBool>(
        client(),
        "compileModel:options:qos:error:",
        model,
        options,
        qos,
        error);
  }
  bool load(id model, id* error) const override {
    return send<ObjcBool>(
        client(),
        "loadModel:options:qos:error:",
        model,
        dictionary(),
        qos,
        error);
  }
  bool evaluate(id model, id request, id* error) const override {
    return send<ObjcBool>(
        client(), evaluate_selector, model, dictionary(), request, qos, error);
  }
  bool unload(id model, id* error) const override {
    return send<ObjcBool>(
        client(),
        "unloadModel:options:qos:error:",
        model,
        dictionary(),
        qos,
        error);
  }
  void purge(id model) const override {
    if (responds(client(), "purgeCompiledModel:")) {
      send<void>(client(), "purgeCompiledModel:", model);
    }
  }

 private:
  std::string chip_;
};

class ClientRoute : public Route {
 public:
  explicit ClientRoute(std::string chip)
      : connection_(std::make_shared<ClientConnection>(std::move(chip))) {
  }
  std::string_view name() const override {
    return "client";
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

std::unique_ptr<Route> make_client_route(std::string chip) {
  return std::make_unique<ClientRoute>(std::move(chip));
}

}  // namespace mlx_ane::apple
