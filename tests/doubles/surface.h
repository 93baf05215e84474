/* The double's IOSurface. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct __IOSurface {
  uint64_t magic;
  int references;
  int locks;
  size_t bytes;
  void* memory;
};
typedef struct __IOSurface* IOSurfaceRef;

const void* CFRetain(const void* object);
void CFRelease(const void* object);
void* IOSurfaceGetBaseAddress(IOSurfaceRef surface);
size_t IOSurfaceGetAllocSize(IOSurfaceRef surface);
