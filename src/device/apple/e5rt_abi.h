// Espresso's e5rt functions of the second route, found by name at run time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlx_ane::apple::e5rt {

/// 0 is success. Reports differ on 32 or 64 bits; the low half serves both.
using Code = int32_t;
/// Every object is an opaque handle.
using Handle = struct Object*;

/// Buffer types: 0 host memory, which ANEForge uses always, 2 IOSurface; 3 and
/// more are refused.
inline constexpr uint32_t host_buffer = 0;
inline constexpr uint32_t iosurface_buffer = 2;
/// Compute device mask: one device and nothing else, so that the runtime cannot
/// fall back in silence.
inline constexpr uint64_t cpu_only = 1;
inline constexpr uint64_t engine_only = 4;

/// X(field, symbol, parameters). Orders as ANEForge reports them: out first in
/// create..., last in compile and retain...; release takes the handle's
/// address.
#define MLX_ANE_E5RT_FUNCTIONS(X)                                              \
  X(config_create, "e5_compiler_config_options_create", (Handle * out))        \
  X(config_set_cache,                                                          \
    "e5_compiler_config_options_set_cache_bundle_location",                    \
    (Handle config, const char* path))                                         \
  X(config_release, "e5_compiler_config_options_release", (Handle * config))   \
  X(compiler_create,                                                           \
    "e5_compiler_create_with_config",                                          \
    (Handle * out, Handle config))                                             \
  X(compiler_release, "e5_compiler_release", (Handle * compiler))              \
  X(options_create, "e5_compiler_options_create", (Handle * out))              \
  X(options_set_devices,                                                       \
    "e5_compiler_options_set_compute_device_types_mask",                       \
    (Handle options, uint64_t mask))                                           \
  X(options_release, "e5_compiler_options_release", (Handle * options))        \
  X(compile,                                                                   \
    "e5_compiler_compile",                                                     \
    (Handle compiler, const char* mil, Handle options, Handle* library))       \
  X(library_retain_function,                                                   \
    "program_library_retain_program_function",                                 \
    (Handle library, const char* name, Handle* out))                           \
  X(library_release, "program_library_release", (Handle * library))            \
  X(function_release, "program_function_release", (Handle * function))         \
  X(op_options_create,                                                         \
    "precompiled_compute_op_create_options_create_with_program_function",      \
    (Handle * out, Handle function))                                           \
  X(op_options_set_name,                                                       \
    "precompiled_compute_op_create_options_set_operation_name",                \
    (Handle options, const char* name))                                        \
  X(op_options_set_allocate,                                                   \
    "precompiled_compute_op_create_options_set_allocate_intermediate_buffers", \
    (Handle options, int allocate))                                            \
  X(op_options_release,                                                        \
    "precompiled_compute_op_create_options_release",                           \
    (Handle * options))                                                        \
  X(operation_create,                                                          \
    "execution_stream_operation_create_precompiled_compute_operation_with_"    \
    "options",                                                                 \
    (Handle * out, Handle options))                                            \
  X(operation_retain_input,                                                    \
    "execution_stream_operation_retain_input_port",                            \
    (Handle operation, const char* name, Handle* out))                         \
  X(operation_retain_output,                                                   \
    "execution_stream_operation_retain_output_port",                           \
    (Handle operation, const char* name, Handle* out))                         \
  X(operation_prepare,                                                         \
    "execution_stream_operation_prepare_op_for_encode",                        \
    (Handle operation))                                                        \
  X(operation_release,                                                         \
    "execution_stream_operation_release",                                      \
    (Handle * operation))                                                      \
  X(port_bind, "io_port_bind_buffer_object", (Handle port, Handle buffer))     \
  X(port_release, "io_port_release", (Handle * port))                          \
  X(buffer_alloc,                                                              \
    "buffer_object_alloc",                                                     \
    (Handle * out, size_t bytes, uint32_t type))                               \
  X(buffer_data, "buffer_object_get_data_ptr", (Handle buffer, void** out))    \
  X(buffer_release, "buffer_object_release", (Handle * buffer))                \
  X(stream_create, "execution_stream_create", (Handle * out))                  \
  X(stream_encode,                                                             \
    "execution_stream_encode_operation",                                       \
    (Handle stream, Handle operation))                                         \
  X(stream_execute, "execution_stream_execute_sync", (Handle stream))          \
  X(stream_reset, "execution_stream_reset", (Handle stream))                   \
  X(stream_release, "execution_stream_release", (Handle * stream))

struct Functions {
#define MLX_ANE_DECLARE(field, symbol, parameters) Code(*field) parameters;
  MLX_ANE_E5RT_FUNCTIONS(MLX_ANE_DECLARE)
#undef MLX_ANE_DECLARE
  /// Optional: words for the last failure, and what ANEForge sets besides.
  const char* (*last_error)();
  Code (*options_set_recompile)(Handle options, int force);
  Code (*options_set_segmenter)(Handle options, const char* name);
};

}  // namespace mlx_ane::apple::e5rt
