// The contract between the runner and a place where MIL programs run.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "mil/limits.h"

namespace mlx_ane {

using mil::Limits;
using mil::limits_of;

/// Why a device call failed: the key under which it is counted and reported.
enum class Cause {
  unavailable,
  compile_failed,
  load_failed,
  evaluate_failed,
  wrote_nothing,
  nonfinite,
  wrong_values,
  hang,
  cap_reached,
  out_of_memory,
};
const char* to_string(Cause cause);

/// A device call that failed. The caller recomputes on the BLAS or reports it.
class DeviceError : public std::runtime_error {
 public:
  DeviceError(Cause cause, const std::string& what)
      : std::runtime_error(what), cause(cause) {
  }
  const Cause cause;
};

/// One tensor of a program's interface. Programs of this project use fp16 I/O;
/// rank <= 5, the last axis is contiguous and rows are padded to 64 bytes.
struct Port {
  std::string name;
  std::vector<int64_t> shape;
  size_t element_size = 2;
};

/// What is handed to a device: MIL text and the weight files that it names
/// ("@model_path/..." -> bytes), with its interface.
struct Source {
  std::string text;
  std::map<std::string, std::shared_ptr<const std::vector<std::byte>>> weights;
  std::vector<Port> inputs;
  std::vector<Port> outputs;
};

/// Bytes of a row (the last axis) with its padding, and of a whole surface.
size_t row_bytes(const Port& port);
size_t surface_bytes(const Port& port);
/// The same with rows so many bytes apart.
size_t surface_bytes(const Port& port, size_t row_bytes);

/// A quarter of physical memory: the default budget of a cache.
size_t quarter_of_memory();

/// Memory that host and device share (an IOSurface on Apple's route).
class Surface {
 public:
  enum class Access { read, write };
  virtual ~Surface() = default;
  virtual size_t bytes() const = 0;
  /// The bytes, valid until unlock. Locks do not nest.
  virtual std::byte* lock(Access access) = 0;
  virtual void unlock(Access access) = 0;
};

/// Locks a surface for its scope.
class SurfaceLock {
 public:
  SurfaceLock(Surface& surface, Surface::Access access)
      : surface_(surface), access_(access), data_(surface.lock(access)) {
  }
  ~SurfaceLock() {
    surface_.unlock(access_);
  }
  SurfaceLock(const SurfaceLock&) = delete;
  SurfaceLock& operator=(const SurfaceLock&) = delete;
  std::byte* data() const {
    return data_;
  }

 private:
  Surface& surface_;
  Surface::Access access_;
  std::byte* data_;
};

/// A program compiled and loaded on its device; destruction unloads it.
class Executable {
 public:
  virtual ~Executable() = default;
  /// Why the system would run the program elsewhere than on the device, or
  /// nothing. Such a program is not evaluated: its calls are placed.
  virtual std::optional<std::string> elsewhere() const {
    return std::nullopt;
  }
  /// Bytes from one row of this port to the next: padded to 64, or what the
  /// engine says itself.
  virtual size_t row_bytes(const Port& port) const {
    return mlx_ane::row_bytes(port);
  }
  /// What the engine told of the loaded program, for doctor.
  virtual std::map<std::string, std::string> facts() const {
    return {};
  }
  /// Runs once, synchronously. Surfaces are in the order of Source::inputs and
  /// Source::outputs; the device binds them by name. Throws DeviceError. Not
  /// reentrant: the caller serialises calls of one executable.
  virtual void evaluate(
      std::span<Surface* const> inputs, std::span<Surface* const> outputs) = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string_view name() const = 0;
  /// Why this device cannot be used here, or nothing if it can.
  virtual std::optional<std::string> unavailable() const = 0;
  virtual const Limits& limits() const = 0;
  /// At least `bytes` bytes, rounded up to the limits' minimum, in rows for
  /// `port`: Core ML takes no surface of another geometry. May throw
  /// DeviceError{out_of_memory}.
  virtual std::shared_ptr<Surface> make_surface(
      size_t bytes, const Port& port = {}) = 0;
  /// Compiles and loads. Throws DeviceError{compile_failed, load_failed,
  /// cap_reached}.
  virtual std::shared_ptr<Executable> compile(const Source& source) = 0;
  /// Time limit of one evaluate; past it the caller abandons the call.
  virtual std::chrono::milliseconds evaluate_bound() const = 0;
  /// Facts for device_info() and doctor, by name.
  virtual std::map<std::string, std::string> info() const = 0;
};

/// The routes to the engine that are built in, in the order in which they are
/// tried.
const std::vector<std::string>& ane_routes();

/// "ane" or "emulated"; std::invalid_argument otherwise. One instance a
/// process.
Device& get_device(std::string_view name);

}  // namespace mlx_ane
