// Double of what macOS links directly: IOSurface, CFRelease, sysctlbyname and blocks.
#import <Foundation/Foundation.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "doubles.h"
#include "surface.h"

NSString* const kIOSurfaceWidth = @"IOSurfaceWidth";
NSString* const kIOSurfaceHeight = @"IOSurfaceHeight";
NSString* const kIOSurfaceBytesPerElement = @"IOSurfaceBytesPerElement";
NSString* const kIOSurfaceBytesPerRow = @"IOSurfaceBytesPerRow";
NSString* const kIOSurfaceAllocSize = @"IOSurfaceAllocSize";
NSString* const kIOSurfacePixelFormat = @"IOSurfacePixelFormat";

static size_t property(NSDictionary* properties, NSString* key) {
  return [[properties objectForKey:key] unsignedLongLongValue];
}

// Rows of a whole number of elements: BytesPerRow * Height may not exceed
// AllocSize.
IOSurfaceRef IOSurfaceCreate(const void* dictionary) {
  NSDictionary* properties = (NSDictionary*)dictionary;
  size_t width = property(properties, kIOSurfaceWidth);
  size_t height = property(properties, kIOSurfaceHeight);
  size_t element = property(properties, kIOSurfaceBytesPerElement);
  size_t row = property(properties, kIOSurfaceBytesPerRow);
  size_t bytes = property(properties, kIOSurfaceAllocSize);
  if (double_fault("surface") || double_get_engine()->refuses_surface() ||
      width == 0 || height == 0 || element == 0 || row < width * element ||
      bytes < row * height ||
      [properties objectForKey:kIOSurfacePixelFormat] == nil) {
    return NULL;
  }
  IOSurfaceRef surface = calloc(1, sizeof *surface);
  surface->magic = SURFACE_MAGIC;
  surface->references = 1;
  surface->bytes = (bytes + 16383) / 16384 * 16384;
  surface->width = width;
  surface->height = height;
  surface->row_bytes = row;
  surface->format = (uint32_t)property(properties, kIOSurfacePixelFormat);
  surface->memory = aligned_alloc(16384, surface->bytes);
  memset(surface->memory, 0, surface->bytes);
  double_count("surface", 1);
  return surface;
}

const void* CFRetain(const void* object) {
  IOSurfaceRef surface = (IOSurfaceRef)object;
  __atomic_add_fetch(&surface->references, 1, __ATOMIC_RELAXED);
  return object;
}

// Too many releases, or a release under a lock, end the process.
void CFRelease(const void* object) {
  IOSurfaceRef surface = (IOSurfaceRef)object;
  if (surface->magic == BUFFER_MAGIC) {
    CVPixelBufferRef buffer = (CVPixelBufferRef)object;
    if (__atomic_sub_fetch(&buffer->references, 1, __ATOMIC_ACQ_REL) == 0) {
      CFRelease(buffer->surface);
      double_count("pixels", -1);
      buffer->magic = 0;
      free(buffer);
    }
    return;
  }
  if (surface->magic != SURFACE_MAGIC) {
    abort();
  }
  if (__atomic_sub_fetch(&surface->references, 1, __ATOMIC_ACQ_REL) == 0) {
    if (surface->locks != 0) {
      abort();
    }
    double_count("surface", -1);
    surface->magic = 0;
    free(surface->memory);
    free(surface);
  }
}

int IOSurfaceLock(IOSurfaceRef surface, uint32_t options, uint32_t* seed) {
  (void)options;
  (void)seed;
  if (double_fault("lock")) {
    return (int)0xe00002bc;
  }
  __atomic_add_fetch(&surface->locks, 1, __ATOMIC_ACQ_REL);
  double_count("lock", 1);
  return 0;
}

int IOSurfaceUnlock(IOSurfaceRef surface, uint32_t options, uint32_t* seed) {
  (void)options;
  (void)seed;
  if (__atomic_sub_fetch(&surface->locks, 1, __ATOMIC_ACQ_REL) < 0) {
    abort();
  }
  double_count("lock", -1);
  return 0;
}

void* IOSurfaceGetBaseAddress(IOSurfaceRef surface) {
  return surface->memory;
}

size_t IOSurfaceGetAllocSize(IOSurfaceRef surface) {
  return surface->bytes;
}

// The runtime of blocks: what a callee keeps is copied, and counted.
void* _NSConcreteStackBlock[32];

struct block {
  void* isa;
  int flags;
  int references;
  void (*invoke)(void);
  const struct {
    unsigned long reserved, size;
    void (*copy)(void* to, const void* from);
    void (*dispose)(const void* block);
  }* descriptor;
};

void* _Block_copy(const void* literal) {
  const struct block* from = literal;
  // Not on the stack, or one that the copy would not take along: our own error.
  if (from->isa != _NSConcreteStackBlock || !(from->flags & (1 << 25))) {
    abort();
  }
  struct block* copied = malloc(from->descriptor->size);
  memcpy(copied, from, from->descriptor->size);
  from->descriptor->copy(copied, from);
  double_count("block", 1);
  return copied;
}

void _Block_release(const void* literal) {
  const struct block* block = literal;
  block->descriptor->dispose(block);
  double_count("block", -1);
  free((void*)block);
}

int sysctlbyname(
    const char* name,
    void* value,
    size_t* size,
    void* new_value,
    size_t new_size) {
  static const char* const answers[][2] = {
      {"kern.osversion", "25E246"},
      {"machdep.cpu.brand_string", "Apple M4 double"},
      {"hw.model", "Mac16,1"},
  };
  (void)new_value;
  (void)new_size;
  for (size_t i = 0; i < sizeof answers / sizeof *answers; ++i) {
    size_t needed = strlen(answers[i][1]) + 1;
    if (strcmp(answers[i][0], name) == 0 && *size >= needed) {
      memcpy(value, answers[i][1], needed);
      *size = needed;
      return 0;
    }
  }
  errno = ENOENT;
  return -1;
}
