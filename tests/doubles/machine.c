/* Which deviations of a machine the doubles show: the words of DOUBLES_MACHINE.
 *
 * "word,word=value,..."; tests/machines.py has the machines of public reports.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "doubles.h"

const char* double_machine(const char* word) {
  static __thread char value[256];
  const char* at = getenv("DOUBLES_MACHINE");
  size_t size = strlen(word);
  for (; at && *at; at += strcspn(at, ","), at += *at == ',') {
    if (strncmp(at, word, size) == 0 && strchr("=,", at[size])) {
      const char* begin = at + size + (at[size] == '=');
      snprintf(value, sizeof value, "%.*s", (int)strcspn(begin, ","), begin);
      return value;
    }
  }
  return NULL;
}

int double_machine_lists(const char* word, const char* item) {
  const char* list = double_machine(word);
  size_t size = strlen(item);
  for (; list && *list; list += strcspn(list, "|"), list += *list == '|') {
    if (strncmp(list, item, size) == 0 && strchr("|", list[size])) {
      return 1;
    }
  }
  return 0;
}

/* DOUBLES_CLOCK scales the reported times. */
void double_wait(double milliseconds) {
  const char* scale = getenv("DOUBLES_CLOCK");
  double seconds = milliseconds * 1e-3 * (scale ? atof(scale) : 1.0);
  struct timespec time = {
      (time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
  nanosleep(&time, NULL);
}

void double_hang(const char* site) {
  while (double_machine_lists("hang", site)) {
    usleep(10000);
  }
}

/* -- compiles that fail for no fault of the program ------------------------ */

/* Consecutive failures and when the last was, of all processes: the daemon's.
 */
static void failures_file(char path[512]) {
  const char* folder = getenv("MLX_ANE_CACHE_DIR");
  snprintf(path, 512, "%s/double_failures", folder ? folder : "/tmp");
}

static int failures(double* age) {
  char path[512];
  int count = 0;
  struct stat info;
  struct timespec now;
  failures_file(path);
  FILE* file = fopen(path, "r");
  if (file == NULL || stat(path, &info) != 0) {
    return 0;
  }
  if (fscanf(file, "%d", &count) != 1) {
    count = 0;
  }
  fclose(file);
  clock_gettime(CLOCK_REALTIME, &now);
  *age = (double)(now.tv_sec - info.st_mtim.tv_sec) +
         1e-9 * (double)(now.tv_nsec - info.st_mtim.tv_nsec);
  return count;
}

int double_compile_fails(void) {
  static int compiles;
  const char* back_off = double_machine("back_off");
  const char* scale = getenv("DOUBLES_CLOCK");
  double age = 0;
  if (back_off) {
    double seconds = atof(back_off) * 1e-3 * (scale ? atof(scale) : 1.0);
    if (failures(&age) >= 6 && age < seconds) {
      return 1;
    }
  }
  return double_machine("flaky_compile") && ++compiles % 2 == 1;
}

void double_compiled(int well) {
  char path[512];
  double age = 0;
  if (double_machine("back_off")) {
    int count = well ? 0 : failures(&age) + 1;
    failures_file(path);
    FILE* file = fopen(path, "w");
    if (file) {
      fprintf(file, "%d\n", count);
      fclose(file);
    }
  }
}

/* -- what macOS links directly, with names that a machine lacks ------------ */

void* objc_getClass(const char* name) {
  static void* (*real)(const char*);
  if (real == NULL) {
    real = (void* (*)(const char*))dlsym(RTLD_NEXT, "objc_getClass");
  }
  return double_machine_lists("missing", name) ? NULL : real(name);
}

const char* sel_getName(const void* selector);

/* Objective-C itself asks here too, for its own purposes: other selectors pass.
 */
unsigned char class_respondsToSelector(void* cls, const void* selector) {
  static unsigned char (*real)(void*, const void*);
  if (real == NULL) {
    real = (unsigned char (*)(void*, const void*))dlsym(
        RTLD_NEXT, "class_respondsToSelector");
  }
  return !double_machine_lists("lacks", sel_getName(selector)) &&
         real(cls, selector);
}
