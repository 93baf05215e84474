// One program tried on one route, with the time of each step: the self-test's
// tool.
#include "device/apple/trial.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "device/apple/apple.h"
#include "host/loops.h"

namespace mlx_ane::apple {

namespace {

template <class F>
double seconds(F&& body) {
  auto start = std::chrono::steady_clock::now();
  body();
  std::chrono::duration<double> taken =
      std::chrono::steady_clock::now() - start;
  return taken.count();
}

int64_t elements(const Port& port) {
  int64_t count = 1;
  for (auto size : port.shape) {
    count *= size;
  }
  return count;
}

/// Calls body(surface row, dense offset, elements of a row) for every row.
template <class F>
void for_rows(const Port& port, std::byte* bytes, F&& body) {
  auto width = port.shape.empty() ? 1 : port.shape.back();
  auto rows = width ? elements(port) / width : 0;
  for (int64_t r = 0; r < rows; ++r) {
    body(
        reinterpret_cast<uint16_t*>(bytes + r * row_bytes(port)),
        r * width,
        width);
  }
}

void write(Surface& surface, const Port& port, const Halves& values) {
  SurfaceLock lock(surface, Surface::Access::write);
  std::memset(lock.data(), 0, surface.bytes());
  for_rows(port, lock.data(), [&](uint16_t* row, int64_t at, int64_t width) {
    std::copy_n(values.data() + at, width, row);
  });
}

Halves read(Surface& surface, const Port& port) {
  Halves values(elements(port));
  SurfaceLock lock(surface, Surface::Access::read);
  for_rows(port, lock.data(), [&](uint16_t* row, int64_t at, int64_t width) {
    std::copy_n(row, width, values.data() + at);
  });
  return values;
}

/// Surfaces of one size, which every report accepts.
std::vector<std::shared_ptr<Surface>> make_surfaces(
    Device& device, const std::vector<Port>& ports) {
  size_t bytes = 0;
  for (auto& port : ports) {
    bytes = std::max(bytes, surface_bytes(port));
  }
  std::vector<std::shared_ptr<Surface>> surfaces;
  for (auto& port : ports) {
    surfaces.push_back(device.make_surface(bytes, port));
  }
  return surfaces;
}

std::vector<Surface*> pointers(
    const std::vector<std::shared_ptr<Surface>>& surfaces) {
  std::vector<Surface*> out;
  for (auto& surface : surfaces) {
    out.push_back(surface.get());
  }
  return out;
}

void check_inputs(const Source& source, const std::vector<Halves>& inputs) {
  bool fit = inputs.size() == source.inputs.size();
  for (size_t i = 0; fit && i < inputs.size(); ++i) {
    fit = static_cast<int64_t>(inputs[i].size()) == elements(source.inputs[i]);
  }
  if (!fit) {
    throw std::invalid_argument(
        "[mlx_ane.selftest] got inputs of other sizes than the program's "
        "ports, need one fp16 array for each.");
  }
}

}  // namespace

Trial run_trial(
    const std::string& route,
    const Source& source,
    const std::vector<Halves>& inputs,
    int repeats) {
  check_inputs(source, inputs);
  auto device = make_ane_device(route);
  auto in = make_surfaces(*device, source.inputs);
  auto out = make_surfaces(*device, source.outputs);
  for (size_t i = 0; i < in.size(); ++i) {
    write(*in[i], source.inputs[i], inputs[i]);
  }
  for (size_t i = 0; i < out.size(); ++i) {
    auto& port = source.outputs[i];
    write(*out[i], port, Halves(elements(port), host::canary));
  }
  Trial trial;
  std::shared_ptr<Executable> executable;
  auto in_pointers = pointers(in), out_pointers = pointers(out);
  auto evaluate = [&] { executable->evaluate(in_pointers, out_pointers); };
  trial.compile_seconds =
      seconds([&] { executable = device->compile(source); });
  trial.first_seconds = seconds(evaluate);
  for (size_t i = 0; i < out.size(); ++i) {
    trial.outputs.push_back(read(*out[i], source.outputs[i]));
    trial.unwritten += std::count(
        trial.outputs[i].begin(), trial.outputs[i].end(), host::canary);
  }
  auto best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) {
    best = std::min(best, seconds(evaluate));
  }
  trial.best_seconds = repeats > 0 ? best : 0;
  return trial;
}

}  // namespace mlx_ane::apple
