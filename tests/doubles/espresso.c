/* Double of Espresso.framework's e5rt functions over the same engine. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doubles.h"

/* What a handle points to. The library, the function and the operation share
 * one program; the last of them lets it go. */
enum kind {
  CONFIG = 1,
  COMPILER,
  OPTIONS,
  LIBRARY,
  FUNCTION,
  OP_OPTIONS,
  OPERATION,
  PORT,
  BUFFER,
  STREAM,
};

struct program {
  int references;
  void* handle;
  int loaded;
  int on_cpu;
};

struct object {
  enum kind kind;
  struct program* program;
  uint64_t recompile;
  /* Operation: bound memory by port. */
  struct double_memory inputs[DOUBLE_MAX_PORTS];
  struct double_memory outputs[DOUBLE_MAX_PORTS];
  /* Port: of which operation, where. */
  struct object* operation;
  int output;
  size_t index;
  /* Buffer. */
  void* memory;
  size_t size;
  /* Options: devices. Stream: what is encoded; prepared once. */
  uint64_t devices;
  struct object* encoded;
  int prepared;
};

typedef int64_t Code;
typedef struct object* Handle;

enum { OK = 0, BAD_ARGUMENT = 2, FAILED = 11 };

static __thread char words[1024];

const char* e5rt_get_last_error_message(void) {
  return words;
}

static Code fail(Code code, const char* text) {
  snprintf(words, sizeof words, "%s", text);
  return code;
}

static Handle make(enum kind kind) {
  Handle made = calloc(1, sizeof *made);
  made->kind = kind;
  double_count("e5", 1);
  return made;
}

static Handle share(enum kind kind, struct program* program) {
  Handle made = make(kind);
  made->program = program;
  __atomic_add_fetch(&program->references, 1, __ATOMIC_RELAXED);
  return made;
}

static void drop_program(struct program* program) {
  if (program &&
      __atomic_sub_fetch(&program->references, 1, __ATOMIC_ACQ_REL) == 0) {
    if (program->loaded) {
      double_hang("unload");
      double_get_engine()->unload(program->handle);
    }
    double_get_engine()->destroy(program->handle);
    free(program);
  }
}

static Code release(Handle* handle, enum kind kind) {
  if (handle == NULL || *handle == NULL || (*handle)->kind != kind) {
    abort();
  }
  drop_program((*handle)->program);
  free((*handle)->memory);
  memset(*handle, 0, sizeof **handle);
  free(*handle);
  *handle = NULL;
  double_count("e5", -1);
  return OK;
}

/* A fault asked for at e5_<step>, or a handle of the wrong kind. */
#define STEP(name, argument, wanted)                          \
  do {                                                        \
    double_log("e5_" name);                                   \
    if (double_fault("e5_" name)) {                           \
      return fail(FAILED, "injected fault");                  \
    }                                                         \
    if ((argument) == NULL || (argument)->kind != (wanted)) { \
      return fail(BAD_ARGUMENT, "nullptr or wrong handle");   \
    }                                                         \
  } while (0)

#define RELEASE(name, wanted)             \
  Code e5rt_##name##_release(Handle* h) { \
    return release(h, wanted);            \
  }

RELEASE(e5_compiler_config_options, CONFIG)
RELEASE(e5_compiler, COMPILER)
RELEASE(e5_compiler_options, OPTIONS)
RELEASE(program_library, LIBRARY)
RELEASE(program_function, FUNCTION)
RELEASE(precompiled_compute_op_create_options, OP_OPTIONS)
RELEASE(execution_stream_operation, OPERATION)
RELEASE(io_port, PORT)
RELEASE(buffer_object, BUFFER)
RELEASE(execution_stream, STREAM)

Code e5rt_e5_compiler_config_options_create(Handle* out) {
  *out = make(CONFIG);
  return OK;
}

Code e5rt_e5_compiler_config_options_set_cache_bundle_location(
    Handle config, const char* path) {
  STEP("config", config, CONFIG);
  return path && *path == '/' ? OK : fail(BAD_ARGUMENT, "path");
}

Code e5rt_e5_compiler_create_with_config(Handle* out, Handle config) {
  STEP("compiler", config, CONFIG);
  *out = make(COMPILER);
  return OK;
}

Code e5rt_e5_compiler_options_create(Handle* out) {
  *out = make(OPTIONS);
  return OK;
}

Code e5rt_e5_compiler_options_set_compute_device_types_mask(
    Handle options, uint64_t mask) {
  STEP("options", options, OPTIONS);
  options->devices = mask;
  return OK;
}

Code e5rt_e5_compiler_options_set_force_recompilation(
    Handle options, int force) {
  STEP("recompile", options, OPTIONS);
  options->recompile = (uint64_t)force;
  return OK;
}

Code e5rt_e5_compiler_options_set_segmenter(Handle options, const char* name) {
  STEP("segmenter", options, OPTIONS);
  return strcmp(name, "graph") == 0 ? OK : fail(BAD_ARGUMENT, "segmenter");
}

static char* read_file(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) {
    return NULL;
  }
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  char* text = malloc(*size + 1);
  *size = fread(text, 1, *size, file);
  fclose(file);
  return text;
}

