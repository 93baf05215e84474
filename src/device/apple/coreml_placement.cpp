// Where Core ML runs a program: by its plan, and by the rounding of an answer.
#include "device/apple/coreml_placement.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "device/apple/coreml_surface.h"
#include "host/half.h"
#include "host/loops.h"

namespace mlx_ane::apple::coreml {

namespace {

/// A leading block of an operand. Symmetric, so that it is the same in every
/// layout: the products of both blocks have the tie at (0, 0) and the large sum
/// at (2, 2).
constexpr int64_t probe_size = 3;
using Probe = std::array<std::array<float, probe_size>, probe_size>;
constexpr Probe x_probe{{{2048, 1, 0}, {1, 0, 0}, {0, 0, 2048}}};
constexpr Probe w_probe{{{1, 1, 0}, {1, 0, 0}, {0, 0, 20}}};

/// Bytes between the elements (r, c), (r + 1, c) and (r, c + 1) of a port as a
/// matrix: its two axes longer than 1. Nothing for another tensor.
struct Strides {
  size_t row;
  size_t column;
};
std::optional<Strides> matrix_strides(const std::vector<int64_t>& shape) {
  Port port{"", shape, 2};
  std::vector<size_t> found;
  size_t stride = row_bytes(port);
  for (size_t axis = shape.size(); axis-- > 0;) {
    bool last = axis + 1 == shape.size();
    if (shape[axis] > 1) {
      if (shape[axis] < probe_size) {
        return std::nullopt;
      }
      found.push_back(last ? port.element_size : stride);
    }
    stride *= last ? 1 : static_cast<size_t>(shape[axis]);
  }
  return found.size() == 2 ? std::optional(Strides{found[1], found[0]})
                           : std::nullopt;
}

uint16_t* at(std::byte* data, const Port& port, int64_t r, int64_t c) {
  auto strides = *matrix_strides(port.shape);
  return reinterpret_cast<uint16_t*>(
      data + r * strides.row + c * strides.column);
}

/// Whoever computed it, 2049 is 2048 or 2050.
void check_tie(uint16_t bits) {
  auto value = host::half_to_float(bits);
  if (bits == host::canary || !(std::abs(value - 2049.0f) <= 1.0f)) {
    throw DeviceError(
        bits == host::canary    ? Cause::wrote_nothing
        : !std::isfinite(value) ? Cause::nonfinite
                                : Cause::wrong_values,
        "[mlx_ane.ane] Core ML's first answer for known operands is " +
            std::to_string(value) + ", need 2048 or 2050.");
  }
}

}  // namespace

Planned read_plan(id plan) {
  Planned out;
  auto structure = plan ? send(plan, "modelStructure") : nullptr;
  auto program = structure ? send(structure, "program") : nullptr;
  auto functions = program ? send(program, "functions") : nullptr;
  auto main = lookup(functions, "main");
  auto block = main ? send(main, "block") : nullptr;
  auto operations = block ? send(block, "operations") : nullptr;
  auto engine = class_named("MLNeuralEngineComputeDevice");
  for (size_t i = 0; i < count(operations); ++i) {
    auto operation = element(operations, i);
    auto usage =
        send(plan, "computeDeviceUsageForMLProgramOperation:", operation);
    // Constants have no usage, operations without a cost no device.
    auto device = usage ? send(usage, "preferredComputeDevice") : nullptr;
    if (device == nullptr) {
      continue;
    }
    out.engine = true;
    if (!out.elsewhere && !send<ObjcBool>(device, "isKindOfClass:", engine)) {
      out.elsewhere = "Core ML would run " +
                      to_text(send(operation, "operatorName")) + " on " +
                      class_getName(object_getClass(device));
    }
  }
  out.engine = out.engine && !out.elsewhere;
  return out;
}

bool is_product(const mil::Program& program, const Source& source) {
  auto& operations = program.functions.at(0).operations;
  auto products =
      std::count_if(operations.begin(), operations.end(), [](auto& operation) {
        return operation.op == "matmul";
      });
  auto others =
      std::any_of(operations.begin(), operations.end(), [](auto& operation) {
        return operation.op != "matmul" && operation.op != "const" &&
               operation.op != "reshape" && operation.op != "transpose";
      });
  auto matrices = [](const std::vector<Port>& ports, size_t number) {
    return ports.size() == number &&
           std::all_of(ports.begin(), ports.end(), [](auto& port) {
             return matrix_strides(port.shape).has_value();
           });
  };
  return products == 1 && !others && matrices(source.inputs, 2) &&
         matrices(source.outputs, 1);
}

Fingerprint ask_rounding(
    const Source& source,
    size_t bytes,
    const std::function<
        void(std::span<Surface* const>, std::span<Surface* const>)>& evaluate) {
  PixelSurface x(bytes, source.inputs[0]), w(bytes, source.inputs[1]);
  PixelSurface y(bytes, source.outputs[0]);
  auto fill = [](PixelSurface& surface, const Port& port, const Probe& probe) {
    SurfaceLock lock(surface, Surface::Access::write);
    std::memset(lock.data(), 0, surface.bytes());
    for (int64_t r = 0; r < probe_size; ++r) {
      for (int64_t c = 0; c < probe_size; ++c) {
        *at(lock.data(), port, r, c) = host::float_to_half(probe[r][c]);
      }
    }
  };
  fill(x, source.inputs[0], x_probe);
  fill(w, source.inputs[1], w_probe);
  Surface* inputs[] = {&x, &w};
  Surface* outputs[] = {&y};
  auto& port = source.outputs[0];
  {
    SurfaceLock lock(y, Surface::Access::write);
    *at(lock.data(), port, 0, 0) = host::canary;
  }
  evaluate(inputs, outputs);
  SurfaceLock lock(y, Surface::Access::read);
  auto tie = *at(lock.data(), port, 0, 0);
  check_tie(tie);
  return judge_fingerprint(tie, *at(lock.data(), port, 2, 2));
}

}  // namespace mlx_ane::apple::coreml
