// Surfaces on IOSurface.
#pragma once

#include <memory>

#include "device/apple/objc.h"
#include "device/device.h"

namespace mlx_ane::apple {

/// What IOSurfaceCreate is asked for; `format` 0 is none.
struct Geometry {
  size_t width;
  size_t height;
  size_t element_bytes;
  size_t row_bytes;
  size_t bytes;
  long long format;
};

/// One IOSurface.
class SurfaceMemory : public Surface {
 public:
  /// Throws DeviceError{out_of_memory}.
  explicit SurfaceMemory(const Geometry& geometry);
  ~SurfaceMemory() override;
  size_t bytes() const override;
  std::byte* lock(Access access) override;
  void unlock(Access access) override;

 protected:
  __IOSurface* surface() const {
    return surface_.get();
  }

 private:
  struct Release {
    void operator()(__IOSurface* surface) const {
      CFRelease(surface);
    }
  };
  std::unique_ptr<__IOSurface, Release> surface_;
};

#ifndef MLX_ANE_PUBLIC_ONLY
/// A surface of one row of bytes, the form that every report uses, and the
/// wrapper that requests take.
class IOSurfaceMemory : public SurfaceMemory {
 public:
  /// `bytes` is already rounded. Throws DeviceError{out_of_memory}.
  explicit IOSurfaceMemory(size_t bytes);
  ~IOSurfaceMemory() override;

  /// The _ANEIOSurfaceObject of this surface.
  id wrapper() const {
    return wrapper_.get();
  }

 private:
  Ref wrapper_;
};
#endif

/// Rounds up to whole 16 KiB pages and the limits' minimum.
size_t round_surface(size_t bytes, const Limits& limits);

}  // namespace mlx_ane::apple
