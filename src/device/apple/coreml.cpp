// The Core ML route: public API only; Core ML decides where a program runs, and
// is asked.
#include <chrono>
#include <mutex>
#include <vector>

#include "device/apple/bounds.h"
#include "device/apple/coreml_block.h"
#include "device/apple/coreml_package.h"
#include "device/apple/coreml_placement.h"
#include "device/apple/coreml_surface.h"
#include "device/apple/program_files.h"
#include "device/apple/route.h"
#include "device/apple/staging.h"
#include "device/apple/system.h"
#include "mil/chips.h"
#include "mil/spec.h"

namespace mlx_ane::apple {

namespace {

using namespace coreml;
namespace fs = std::filesystem;

constexpr const char* asset_selector = "modelAssetWithSpecificationData:error:";
constexpr const char* load_asset_selector =
    "loadModelAsset:configuration:completionHandler:";
constexpr const char* load_url_selector =
    "loadContentsOfURL:configuration:completionHandler:";

constexpr std::initializer_list<Selector> needed = {
    {"MLModelAsset", true, asset_selector, "ppp"},
    {"MLModel", true, load_asset_selector, "vppp"},
    {"MLModel", true, "compileModelAtURL:completionHandler:", "vpp"},
    {"MLModel", true, "modelWithContentsOfURL:configuration:error:", "pppp"},
    {"MLModel", true, "availableComputeDevices", "p"},
    {"MLModel", false, "predictionFromFeatures:options:error:", "pppp"},
    {"MLModelConfiguration", false, "setComputeUnits:", "vi"},
    {"MLComputePlan", true, load_asset_selector, "vppp"},
    {"MLComputePlan", true, load_url_selector, "vppp"},
    {"MLComputePlan", false, "computeDeviceUsageForMLProgramOperation:", "pp"},
    {"MLMultiArray", false, "initWithPixelBuffer:shape:", "ppp"},
    {"MLMultiArray", false, "getBytesWithHandler:", "vp"},
    {"MLFeatureValue", true, "featureValueWithMultiArray:", "pp"},
    {"MLDictionaryFeatureProvider", false, "initWithDictionary:error:", "ppp"},
    {"MLPredictionOptions", false, "setOutputBackings:", "vp"},
};

/// How the programs of this process were placed, for device_info.
struct Record {
  std::mutex mutex;
  /// By what is known of them: Fingerprint's words, and "on the CPU".
  std::map<std::string, int> programs;
  std::string last_elsewhere;
  int64_t copied_outputs = 0;
  bool from_files = false;
};

// Leaked: abandoned workers may outlive static destructors.
Record& record() {
  static auto* instance = new Record;
  return *instance;
}

id new_object(const char* cls) {
  return send(send(send(class_named(cls), "alloc"), "init"), "autorelease");
}

id configuration() {
  auto made = new_object("MLModelConfiguration");
  send<void>(made, "setComputeUnits:", cpu_and_engine);
  return made;
}

/// A loaded model, or why Core ML would not run it on the engine.
struct Loaded {
  Ref model;
  std::optional<std::string> elsewhere;
  /// What is known of where it runs.
  std::string placement;
  /// Files that the model may read while it lives, removed with it.
  std::vector<fs::path> files;

  Loaded() = default;
  Loaded(Loaded&&) = default;
  Loaded& operator=(Loaded&&) = default;
  ~Loaded() {
    if (!in_same_process()) {
      model.leak();
      return;
    }
    try {
      guarded(Cause::load_failed, "releasing a model", [&] { model = Ref(); });
    } catch (const DeviceError&) {
      // A model that cannot be released leaves nothing to do.
    }
    std::error_code ignored;
    for (auto& file : files) {
      fs::remove_all(file, ignored);
    }
  }
};

void predict(
    id model,
    const Source& source,
    std::span<Surface* const> inputs,
    std::span<Surface* const> outputs);

/// Loads one program. Every step ends at `deadline`, or throws.
class Loader {
 public:
  Loader(const Source& source, bool knows_rounding, Deadline deadline)
      : source_(source), knows_rounding_(knows_rounding), deadline_(deadline) {
  }

