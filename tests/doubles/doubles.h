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
  void (*evaluate)(
      void* program,
      const struct double_memory* inputs,
      const struct double_memory* outputs,
      struct double_status* status);
  void (*unload)(void* program);
  void (*destroy)(void* program);
  size_t (*port_count)(void* program, int output);
  const char* (*port_name)(void* program, int output, size_t index);
};

void double_set_engine(const struct double_engine* engine);
const struct double_engine* double_get_engine(void);

/* -- faults that only a framework can show -------------------------------- */

/* `site` is a step (descriptor, model, compile, load, evaluate, request,
 * surface, wrapper, e5_<function>); `kind` is nil, error, nil_error or
 * exception. The next `count` passes of that site fail so. */
void double_inject(const char* site, const char* kind, int count);
void double_clear_faults(void);
/* The kind injected now, or NULL; counts it off. */
const char* double_fault(const char* site);

/* Symbols are listed in reverse order of name, as no framework does: tells
 * binding by name from binding by the ASCII rule. */
void double_reverse_symbols(int reverse);
int double_symbols_reversed(void);

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
