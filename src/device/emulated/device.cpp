// The Device contract over the emulated engine: surfaces in memory, ports by
// name.
#include <algorithm>
#include <new>

#include "device/emulated/emulated.h"
#include "device/emulated/engine.h"
#include "device/emulated/faults.h"
#include "device/emulated/state.h"
#include "device/emulated/surface_io.h"

namespace mlx_ane {

namespace {

using emulated::EngineError;
using emulated::EngineProgram;
using emulated::SurfaceBytes;

class MemorySurface : public Surface {
 public:
  explicit MemorySurface(size_t bytes)
      : bytes_(bytes),
        data_(
            static_cast<std::byte*>(
                ::operator new(bytes, std::align_val_t{alignment}))) {
  }
  ~MemorySurface() override {
    ::operator delete(data_, std::align_val_t{alignment});
  }
  MemorySurface(const MemorySurface&) = delete;
  MemorySurface& operator=(const MemorySurface&) = delete;

  size_t bytes() const override {
    return bytes_;
  }
  std::byte* lock(Access) override {
    return data_;
  }
  void unlock(Access) override {
  }

 private:
  static constexpr size_t alignment = 128;  // maderix#35
  size_t bytes_;
  std::byte* data_;
};

DeviceError translate(const EngineError& e) {
  static const std::map<std::string, Cause> causes = {
      {"device_gone", Cause::unavailable},
      {"out_of_memory", Cause::out_of_memory},
      {"memory-budget", Cause::out_of_memory},
      {"cap_reached", Cause::cap_reached},
      {"resident", Cause::cap_reached},
      {"address-window", Cause::cap_reached},
      {"compiles", Cause::cap_reached},
  };
  auto cause = Cause::compile_failed;
  if (auto found = causes.find(e.rule); found != causes.end()) {
    cause = found->second;
  } else if (e.stage == emulated::Stage::load) {
    cause = Cause::load_failed;
  } else if (e.stage == emulated::Stage::evaluate) {
    cause = Cause::evaluate_failed;
  }
  return {cause, e.what()};
}

/// For each port of the engine, which port of the caller has its name.
std::vector<size_t> match_ports(
    const std::vector<mil::Value>& values,
    const std::vector<Port>& ports,
    const char* kind) {
  auto refuse = [&](const std::string& why) {
    return DeviceError(
        Cause::compile_failed,
        std::string("[mlx_ane.emulated] ") + kind + " " + why);
  };
  if (values.size() != ports.size()) {
    throw refuse(
        "ports: the program has " + std::to_string(values.size()) +
        ", the caller names " + std::to_string(ports.size()) + ".");
  }
  std::vector<size_t> order;
  for (auto& value : values) {
    size_t i = 0;
    while (i < ports.size() && ports[i].name != value.name) {
      ++i;
    }
    if (i == ports.size()) {
      throw refuse("port " + value.name + " of the program is not named.");
    }
    if (ports[i].shape != value.type.shape ||
        ports[i].element_size !=
            emulated::surface_element_bytes(value.type.dtype)) {
      throw refuse(
          "port " + value.name + " is " + emulated::to_string(value.type) +
          " in the program, but the caller says " +
          emulated::to_string(ports[i].shape) + " of " +
          std::to_string(ports[i].element_size) + " bytes each.");
    }
    order.push_back(i);
  }
  return order;
}

class EmulatedExecutable : public Executable {
 public:
  EmulatedExecutable(
      std::unique_ptr<EngineProgram> program, const Source& source)
      : program_(std::move(program)),
        input_order_(match_ports(program_->inputs(0), source.inputs, "input")),
        output_order_(
            match_ports(program_->outputs(0), source.outputs, "output")) {
  }

  void evaluate(
      std::span<Surface* const> inputs,
      std::span<Surface* const> outputs) override {
    Locked in(inputs, input_order_, Surface::Access::read);
    Locked out(outputs, output_order_, Surface::Access::write);
    try {
      program_->evaluate(0, in.bytes, out.bytes, emulated::options().exact);
    } catch (const EngineError& e) {
      throw translate(e);
    }
  }

 private:
  /// Locks of all surfaces, in symbol order.
  struct Locked {
    Locked(
        std::span<Surface* const> all,
        const std::vector<size_t>& order,
        Surface::Access access) {
      if (all.size() != order.size()) {
        throw std::invalid_argument(
            "[mlx_ane.emulated] got " + std::to_string(all.size()) +
            " surfaces, need " + std::to_string(order.size()) + ".");
      }
      for (auto i : order) {
        auto* surface = all[i];
        locks.push_back(std::make_unique<SurfaceLock>(*surface, access));
        bytes.push_back({locks.back()->data(), surface->bytes()});
      }
    }
    std::vector<std::unique_ptr<SurfaceLock>> locks;
    std::vector<SurfaceBytes> bytes;
  };

  std::unique_ptr<EngineProgram> program_;
  std::vector<size_t> input_order_, output_order_;
};

class EmulatedDevice : public Device {
 public:
  /// Reads the environment: a wrong value is an error of the first call.
  EmulatedDevice() {
    emulated::options();
    emulated::faults();
  }
  std::string_view name() const override {
    return "emulated";
  }
  std::optional<std::string> unavailable() const override {
    return std::nullopt;
  }
  const Limits& limits() const override {
    return emulated::limits_of_chip(emulated::options().chip);
  }
  std::shared_ptr<Surface> make_surface(size_t bytes, const Port&) override {
    for (auto& injected : emulated::injected_faults(emulated::Site::surface)) {
      if (!emulated::wait_out(injected)) {
        bool gone = injected.fault == emulated::Fault::device_gone;
        throw DeviceError(
            gone ? Cause::unavailable : Cause::out_of_memory,
            "[mlx_ane.emulated] a surface of " + std::to_string(bytes) +
                " bytes was refused: injected fault.");
      }
    }
    try {
      return std::make_shared<MemorySurface>(
          std::max(bytes, limits().min_surface_bytes));
    } catch (const std::bad_alloc&) {
      throw DeviceError(
          Cause::out_of_memory,
          "[mlx_ane.emulated] there is no memory for a surface of " +
              std::to_string(bytes) + " bytes.");
    }
  }
  std::shared_ptr<Executable> compile(const Source& source) override {
    try {
      auto program = emulated::compile_program(
          source.text, source.weights, emulated::options());
      program->load();
      return std::make_shared<EmulatedExecutable>(std::move(program), source);
    } catch (const EngineError& e) {
      throw translate(e);
    }
  }
  std::chrono::milliseconds evaluate_bound() const override {
    // Only an injected hang needs a time limit.
    return emulated::may_hang() ? emulated::evaluate_bound()
                                : std::chrono::milliseconds(0);
  }
  std::map<std::string, std::string> info() const override {
    auto options = emulated::options();
    auto usage = emulated::usage();
    return {
        {"chip", options.chip},
        {"numerics", options.exact ? "exact" : "fast"},
        {"resident_programs", std::to_string(usage.resident)},
        {"compiles", std::to_string(usage.compiles)},
    };
  }
};

}  // namespace

std::unique_ptr<Device> make_emulated_device() {
  return std::make_unique<EmulatedDevice>();
}

}  // namespace mlx_ane