  Loaded load() {
    mil::Program program;
    try {
      program = mil::parse(source_.text);
      spec_ = mil::model_spec(program);
    } catch (const std::invalid_argument& error) {
      throw DeviceError(Cause::compile_failed, error.what());
    }
    Loaded out;
    if (source_.weights.empty()) {
      try {
        load_asset(out);
      } catch (const DeviceError& error) {
        if (!may_be_of_memory(error)) {
          throw;
        }
      }
    }
    if (!out.model && !out.elsewhere) {
      load_files(out);
    }
    judge(program, out);
    return out;
  }

 private:
  static bool of_compiler(const DeviceError& error) {
    return std::string_view(error.what()).find("ANECCompile") !=
           std::string_view::npos;
  }
  /// The engine's compiler fails on the same program from a file, too.
  static bool may_be_of_memory(const DeviceError& error) {
    return error.cause != Cause::hang && !of_compiler(error);
  }

  void load_asset(Loaded& out) {
    id error = nullptr;
    auto asset = send(
        class_named("MLModelAsset"),
        asset_selector,
        data(spec_.data(), spec_.size()),
        &error);
    if (asset == nullptr) {
      throw DeviceError(
          Cause::compile_failed,
          "[mlx_ane.ane] Core ML took no model from memory: " +
              error_text(error) + ".");
    }
    ask_plan(load_asset_selector, asset, out);
    if (out.elsewhere) {
      return;
    }
    Completion loaded;
    send<void>(
        class_named("MLModel"),
        load_asset_selector,
        asset,
        configuration(),
        loaded.handler());
    try {
      out.model = loaded.wait(
          deadline_, Cause::load_failed, "Core ML's load of a model");
    } catch (const DeviceError& error) {
      if (of_compiler(error)) {
        throw DeviceError(Cause::compile_failed, error.what());
      }
      throw;
    }
  }

  void load_files(Loaded& out) {
    out.files.push_back(make_private_directory());
    auto package = write_package(out.files[0], spec_, source_);
    Completion compiled;
    send<void>(
        class_named("MLModel"),
        "compileModelAtURL:completionHandler:",
        file_url(package.string()),
        compiled.handler());
    auto url = compiled.wait(
        deadline_, Cause::compile_failed, "Core ML's compilation of a package");
    out.files.push_back(to_text(send(url.get(), "path")));
    ask_plan(load_url_selector, url.get(), out);
    if (out.elsewhere) {
      return;
    }
    id error = nullptr;
    out.model = Ref(send(
        class_named("MLModel"),
        "modelWithContentsOfURL:configuration:error:",
        url.get(),
        configuration(),
        &error));
    if (!out.model) {
      throw DeviceError(
          Cause::load_failed,
          "[mlx_ane.ane] Core ML's load of a package failed: " +
              error_text(error) + ".");
    }
    std::lock_guard lock(record().mutex);
    record().from_files = true;
  }

  /// A system that gives no plan leaves the placement unknown.
  void ask_plan(const char* selector, id asset_or_url, Loaded& out) {
    Completion planned;
    send<void>(
        class_named("MLComputePlan"),
        selector,
        asset_or_url,
        configuration(),
        planned.handler());
    Ref plan;
    try {
      plan = planned.wait(
          deadline_, Cause::load_failed, "Core ML's plan of a model");
    } catch (const DeviceError& error) {
      if (error.cause == Cause::hang) {
        throw;
      }
    }
    auto found = read_plan(plan.get());
    planned_ = found.engine;
    out.elsewhere = found.elsewhere;
  }

