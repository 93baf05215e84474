/* What the doubles of Apple's frameworks share: engine, faults, balance. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* -- the engine behind the frameworks ------------------------------------ */

/* Rounding of Accelerate's vector functions: 0 to nearest, 1 up, -1 down, 2 up
   or down by element and call. */
void double_accelerate_rounds(int how);

/* How a call ended; code and domain as an NSError would carry them. */
struct double_status {
  int failed;
  int code;
  char domain[128];
  char text[1024];
};

/* One weight file as the frameworks are given it. */
struct double_weight {
  const char* name;
  const void* bytes;
  size_t size;
};

/* Inputs, or outputs, of one call: blocks have some twenty. */
#define DOUBLE_MAX_PORTS 64

/* Memory of one bound surface. */
struct double_memory {
  void* bytes;
  size_t size;
};

/* The emulated engine, seen from C. Ports are in its symbol order: by name. */
struct double_engine {
  /* An out_of_memory fault hits the next surface. */
  int (*refuses_surface)(void);
  void* (*create)(
      const char* text,
      size_t size,
      const struct double_weight* weights,
      size_t weight_count,
      struct double_status* status);
  void (*load)(void* program, struct double_status* status);
  /* On the engine, or as the CPU rounds. */
  void (*evaluate)(
      void* program,
      int on_cpu,
      const struct double_memory* inputs,
      const struct double_memory* outputs,
      struct double_status* status);
  void (*unload)(void* program);
  void (*destroy)(void* program);
  size_t (*port_count)(void* program, int output);
  const char* (*port_name)(void* program, int output, size_t index);
  /* Bytes between rows of a port on this machine. */
  size_t (*row_bytes)(void* program, int output, size_t index);
  const int64_t* (*port_shape)(
      void* program, int output, size_t index, size_t* rank);
  /* A Core ML model: read from its bytes, its operations, its MIL text. */
  void* (*read_model)(
      const void* bytes, size_t size, struct double_status* status);
  size_t (*model_operations)(void* model);
  const char* (*model_operation)(void* model, size_t index);
  const char* (*model_text)(void* model, size_t* size);
  void (*free_model)(void* model);
};

void double_set_engine(const struct double_engine* engine);
const struct double_engine* double_get_engine(void);

/* -- faults that only a framework can show -------------------------------- */

/* `site` is a step (descriptor, model, compile, load, evaluate, request,
 * surface, wrapper, e5_<function>, or one of Core ML's in coreml.m); `kind` is
 * nil, error, nil_error or exception. The next `count` passes of that site fail
 * so. DOUBLES_FAULTS="site=kind;..." makes every pass fail. */
void double_inject(const char* site, const char* kind, int count);
void double_clear_faults(void);
/* The kind injected now, or NULL; counts it off. */
const char* double_fault(const char* site);
/* Blocks until double_clear_faults. */
void double_block(void);
/* Called by double_clear_faults: lets go of what a fault made it keep. */
void double_at_clear(void (*release)(void));

/* Symbols are listed in reverse order of name, as no framework does: tells
 * binding by name from binding by the ASCII rule. */
void double_reverse_symbols(int reverse);
int double_symbols_reversed(void);

/* -- the machine that the doubles are -------------------------------------- */

/* The value of a deviation ("" without one), or NULL where it does not deviate
 * so. The value stays valid until the thread's next question. */
const char* double_machine(const char* word);
/* Whether item is in "word=item|item|...". */
int double_machine_lists(const char* word, const char* item);
/* Sleeps, as DOUBLES_CLOCK scales it. */
void double_wait(double milliseconds);
/* Does not return while hang=...|site|... */
void double_hang(const char* site);
/* A compile of this machine: whether it fails whatever the program is, and
 * then how it ended. */
int double_compile_fails(void);
void double_compiled(int well);

/* -- balance -------------------------------------------------------------- */

/* Adds to the count of living things of a kind (descriptor, model, request,
 * wrapper, surface, lock, loaded, e5). */
void double_count(const char* kind, int change);
/* Kinds in use, and the count of one; -1 past the last. */
const char* double_kind(size_t index);
int double_live(const char* kind);
/* Steps in the order in which the frameworks were called, one a line; the
 * oldest go first when the log is full. */
void double_log(const char* step);
const char* double_read_log(void);
void double_clear_log(void);

#ifdef __cplusplus
}
#endif
