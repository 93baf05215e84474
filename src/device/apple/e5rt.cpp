// The e5rt route: Espresso's C API compiles a file and runs it in a stream.
#include <dlfcn.h>

#include <mutex>
#include <type_traits>
#include <vector>

#include "device/apple/bounds.h"
#include "device/apple/e5rt_abi.h"
#include "device/apple/objc.h"
#include "device/apple/program_files.h"
#include "device/apple/route.h"
#include "device/apple/system.h"

namespace mlx_ane::apple {

namespace {

using e5rt::Code;
using e5rt::Handle;

/// Older systems export the names with a leading underscore.
void* find_symbol(void* library, const std::string& name) {
  auto symbol = dlsym(library, name.c_str());
  return symbol ? symbol : dlsym(library, ("_" + name).c_str());
}

struct Library {
  e5rt::Functions functions{};
  std::optional<std::string> missing;

  Library() {
    void* handle = nullptr;
    missing = open_private_framework("Espresso", &handle);
    if (missing) {
      return;
    }
#define MLX_ANE_FIND(field, symbol, parameters)                    \
  functions.field = reinterpret_cast<decltype(functions.field)>(   \
      find_symbol(handle, "e5rt_" symbol));                        \
  if (functions.field == nullptr && !missing) {                    \
    missing = "function e5rt_" symbol " is missing on this macOS"; \
  }
    MLX_ANE_E5RT_FUNCTIONS(MLX_ANE_FIND)
#undef MLX_ANE_FIND
    auto optional = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(
          find_symbol(handle, symbol));
    };
    optional(functions.last_error, "e5rt_get_last_error_message");
    optional(
        functions.options_set_recompile,
        "e5rt_e5_compiler_options_set_force_recompilation");
    optional(
        functions.options_set_segmenter,
        "e5rt_e5_compiler_options_set_segmenter");
  }
};

const Library& library() {
  static const Library opened;
  return opened;
}

const e5rt::Functions& api() {
  return library().functions;
}

void check(Code code, Cause cause, const char* step) {
  if (code == 0) {
    return;
  }
  auto words = api().last_error ? api().last_error() : nullptr;
  throw DeviceError(
      cause,
      "[mlx_ane.ane] Espresso failed on " + std::string(step) + " with code " +
          std::to_string(code) + ": " +
          (words && *words ? words : "no reason given") + ".");
}

/// A handle with the function that releases it.
class Owned {
 public:
  explicit Owned(Code (*release)(Handle*)) : release_(release) {
  }
  Owned(Owned&& other) noexcept
      : release_(other.release_),
        handle_(std::exchange(other.handle_, nullptr)) {
  }
  Owned& operator=(Owned&& other) = delete;
  ~Owned() {
    if (handle_ != nullptr && in_same_process()) {
      release_(&handle_);
    }
  }
  Handle get() const {
    return handle_;
  }
  Handle* out() {
    return &handle_;
  }

 private:
  Code (*release_)(Handle*);
  Handle handle_ = nullptr;
};

/// A buffer of Espresso's: of IOSurface memory where it gives such.
class BufferMemory : public Surface {
 public:
  explicit BufferMemory(size_t bytes)
      : bytes_(bytes), buffer_(api().buffer_release) {
    guarded(Cause::out_of_memory, "allocating a buffer", [&] {
      auto code =
          api().buffer_alloc(buffer_.out(), bytes, e5rt::iosurface_buffer);
      if (code != 0) {
        code = api().buffer_alloc(buffer_.out(), bytes, e5rt::host_buffer);
      }
      check(code, Cause::out_of_memory, "buffer_object_alloc");
      check(
          api().buffer_data(buffer_.get(), &data_),
          Cause::out_of_memory,
          "buffer_object_get_data_ptr");
    });
  }
  size_t bytes() const override {
    return bytes_;
  }
  std::byte* lock(Access) override {
    return static_cast<std::byte*>(data_);
  }
  void unlock(Access) override {
  }
  Handle buffer() const {
    return buffer_.get();
  }

