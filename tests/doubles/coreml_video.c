/* Double of CoreVideo.framework: pixel buffers over IOSurface. */
#include <stdlib.h>

#include "doubles.h"
#include "surface.h"

int32_t CVPixelBufferCreateWithIOSurface(
    const void* allocator,
    IOSurfaceRef surface,
    const void* attributes,
    CVPixelBufferRef* out) {
  (void)allocator;
  (void)attributes;
  /* 'L00h' is the only format of one half a pixel. */
  if (double_fault("ml_pixels") || surface->format != 0x4c303068) {
    return -6680; /* kCVReturnInvalidPixelFormat */
  }
  CVPixelBufferRef made = calloc(1, sizeof *made);
  made->magic = BUFFER_MAGIC;
  made->references = 1;
  made->surface = (IOSurfaceRef)CFRetain(surface);
  double_count("pixels", 1);
  *out = made;
  return 0;
}

size_t CVPixelBufferGetBytesPerRow(CVPixelBufferRef buffer) {
  return double_fault("ml_rows") ? buffer->surface->row_bytes + 64
                                 : buffer->surface->row_bytes;
}
