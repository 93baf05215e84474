// Surfaces of the Core ML route: fp16 pixel buffers on IOSurface.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "device/apple/coreml_abi.h"
#include "device/apple/surface.h"

namespace mlx_ane::apple::coreml {

/// Opens CoreVideo once; why that failed, or nothing.
std::optional<std::string> open_core_video();

/// A surface that Core ML reads and writes in place: as wide as the port's last
/// axis, as high as the product of the others.
class PixelSurface : public SurfaceMemory {
 public:
  /// `bytes` is already rounded. Throws DeviceError{out_of_memory}.
  PixelSurface(size_t bytes, const Port& port);
  ~PixelSurface() override;

  const std::vector<int64_t>& shape() const {
    return shape_;
  }
  /// The MLMultiArray of the port's shape, and the MLFeatureValue of it. They
  /// own the memory: Core ML may hold inputs for a second after a call
  /// (coremltools#2827).
  id array() const {
    return array_.get();
  }
  id feature() const {
    return feature_.get();
  }
  /// Whether an MLMultiArray lies in this surface.
  bool holds(id array) const;

 private:
  std::vector<int64_t> shape_;
  Ref array_;
  Ref feature_;
};

/// Copies an fp16 MLMultiArray of Core ML's own to a surface of its shape.
/// Throws DeviceError{evaluate_failed}.
void copy_array(id array, PixelSurface& surface, const Port& port);

}  // namespace mlx_ane::apple::coreml
