// Own declarations of what the Core ML route calls beside Objective-C.
#pragma once

#include "device/apple/apple_abi.h"

extern "C" {
struct __CVBuffer;
/// The class of blocks on the stack, which a callee copies to keep them.
extern void* _NSConcreteStackBlock[];
}

namespace mlx_ane::apple::coreml {

/// CVPixelBufferRef
using PixelBuffer = __CVBuffer*;

/// kCVPixelFormatType_OneComponent16Half, 'L00h'
inline constexpr long long one_component_half = 0x4c303068;
/// MLMultiArrayDataTypeFloat16
inline constexpr long float16 = 65552;
/// MLComputeUnitsCPUAndNeuralEngine. Not All: it ends the process on an M5 Pro
/// (ultralytics#24885).
inline constexpr long cpu_and_engine = 3;

/// Functions of CoreVideo, found by name. CVPixelBufferRelease is CFRelease.
struct CoreVideo {
  int32_t (*create_with_surface)(
      const void* allocator,
      __IOSurface* surface,
      const void* attributes,
      PixelBuffer* out) = nullptr;
  size_t (*bytes_per_row)(PixelBuffer buffer) = nullptr;
};

}  // namespace mlx_ane::apple::coreml
