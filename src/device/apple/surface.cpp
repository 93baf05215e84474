// Surfaces on IOSurface.
#include "device/apple/surface.h"

#include <algorithm>

#include "device/apple/system.h"

namespace mlx_ane::apple {

namespace {

__IOSurface* create(const Geometry& geometry) {
  auto properties = dictionary();
  auto put = [&](const void* key, long long value) {
    set(properties, static_cast<id>(const_cast<void*>(key)), number(value));
  };
  put(kIOSurfaceWidth, static_cast<long long>(geometry.width));
  put(kIOSurfaceHeight, static_cast<long long>(geometry.height));
  put(kIOSurfaceBytesPerElement,
      static_cast<long long>(geometry.element_bytes));
  put(kIOSurfaceBytesPerRow, static_cast<long long>(geometry.row_bytes));
  put(kIOSurfaceAllocSize, static_cast<long long>(geometry.bytes));
  put(kIOSurfacePixelFormat, geometry.format);
  return IOSurfaceCreate(properties);
}

uint32_t options(Surface::Access access) {
  return access == Surface::Access::read ? lock_read_only : 0;
}

}  // namespace

size_t round_surface(size_t bytes, const Limits& limits) {
  constexpr size_t page = 16 * 1024;
  bytes = std::max(bytes, limits.min_surface_bytes);
  return (bytes + page - 1) / page * page;
}

SurfaceMemory::SurfaceMemory(const Geometry& geometry) {
  guarded(Cause::out_of_memory, "IOSurfaceCreate", [&] {
    surface_.reset(create(geometry));
    if (!surface_) {
      throw DeviceError(
          Cause::out_of_memory,
          "[mlx_ane.ane] IOSurfaceCreate gave nothing for " +
              std::to_string(geometry.bytes) +
              " bytes, free memory or lower mlx_ane.set_cache_limit.");
    }
  });
}

SurfaceMemory::~SurfaceMemory() {
  if (!in_same_process()) {
    surface_.release();
  }
}

#ifndef MLX_ANE_PUBLIC_ONLY
IOSurfaceMemory::IOSurfaceMemory(size_t bytes)
    : SurfaceMemory({bytes, 1, 1, bytes, bytes, 0}) {
  guarded(Cause::out_of_memory, "objectWithIOSurface:", [&] {
    wrapper_ = Ref(send(
        class_named("_ANEIOSurfaceObject"), "objectWithIOSurface:", surface()));
    if (!wrapper_) {
      throw DeviceError(
          Cause::out_of_memory,
          "[mlx_ane.ane] +[_ANEIOSurfaceObject objectWithIOSurface:] gave "
          "nil.");
    }
  });
}

IOSurfaceMemory::~IOSurfaceMemory() {
  if (!in_same_process()) {
    wrapper_.leak();
  }
}
#endif

size_t SurfaceMemory::bytes() const {
  return IOSurfaceGetAllocSize(surface_.get());
}

std::byte* SurfaceMemory::lock(Access access) {
  if (auto code = IOSurfaceLock(surface_.get(), options(access), nullptr)) {
    throw DeviceError(
        Cause::evaluate_failed,
        "[mlx_ane.ane] IOSurfaceLock returned " + std::to_string(code) + ".");
  }
  return static_cast<std::byte*>(IOSurfaceGetBaseAddress(surface_.get()));
}

void SurfaceMemory::unlock(Access access) {
  IOSurfaceUnlock(surface_.get(), options(access), nullptr);
}

}  // namespace mlx_ane::apple
