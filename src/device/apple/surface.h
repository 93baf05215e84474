// Surfaces on IOSurface.
#pragma once

#include <memory>

#include "device/apple/objc.h"
#include "device/device.h"

namespace mlx_ane::apple {

/// One IOSurface and the wrapper that requests take.
class IOSurfaceMemory : public Surface {
 public:
  /// `bytes` is already rounded. Throws DeviceError{out_of_memory}.
  explicit IOSurfaceMemory(size_t bytes);
  ~IOSurfaceMemory() override;
  size_t bytes() const override;
  std::byte* lock(Access access) override;
  void unlock(Access access) override;

  /// The _ANEIOSurfaceObject of this surface.
  id wrapper() const {
    return wrapper_.get();
  }

 private:
  struct Release {
    void operator()(__IOSurface* surface) const {
      CFRelease(surface);
    }
  };
  std::unique_ptr<__IOSurface, Release> surface_;
  Ref wrapper_;
};

/// Rounds up to whole 16 KiB pages and the limits' minimum.
size_t round_surface(size_t bytes, const Limits& limits);

}  // namespace mlx_ane::apple
