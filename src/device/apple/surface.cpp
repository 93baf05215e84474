// Surfaces on IOSurface.
#include "device/apple/surface.h"

#include <algorithm>

#include "device/apple/system.h"

namespace mlx_ane::apple {

namespace {

/// A surface of one row of bytes, the form that every report uses.
__IOSurface* create(size_t bytes) {
  auto properties = dictionary();
  auto put = [&](const void* key, long long value) {
    set(properties, static_cast<id>(const_cast<void*>(key)), number(value));
  };
  auto size = static_cast<long long>(bytes);
  put(kIOSurfaceWidth, size);
  put(kIOSurfaceHeight, 1);
  put(kIOSurfaceBytesPerElement, 1);
  put(kIOSurfaceBytesPerRow, size);
  put(kIOSurfaceAllocSize, size);
  put(kIOSurfacePixelFormat, 0);
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

IOSurfaceMemory::IOSurfaceMemory(size_t bytes) {
  guarded(Cause::out_of_memory, "IOSurfaceCreate", [&] {
    surface_.reset(create(bytes));
    if (!surface_) {
      throw DeviceError(
          Cause::out_of_memory,
          "[mlx_ane.ane] IOSurfaceCreate gave nothing for " +
              std::to_string(bytes) +
              " bytes, free memory or lower mlx_ane.set_cache_limit.");
    }
    wrapper_ = Ref(send(
        class_named("_ANEIOSurfaceObject"),
        "objectWithIOSurface:",
        surface_.get()));
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
    surface_.release();
  }
}

size_t IOSurfaceMemory::bytes() const {
  return IOSurfaceGetAllocSize(surface_.get());
}

std::byte* IOSurfaceMemory::lock(Access access) {
  if (auto code = IOSurfaceLock(surface_.get(), options(access), nullptr)) {
    throw DeviceError(
        Cause::evaluate_failed,
        "[mlx_ane.ane] IOSurfaceLock returned " + std::to_string(code) + ".");
  }
  return static_cast<std::byte*>(IOSurfaceGetBaseAddress(surface_.get()));
}

void IOSurfaceMemory::unlock(Access access) {
  IOSurfaceUnlock(surface_.get(), options(access), nullptr);
}

}  // namespace mlx_ane::apple