 private:
  size_t bytes_;
  Owned buffer_;
  void* data_ = nullptr;
};

/// Everything that an abandoned call may still touch. Calls do not overlap.
class E5Program {
 public:
  explicit E5Program(bool on_cpu)
      : devices_(on_cpu ? e5rt::cpu_only : e5rt::engine_only) {
  }
  void open(const Source& source);
  void evaluate(
      std::span<Surface* const> inputs, std::span<Surface* const> outputs);

 private:
  void prepare(const Source& source);
  void compile();
  void encode(
      std::span<Surface* const> inputs, std::span<Surface* const> outputs);
  void find_ports(const Source& source);

  const uint64_t devices_;
  std::unique_ptr<ProgramFiles> files_;
  // Destroyed from the last to the first, as ANEForge releases them.
  Owned stream_{api().stream_release};
  Owned library_{api().library_release};
  Owned function_{api().function_release};
  Owned op_options_{api().op_options_release};
  Owned operation_{api().operation_release};
  std::vector<Owned> inputs_;
  std::vector<Owned> outputs_;
  /// The surfaces that are bound and encoded, inputs and outputs.
  std::vector<Surface*> encoded_;
  bool used_ = false;
};

void E5Program::open(const Source& source) {
  try {
    guarded(
        Cause::compile_failed, "compiling a program", [&] { prepare(source); });
  } catch (const std::filesystem::filesystem_error& error) {
    throw DeviceError(
        Cause::compile_failed,
        "[mlx_ane.ane] program files: " + std::string(error.what()) + ".");
  }
}

void E5Program::prepare(const Source& source) {
  // What Espresso compiles cannot be loaded by another process: no cache.
  files_ = ProgramFiles::in_private(source);
  compile();
  auto& e5 = api();
  check(
      e5.library_retain_function(library_.get(), "main", function_.out()),
      Cause::load_failed,
      "retain_program_function");
  check(
      e5.op_options_create(op_options_.out(), function_.get()),
      Cause::load_failed,
      "create_options_create_with_program_function");
  check(
      e5.op_options_set_name(op_options_.get(), "mlx_ane"),
      Cause::load_failed,
      "set_operation_name");
  check(
      e5.op_options_set_allocate(op_options_.get(), 1),
      Cause::load_failed,
      "set_allocate_intermediate_buffers");
  check(
      e5.operation_create(operation_.out(), op_options_.get()),
      Cause::load_failed,
      "create_precompiled_compute_operation");
  check(
      e5.stream_create(stream_.out()),
      Cause::load_failed,
      "execution_stream_create");
  find_ports(source);
}

void E5Program::compile() {
  auto& e5 = api();
  auto cause = Cause::compile_failed;
  auto cache = (files_->directory() / "cache").string();
  std::filesystem::create_directory(cache);
  auto mil = (files_->directory() / "model.mil").string();
  Owned config(e5.config_release);
  Owned compiler(e5.compiler_release);
  Owned options(e5.options_release);
  check(e5.config_create(config.out()), cause, "config_options_create");
  check(
      e5.config_set_cache(config.get(), cache.c_str()),
      cause,
      "set_cache_bundle_location");
  check(
      e5.compiler_create(compiler.out(), config.get()),
      cause,
      "compiler_create_with_config");
  check(e5.options_create(options.out()), cause, "compiler_options_create");
  check(
      e5.options_set_devices(options.get(), devices_),
      cause,
      "set_compute_device_types_mask");
  if (e5.options_set_recompile) {
    check(
        e5.options_set_recompile(options.get(), 1),
        cause,
        "set_force_recompilation");
  }
  if (e5.options_set_segmenter) {
    check(
        e5.options_set_segmenter(options.get(), "graph"),
        cause,
        "set_segmenter");
  }
  check(
      e5.compile(compiler.get(), mil.c_str(), options.get(), library_.out()),
      cause,
      "compiler_compile");
}

void E5Program::find_ports(const Source& source) {
  auto find = [&](const std::vector<Port>& ports, auto retain, auto& found) {
    for (auto& port : ports) {
      found.emplace_back(api().port_release);
      check(
          retain(operation_.get(), port.name.c_str(), found.back().out()),
          Cause::load_failed,
          ("finding port " + port.name).c_str());
    }
  };
  find(source.inputs, api().operation_retain_input, inputs_);
  find(source.outputs, api().operation_retain_output, outputs_);
}

/// Bound surfaces are frozen once encoded (ANEForge): again only for others.
void E5Program::encode(
    std::span<Surface* const> inputs, std::span<Surface* const> outputs) {
  constexpr auto cause = Cause::evaluate_failed;
  std::vector<Surface*> surfaces(inputs.begin(), inputs.end());
  surfaces.insert(surfaces.end(), outputs.begin(), outputs.end());
  if (surfaces == encoded_) {
    return;
  }
  auto bind = [](std::span<Surface* const> surfaces,
                 const std::vector<Owned>& ports) {
    for (size_t i = 0; i < ports.size(); ++i) {
      auto memory = i < surfaces.size()
                        ? dynamic_cast<BufferMemory*>(surfaces[i])
                        : nullptr;
      if (memory == nullptr || surfaces.size() != ports.size()) {
        throw DeviceError(
            cause,
            "[mlx_ane.ane] got other surfaces than the program's ports, need "
            "one of this route's make_surface for each.");
      }
      check(
          api().port_bind(ports[i].get(), memory->buffer()),
          cause,
          "io_port_bind_buffer_object");
    }
  };
  auto& e5 = api();
  encoded_.clear();  // whatever fails below, the next call encodes
  if (std::exchange(used_, true)) {
    check(e5.stream_reset(stream_.get()), cause, "stream_reset");
    check(
        e5.operation_prepare(operation_.get()), cause, "prepare_op_for_encode");
  }
  bind(inputs, inputs_);
  bind(outputs, outputs_);
  check(
      e5.stream_encode(stream_.get(), operation_.get()),
      cause,
      "encode_operation");
  encoded_ = std::move(surfaces);
}

void E5Program::evaluate(
    std::span<Surface* const> inputs, std::span<Surface* const> outputs) {
  constexpr auto cause = Cause::evaluate_failed;
  guarded(cause, "evaluating a program", [&] {
    encode(inputs, outputs);
    check(api().stream_execute(stream_.get()), cause, "execute_sync");
  });
}

class E5Executable : public Executable {
 public:
  E5Executable(const Source& source, bool on_cpu)
      : program_(std::make_shared<E5Program>(on_cpu)) {
    within(
        bounds().open,
        "compiling and loading a program",
        [program = program_, source] { program->open(source); });
  }

  ~E5Executable() override {
    if (!in_same_process()) {
      return;
    }
    let_go([program = std::move(program_)]() mutable { program.reset(); });
  }

  void evaluate(
      std::span<Surface* const> inputs,
      std::span<Surface* const> outputs) override {
    require_same_process();
    std::lock_guard lock(mutex_);
    program_->evaluate(inputs, outputs);
  }

 private:
  std::mutex mutex_;
  std::shared_ptr<E5Program> program_;
};

class E5Route : public Route {
 public:
  explicit E5Route(bool on_cpu) : on_cpu_(on_cpu) {
  }
  std::string_view name() const override {
    return "e5rt";
  }
  std::optional<std::string> unavailable() const override {
    return library().missing;
  }
  std::shared_ptr<Surface> make_surface(size_t bytes, const Port&) override {
    return std::make_shared<BufferMemory>(bytes);
  }
  std::shared_ptr<Executable> compile(const Source& source) override {
    return std::make_shared<E5Executable>(source, on_cpu_);
  }

 private:
  bool on_cpu_;
};

}  // namespace

std::unique_ptr<Route> make_e5rt_route(bool on_cpu) {
  return std::make_unique<E5Route>(on_cpu);
}

}  // namespace mlx_ane::apple