  void judge(const mil::Program& program, Loaded& out) {
    auto rounding = Fingerprint::unknown;
    if (!out.elsewhere && is_product(program, source_)) {
      rounding = ask_rounding(out);
      if (rounding == Fingerprint::cpu && knows_rounding_) {
        out.elsewhere =
            "Core ML's answer is rounded as its CPU rounds, whatever its plan "
            "says";
        out.model = Ref();
      }
    }
    bool asked = rounding == Fingerprint::cpu ||
                 (planned_ && rounding == Fingerprint::unknown);
    std::lock_guard lock(record().mutex);
    out.placement = out.elsewhere ? "on the CPU"
                    : asked       ? to_string(Fingerprint::cpu)
                                  : to_string(rounding);
    ++record().programs[out.placement];
    if (out.elsewhere) {
      record().last_elsewhere = *out.elsewhere;
    }
  }

  Fingerprint ask_rounding(const Loaded& out) const {
    size_t bytes = Limits::min_surface_bytes;
    for (auto* ports : {&source_.inputs, &source_.outputs}) {
      for (auto& port : *ports) {
        bytes = std::max(bytes, surface_bytes(port));
      }
    }
    return coreml::ask_rounding(
        source_, round_surface(bytes, {}), [&](auto inputs, auto outputs) {
          guarded(Cause::evaluate_failed, "evaluating a program", [&] {
            predict(out.model.get(), source_, inputs, outputs);
          });
        });
  }

  const Source& source_;
  const bool knows_rounding_;
  const Deadline deadline_;
  std::string spec_;
  bool planned_ = false;
};

/// Loads on a worker, as any of Core ML's calls may never return.
Loaded load_bounded(const Source& source, bool knows_rounding) {
  auto bound = bounds().open;
  struct Call {
    Source source;
    std::optional<Loaded> loaded;
  };
  auto call = std::make_shared<Call>();
  call->source = source;
  auto deadline = std::chrono::steady_clock::now() + bound;
  auto body = [call, knows_rounding, deadline] {
    guarded(Cause::load_failed, "loading a model", [&] {
      call->loaded = Loader(call->source, knows_rounding, deadline).load();
    });
  };
  // A handler that does not come ends the worker first, and says at what.
  within(bound + std::chrono::seconds(1), "Core ML's load of a model", body);
  return std::move(*call->loaded);
}

PixelSurface& surface_of(Surface* surface, const Port& port) {
  auto* pixels = dynamic_cast<PixelSurface*>(surface);
  if (pixels == nullptr || pixels->shape() != port.shape) {
    throw DeviceError(
        Cause::evaluate_failed,
        "[mlx_ane.ane] got another surface for port " + port.name +
            ", need one that this route's make_surface made for it.");
  }
  return *pixels;
}

void predict(
    id model,
    const Source& source,
    std::span<Surface* const> inputs,
    std::span<Surface* const> outputs) {
  auto failed = [](const std::string& what) {
    return DeviceError(
        Cause::evaluate_failed, "[mlx_ane.ane] Core ML " + what + ".");
  };
  if (inputs.size() != source.inputs.size() ||
      outputs.size() != source.outputs.size()) {
    throw failed("got other numbers of surfaces than the program has ports");
  }
  id error = nullptr;
  auto features = dictionary(), backings = dictionary();
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto& port = source.inputs[i];
    set(features, string(port.name), surface_of(inputs[i], port).feature());
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto& port = source.outputs[i];
    set(backings, string(port.name), surface_of(outputs[i], port).array());
  }
  auto provider = send(
      send(class_named("MLDictionaryFeatureProvider"), "alloc"),
      "initWithDictionary:error:",
      features,
      &error);
  if (provider == nullptr) {
    throw failed("took no inputs: " + error_text(error));
  }
  send(provider, "autorelease");
  auto options = new_object("MLPredictionOptions");
  send<void>(options, "setOutputBackings:", backings);
  auto result = send(
      model,
      "predictionFromFeatures:options:error:",
      provider,
      options,
      &error);
  if (result == nullptr) {
    throw failed("failed to predict: " + error_text(error));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto& port = source.outputs[i];
    auto& surface = surface_of(outputs[i], port);
    auto value = send(result, "featureValueForName:", string(port.name));
    auto array = value ? send(value, "multiArrayValue") : nullptr;
    // Core ML may leave a backing alone and answer in memory of its own.
    if (!surface.holds(array)) {
      copy_array(array, surface, port);
      std::lock_guard lock(record().mutex);
      ++record().copied_outputs;
    }
  }
}

class CoreMLExecutable : public Executable {
 public:
  CoreMLExecutable(const Source& source, bool knows_rounding)
      : source_{{}, {}, source.inputs, source.outputs},
        loaded_(load_bounded(source, knows_rounding)) {
  }
  std::optional<std::string> elsewhere() const override {
    return loaded_.elsewhere;
  }
  std::map<std::string, std::string> facts() const override {
    return {{"placement", loaded_.placement}};
  }
  void evaluate(
      std::span<Surface* const> inputs,
      std::span<Surface* const> outputs) override {
    require_same_process();
    std::lock_guard lock(mutex_);
    guarded(Cause::evaluate_failed, "evaluating a program", [&] {
      if (!loaded_.model) {
        throw DeviceError(
            Cause::evaluate_failed,
            "[mlx_ane.ane] " + *loaded_.elsewhere + ".");
      }
      predict(loaded_.model.get(), source_, inputs, outputs);
    });
  }

