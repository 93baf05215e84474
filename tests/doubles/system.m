// Double of what macOS links directly: IOSurface, CFRelease and sysctlbyname.
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

#define MAGIC 0x494f53757266ull

static size_t property(NSDictionary* properties, NSString* key) {
  return [[properties objectForKey:key] unsignedLongLongValue];
}

// One row of bytes: BytesPerRow * Height may not exceed AllocSize.
IOSurfaceRef IOSurfaceCreate(const void* dictionary) {
  NSDictionary* properties = (NSDictionary*)dictionary;
  size_t width = property(properties, kIOSurfaceWidth);
  size_t bytes = property(properties, kIOSurfaceAllocSize);
  if (double_fault("surface") || double_get_engine()->refuses_surface() ||
      width == 0 || bytes == 0 || property(properties, kIOSurfaceHeight) != 1 ||
      property(properties, kIOSurfaceBytesPerElement) != 1 ||
      property(properties, kIOSurfaceBytesPerRow) < width ||
      [properties objectForKey:kIOSurfacePixelFormat] == nil) {
    return NULL;
  }
  IOSurfaceRef surface = calloc(1, sizeof *surface);
  surface->magic = MAGIC;
  surface->references = 1;
  surface->bytes = (bytes + 16383) / 16384 * 16384;
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
  if (surface->magic != MAGIC) {
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
