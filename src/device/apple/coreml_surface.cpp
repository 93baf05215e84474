// Surfaces of the Core ML route: fp16 pixel buffers on IOSurface.
#include "device/apple/coreml_surface.h"

#include <dlfcn.h>

#include "device/apple/coreml_block.h"
#include "device/apple/route.h"
#include "device/apple/system.h"

namespace mlx_ane::apple::coreml {

namespace {

struct Library {
  CoreVideo functions;
  std::optional<std::string> missing;

  Library() {
    void* handle = nullptr;
    missing = open_framework("Frameworks", "CoreVideo", &handle);
    auto find = [&](auto& function, const char* name) {
      function = missing ? nullptr
                         : reinterpret_cast<std::decay_t<decltype(function)>>(
                               dlsym(handle, name));
      if (!missing && function == nullptr) {
        missing = "function " + std::string(name) + " is missing on this macOS";
      }
    };
    find(functions.create_with_surface, "CVPixelBufferCreateWithIOSurface");
    find(functions.bytes_per_row, "CVPixelBufferGetBytesPerRow");
  }
};

const Library& library() {
  static const Library opened;
  return opened;
}

id shape_array(const std::vector<int64_t>& shape) {
  auto numbers = array();
  for (auto size : shape) {
    append(numbers, number(size));
  }
  return numbers;
}

struct ReleaseBuffer {
  void operator()(__CVBuffer* buffer) const {
    CFRelease(buffer);
  }
};

Geometry geometry(size_t bytes, const Port& port) {
  size_t height = 1;
  for (size_t i = 0; i + 1 < port.shape.size(); ++i) {
    height *= static_cast<size_t>(port.shape[i]);
  }
  auto width = port.shape.empty() ? 1 : port.shape.back();
  return {
      static_cast<size_t>(width),
      height,
      port.element_size,
      row_bytes(port),
      bytes,
      one_component_half};
}

DeviceError no_memory(const std::string& what) {
  return DeviceError(Cause::out_of_memory, "[mlx_ane.ane] " + what + ".");
}

}  // namespace

std::optional<std::string> open_core_video() {
  return library().missing;
}

PixelSurface::PixelSurface(size_t bytes, const Port& port)
    : SurfaceMemory(geometry(bytes, port)), shape_(port.shape) {
  guarded(Cause::out_of_memory, "making a pixel buffer", [&] {
    auto& video = library().functions;
    PixelBuffer made = nullptr;
    auto code = video.create_with_surface(nullptr, surface(), nullptr, &made);
    std::unique_ptr<__CVBuffer, ReleaseBuffer> buffer(made);
    if (code != 0 || !buffer) {
      throw no_memory(
          "CVPixelBufferCreateWithIOSurface returned " + std::to_string(code));
    }
    // The host packs rows of this size whatever macOS would choose.
    if (auto found = video.bytes_per_row(made); found != row_bytes(port)) {
      throw no_memory(
          "got a pixel buffer with rows of " + std::to_string(found) +
          " bytes, need " + std::to_string(row_bytes(port)));
    }
    auto array = send(
        send(class_named("MLMultiArray"), "alloc"),
        "initWithPixelBuffer:shape:",
        made,
        shape_array(port.shape));
    array_ = Ref(send(array, "autorelease"));
    feature_ = Ref(send(
        class_named("MLFeatureValue"),
        "featureValueWithMultiArray:",
        array_.get()));
    if (!array_ || !feature_) {
      throw no_memory("Core ML gave no array for a pixel buffer");
    }
  });
}

PixelSurface::~PixelSurface() {
  if (!in_same_process()) {
    array_.leak();
    feature_.leak();
  }
}

bool PixelSurface::holds(id array) const {
  return array == array_.get() ||
         (array != nullptr && send<void*>(array, "pixelBuffer") != nullptr &&
          send<void*>(array, "pixelBuffer") ==
              send<void*>(array_.get(), "pixelBuffer"));
}

void copy_array(id array, PixelSurface& surface, const Port& port) {
  auto failed = [&](const std::string& what) {
    return DeviceError(
        Cause::evaluate_failed,
        "[mlx_ane.ane] Core ML answered output " + port.name + " with " + what +
            ".");
  };
  if (array == nullptr) {
    throw failed("nothing");
  }
  if (send<long>(array, "dataType") != float16) {
    throw failed("another type than fp16");
  }
  auto rank = port.shape.size();
  auto shape = send(array, "shape"), strides = send(array, "strides");
  std::vector<int64_t> stride(rank);
  bool same = count(shape) == rank && count(strides) == rank;
  for (size_t i = 0; same && i < rank; ++i) {
    same = send<long long>(element(shape, i), "longLongValue") == port.shape[i];
    stride[i] = send<long long>(element(strides, i), "longLongValue");
  }
  if (!same) {
    throw failed("another shape");
  }
  SurfaceLock lock(surface, Surface::Access::write);
  auto* out = lock.data();
  bool copied = false;
  Block<const void*, long> copy([&](const void* bytes, long) {
    auto* halves = static_cast<const uint16_t*>(bytes);
    auto width = port.shape.back();
    auto rows = static_cast<int64_t>(surface_bytes(port) / row_bytes(port));
    for (int64_t row = 0; row < rows; ++row) {
      int64_t at = 0, rest = row;
      for (size_t axis = rank - 1; axis-- > 0;) {
        at += rest % port.shape[axis] * stride[axis];
        rest /= port.shape[axis];
      }
      auto* to = reinterpret_cast<uint16_t*>(out + row * row_bytes(port));
      for (int64_t i = 0; i < width; ++i) {
        to[i] = halves[at + i * stride[rank - 1]];
      }
    }
    copied = true;
  });
  send<void>(array, "getBytesWithHandler:", copy.get());
  if (!copied) {
    throw failed("an array without bytes");
  }
}

}  // namespace mlx_ane::apple::coreml