Code e5rt_e5_compiler_compile(
    Handle compiler, const char* mil, Handle options, Handle* library) {
  struct double_status status = {0};
  size_t size = 0;
  STEP("compile", compiler, COMPILER);
  if (options == NULL || (options->devices != 4 && options->devices != 1)) {
    return fail(FAILED, "the double knows the engine or the CPU");
  }
  double_hang("compile");
  if (double_compile_fails()) {
    double_compiled(0);
    return fail(FAILED, "ANECCompile() FAILED");
  }
  char* text = read_file(mil, &size);
  if (text == NULL) {
    return fail(FAILED, "model.mil not found");
  }
  void* handle = double_get_engine()->create(text, size, NULL, 0, &status);
  free(text);
  double_compiled(!status.failed);
  if (status.failed) {
    return fail(FAILED, status.text);
  }
  struct program* program = calloc(1, sizeof *program);
  program->handle = handle;
  program->on_cpu = options->devices == 1;
  *library = share(LIBRARY, program);
  return OK;
}

Code e5rt_program_library_retain_program_function(
    Handle library, const char* name, Handle* out) {
  STEP("function", library, LIBRARY);
  if (strcmp(name, "main") != 0) {
    return fail(BAD_ARGUMENT, "no such function");
  }
  *out = share(FUNCTION, library->program);
  return OK;
}

Code e5rt_precompiled_compute_op_create_options_create_with_program_function(
    Handle* out, Handle function) {
  STEP("op_options", function, FUNCTION);
  *out = share(OP_OPTIONS, function->program);
  return OK;
}

Code e5rt_precompiled_compute_op_create_options_set_operation_name(
    Handle options, const char* name) {
  STEP("op_name", options, OP_OPTIONS);
  return name ? OK : fail(BAD_ARGUMENT, "name");
}

Code e5rt_precompiled_compute_op_create_options_set_allocate_intermediate_buffers(
    Handle options, int allocate) {
  STEP("op_allocate", options, OP_OPTIONS);
  return allocate == 1 ? OK : fail(BAD_ARGUMENT, "allocate");
}

Code e5rt_execution_stream_operation_create_precompiled_compute_operation_with_options(
    Handle* out, Handle options) {
  struct double_status status = {0};
  STEP("operation", options, OP_OPTIONS);
  double_hang("load");
  double_get_engine()->load(options->program->handle, &status);
  if (status.failed) {
    return fail(FAILED, status.text);
  }
  options->program->loaded = 1;
  *out = share(OPERATION, options->program);
  (*out)->prepared = 1;
  return OK;
}

static Code retain_port(
    Handle operation, const char* name, int output, Handle* out) {
  const struct double_engine* engine = double_get_engine();
  STEP("port", operation, OPERATION);
  void* handle = operation->program->handle;
  for (size_t i = 0; i < engine->port_count(handle, output); ++i) {
    if (strcmp(engine->port_name(handle, output, i), name) == 0) {
      *out = make(PORT);
      (*out)->operation = operation;
      (*out)->output = output;
      (*out)->index = i;
      return OK;
    }
  }
  return fail(BAD_ARGUMENT, "no such port");
}

Code e5rt_execution_stream_operation_retain_input_port(
    Handle operation, const char* name, Handle* out) {
  return retain_port(operation, name, 0, out);
}

Code e5rt_execution_stream_operation_retain_output_port(
    Handle operation, const char* name, Handle* out) {
  return retain_port(operation, name, 1, out);
}

Code e5rt_execution_stream_operation_prepare_op_for_encode(Handle operation) {
  STEP("prepare", operation, OPERATION);
  operation->prepared = 1;
  return OK;
}

Code e5rt_buffer_object_alloc(Handle* out, size_t bytes, uint32_t type) {
  double_log("e5_buffer");
  if (double_fault("e5_buffer") || double_get_engine()->refuses_surface()) {
    return fail(FAILED, "no memory");
  }
  if (type > 2 || (type != 0 && double_machine("host_buffers"))) {
    return fail(BAD_ARGUMENT, "Invalid BufferType @ AllocMemory");
  }
  *out = make(BUFFER);
  (*out)->size = (bytes + 63) / 64 * 64;
  (*out)->memory = aligned_alloc(64, (*out)->size);
  memset((*out)->memory, 0, (*out)->size);
  return OK;
}

Code e5rt_buffer_object_get_data_ptr(Handle buffer, void** out) {
  STEP("data", buffer, BUFFER);
  *out = buffer->memory;
  return OK;
}

Code e5rt_io_port_bind_buffer_object(Handle port, Handle buffer) {
  STEP("bind", port, PORT);
  if (buffer == NULL || buffer->kind != BUFFER) {
    return fail(BAD_ARGUMENT, "buffer");
  }
  struct double_memory* bound = port->output
                                    ? &port->operation->outputs[port->index]
                                    : &port->operation->inputs[port->index];
  bound->bytes = buffer->memory;
  bound->size = buffer->size;
  return OK;
}

Code e5rt_execution_stream_create(Handle* out) {
  *out = make(STREAM);
  return OK;
}

/* An operation is encoded once; again only after reset and prepare. */
Code e5rt_execution_stream_encode_operation(Handle stream, Handle operation) {
  STEP("encode", stream, STREAM);
  if (stream->encoded || operation == NULL || !operation->prepared) {
    return fail(FAILED, "operation is already encoded");
  }
  operation->prepared = 0;
  stream->encoded = operation;
  return OK;
}

Code e5rt_execution_stream_execute_sync(Handle stream) {
  struct double_status status = {0};
  STEP("execute", stream, STREAM);
  double_hang("evaluate");
  if (stream->encoded == NULL) {
    return fail(FAILED, "nothing is encoded");
  }
  double_get_engine()->evaluate(
      stream->encoded->program->handle,
      stream->encoded->program->on_cpu,
      stream->encoded->inputs,
      stream->encoded->outputs,
      &status);
  return status.failed ? fail(FAILED, status.text) : OK;
}

Code e5rt_execution_stream_reset(Handle stream) {
  STEP("reset", stream, STREAM);
  stream->encoded = NULL;
  return OK;
}