 private:
  std::mutex mutex_;
  const Source source_;  // its ports
  Loaded loaded_;
};

std::optional<std::string> what_is_missing() {
  void* handle = nullptr;
  if (auto error = open_framework("Frameworks", "CoreML", &handle)) {
    return error;
  }
  if (auto error = open_core_video()) {
    return error;
  }
  if (auto missing = find_missing(needed)) {
    return *missing + " (route coreml needs macOS 14.4)";
  }
  bool engine = false;
  guarded(Cause::unavailable, "asking for compute devices", [&] {
    auto devices = send(class_named("MLModel"), "availableComputeDevices");
    for (size_t i = 0; i < count(devices); ++i) {
      engine |= send<ObjcBool>(
          element(devices, i),
          "isKindOfClass:",
          class_named("MLNeuralEngineComputeDevice"));
    }
  });
  return engine ? std::nullopt
                : std::optional<std::string>(
                      "Core ML knows no Neural Engine on this Mac");
}

class CoreMLRoute : public Route {
 public:
  explicit CoreMLRoute(const std::string& chip) {
    // M1 is reported to round as a CPU does, and so may a chip that nobody
    // reported: there a CPU cannot be told from the engine.
    auto known = mil::find_chip(chip);
    knows_rounding_ = known && !chip.starts_with("h13");
  }
  std::string_view name() const override {
    return "coreml";
  }
  std::optional<std::string> unavailable() const override {
    static const auto missing = what_is_missing();
    return missing;
  }
  std::shared_ptr<Surface> make_surface(
      size_t bytes, const Port& port) override {
    return std::make_shared<PixelSurface>(
        std::max(bytes, surface_bytes(port)), port);
  }
  std::shared_ptr<Executable> compile(const Source& source) override {
    return std::make_shared<CoreMLExecutable>(source, knows_rounding_);
  }
  std::map<std::string, std::string> facts() const override {
    std::lock_guard lock(record().mutex);
    std::map<std::string, std::string> out;
    std::string programs;
    for (auto& [words, number] : record().programs) {
      programs +=
          (programs.empty() ? "" : ", ") + std::to_string(number) + " " + words;
    }
    if (!programs.empty()) {
      out["coreml_programs"] = programs;
      out["coreml_models"] = record().from_files ? "from files" : "from memory";
    }
    if (!record().last_elsewhere.empty()) {
      out["coreml_elsewhere"] = record().last_elsewhere;
    }
    if (record().copied_outputs > 0) {
      out["coreml_copied_outputs"] = std::to_string(record().copied_outputs);
    }
    return out;
  }

 private:
  bool knows_rounding_;
};

}  // namespace

std::unique_ptr<Route> make_coreml_route(const std::string& chip) {
  return std::make_unique<CoreMLRoute>(chip);
}

}  // namespace mlx_ane::apple
