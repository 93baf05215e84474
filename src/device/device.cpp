// The registry of devices and the arithmetic of surfaces.
#include "device/device.h"

#include <unistd.h>

#include "device/emulated/emulated.h"
#ifdef MLX_ANE_APPLE
#include "device/apple/apple.h"
#endif

namespace mlx_ane {

namespace {

#ifndef MLX_ANE_APPLE
/// Stands for the engine where it cannot exist.
class NoEngine : public Device {
 public:
  std::string_view name() const override {
    return "ane";
  }
  std::optional<std::string> unavailable() const override {
    return "the Neural Engine needs macOS on Apple silicon";
  }
  const Limits& limits() const override {
    return limits_;
  }
  std::shared_ptr<Surface> make_surface(size_t, const Port&) override {
    throw DeviceError(Cause::unavailable, *unavailable());
  }
  std::shared_ptr<Executable> compile(const Source&) override {
    throw DeviceError(Cause::unavailable, *unavailable());
  }
  std::chrono::milliseconds evaluate_bound() const override {
    return std::chrono::milliseconds(0);
  }
  std::map<std::string, std::string> info() const override {
    return {};
  }

 private:
  Limits limits_;
};

std::unique_ptr<Device> make_ane_device() {
  return std::make_unique<NoEngine>();
}
#endif

}  // namespace

const char* to_string(Cause cause) {
  switch (cause) {
    case Cause::unavailable:
      return "unavailable";
    case Cause::compile_failed:
      return "compile_failed";
    case Cause::load_failed:
      return "load_failed";
    case Cause::evaluate_failed:
      return "evaluate_failed";
    case Cause::wrote_nothing:
      return "wrote_nothing";
    case Cause::nonfinite:
      return "nonfinite";
    case Cause::wrong_values:
      return "wrong_values";
    case Cause::hang:
      return "hang";
    case Cause::cap_reached:
      return "cap_reached";
    case Cause::out_of_memory:
      return "out_of_memory";
  }
  return "unknown";
}

size_t row_bytes(const Port& port) {
  constexpr auto alignment = Limits::row_alignment;
  auto elements = port.shape.empty() ? 1 : port.shape.back();
  auto bytes = static_cast<size_t>(elements) * port.element_size;
  return (bytes + alignment - 1) / alignment * alignment;
}

size_t surface_bytes(const Port& port) {
  return surface_bytes(port, row_bytes(port));
}

size_t surface_bytes(const Port& port, size_t row_bytes) {
  auto bytes = row_bytes;
  for (size_t i = 0; i + 1 < port.shape.size(); ++i) {
    bytes *= static_cast<size_t>(port.shape[i]);
  }
  return bytes;
}

size_t quarter_of_memory() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<size_t>(sysconf(_SC_PAGESIZE)) / 4;
}

const std::vector<std::string>& ane_routes() {
  static const std::vector<std::string> names = {
#ifndef MLX_ANE_PUBLIC_ONLY
      "in_memory",
      "client",
      "e5rt",
#endif
      "coreml"};
  return names;
}

// Leaked: stream threads may still run programs while the process exits.
Device& get_device(std::string_view name) {
  if (name == "emulated") {
    static auto* device = make_emulated_device().release();
    return *device;
  }
  if (name == "ane") {
    static auto* device = make_ane_device().release();
    return *device;
  }
  throw std::invalid_argument(
      "[mlx_ane] got device \"" + std::string(name) +
      "\", need \"ane\" or \"emulated\".");
}

}  // namespace mlx_ane
