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
  size_t width, height, row_bytes;
  uint32_t format;
};
typedef struct __IOSurface* IOSurfaceRef;

/* The double's CVPixelBuffer: `magic` and `references` lie as in a surface. */
struct __CVBuffer {
  uint64_t magic;
  int references;
  IOSurfaceRef surface;
};
typedef struct __CVBuffer* CVPixelBufferRef;

#define SURFACE_MAGIC 0x494f53757266ull
#define BUFFER_MAGIC 0x435642756666ull

const void* CFRetain(const void* object);
void CFRelease(const void* object);
void* IOSurfaceGetBaseAddress(IOSurfaceRef surface);
size_t IOSurfaceGetAllocSize(IOSurfaceRef surface);
