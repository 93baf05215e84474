/* State that the doubles share: the engine, faults, balance and a log. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "doubles.h"

#define MAX_FAULTS 32
#define MAX_KINDS 32
#define MAX_LOG 65536

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static const struct double_engine* engine;
static struct {
  char site[64];
  const char* kind;
  int count;
} faults[MAX_FAULTS];
static struct {
  char name[32];
  int live;
} kinds[MAX_KINDS];
static char log_text[MAX_LOG];
static size_t log_size;
static int reversed;
static pthread_cond_t cleared = PTHREAD_COND_INITIALIZER;
static unsigned clears;
static void (*at_clear)(void);

void double_set_engine(const struct double_engine* value) {
  engine = value;
}

const struct double_engine* double_get_engine(void) {
  return engine;
}

static const char* const known[] = {"nil", "error", "nil_error", "exception"};

void double_inject(const char* site, const char* kind, int count) {
  pthread_mutex_lock(&mutex);
  for (size_t k = 0; k < sizeof known / sizeof *known; ++k) {
    if (strcmp(known[k], kind) != 0) {
      continue;
    }
    for (size_t i = 0; i < MAX_FAULTS; ++i) {
      if (faults[i].count == 0) {
        strncpy(faults[i].site, site, sizeof faults[i].site - 1);
        faults[i].kind = known[k];
        faults[i].count = count;
        break;
      }
    }
  }
  pthread_mutex_unlock(&mutex);
}

void double_clear_faults(void) {
  pthread_mutex_lock(&mutex);
  memset(faults, 0, sizeof faults);
  reversed = 0;
  ++clears;
  pthread_cond_broadcast(&cleared);
  pthread_mutex_unlock(&mutex);
  if (at_clear) {
    at_clear();
  }
}

void double_block(void) {
  pthread_mutex_lock(&mutex);
  for (unsigned before = clears; before == clears;) {
    pthread_cond_wait(&cleared, &mutex);
  }
  pthread_mutex_unlock(&mutex);
}

void double_at_clear(void (*release)(void)) {
  at_clear = release;
}

/* The kind that DOUBLES_FAULTS has for a site, or NULL. */
static const char* lasting_fault(const char* site) {
  const char* entry = getenv("DOUBLES_FAULTS");
  size_t size = strlen(site);
  for (; entry && *entry; entry = strchr(entry, ';')) {
    entry += *entry == ';';
    if (strncmp(entry, site, size) == 0 && entry[size] == '=') {
      const char* kind = entry + size + 1;
      for (size_t k = 0; k < sizeof known / sizeof *known; ++k) {
        if (strncmp(kind, known[k], strcspn(kind, ";")) == 0 &&
            strlen(known[k]) == strcspn(kind, ";")) {
          return known[k];
        }
      }
    }
  }
  return NULL;
}

const char* double_fault(const char* site) {
  const char* kind = lasting_fault(site);
  pthread_mutex_lock(&mutex);
  for (size_t i = 0; i < MAX_FAULTS && kind == NULL; ++i) {
    if (faults[i].count > 0 && strcmp(faults[i].site, site) == 0) {
      --faults[i].count;
      kind = faults[i].kind;
    }
  }
  pthread_mutex_unlock(&mutex);
  return kind;
}

void double_reverse_symbols(int reverse) {
  reversed = reverse;
}

int double_symbols_reversed(void) {
  return reversed;
}

void double_count(const char* kind, int change) {
  pthread_mutex_lock(&mutex);
  for (size_t i = 0; i < MAX_KINDS; ++i) {
    if (kinds[i].name[0] == 0) {
      strncpy(kinds[i].name, kind, sizeof kinds[i].name - 1);
    }
    if (strcmp(kinds[i].name, kind) == 0) {
      kinds[i].live += change;
      break;
    }
  }
  pthread_mutex_unlock(&mutex);
}

const char* double_kind(size_t index) {
  return index < MAX_KINDS && kinds[index].name[0] ? kinds[index].name : NULL;
}

int double_live(const char* kind) {
  int live = 0;
  pthread_mutex_lock(&mutex);
  for (size_t i = 0; i < MAX_KINDS; ++i) {
    if (strcmp(kinds[i].name, kind) == 0) {
      live = kinds[i].live;
    }
  }
  pthread_mutex_unlock(&mutex);
  return live;
}

void double_log(const char* step) {
  size_t size = strlen(step) + 1;
  pthread_mutex_lock(&mutex);
  if (log_size + size >= MAX_LOG) {
    log_size = 0;
  }
  memcpy(log_text + log_size, step, size - 1);
  log_text[log_size + size - 1] = '\n';
  log_size += size;
  log_text[log_size] = 0;
  pthread_mutex_unlock(&mutex);
}

const char* double_read_log(void) {
  static char copy[MAX_LOG];
  pthread_mutex_lock(&mutex);
  memcpy(copy, log_text, log_size + 1);
  pthread_mutex_unlock(&mutex);
  return copy;
}

void double_clear_log(void) {
  pthread_mutex_lock(&mutex);
  log_size = 0;
  log_text[0] = 0;
  pthread_mutex_unlock(&mutex);
}
