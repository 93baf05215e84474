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

/// A tensor's surface, with the rows of its program.
struct Memory {
  std::shared_ptr<Surface> surface;
  const Port* port;
  size_t row_bytes;

  /// Calls body(surface row, dense offset, elements of a row) for every row.
  template <class F>
  void for_rows(std::byte* bytes, F&& body) const {
    auto width = port->shape.empty() ? 1 : port->shape.back();
    auto rows = width ? elements(*port) / width : 0;
    for (int64_t r = 0; r < rows; ++r) {
      body(
          reinterpret_cast<uint16_t*>(bytes + r * row_bytes), r * width, width);
    }
  }
  /// Everything between and after the rows is `rest`.
  void write(const Halves& values, uint16_t rest) const {
    SurfaceLock lock(*surface, Surface::Access::write);
    std::fill_n(
        reinterpret_cast<uint16_t*>(lock.data()), surface->bytes() / 2, rest);
    for_rows(lock.data(), [&](uint16_t* row, int64_t at, int64_t width) {
      std::copy_n(values.data() + at, width, row);
    });
  }
  Halves read() const {
    Halves values(elements(*port));
    SurfaceLock lock(*surface, Surface::Access::read);
    for_rows(lock.data(), [&](uint16_t* row, int64_t at, int64_t width) {
      std::copy_n(row, width, values.data() + at);
    });
    return values;
  }
};

/// Surfaces of one size, which every report accepts.
std::vector<Memory> make_memory(
    Device& device,
    const Executable& executable,
    const std::vector<Port>& ports) {
  std::vector<Memory> memory;
  size_t bytes = 0;
  for (auto& port : ports) {
    memory.push_back({nullptr, &port, executable.row_bytes(port)});
    bytes = std::max(bytes, surface_bytes(port, memory.back().row_bytes));
  }
  for (auto& one : memory) {
    one.surface = device.make_surface(bytes, *one.port);
  }
  return memory;
}

/// A loaded program with its memory.
struct Loaded {
  Source source;
  std::shared_ptr<Executable> executable;
  std::vector<Memory> in, out;

  Loaded(Device& device, const Source& given)
      : source(given),
        executable(device.compile(source)),
        in(make_memory(device, *executable, source.inputs)),
        out(make_memory(device, *executable, source.outputs)) {
  }
  Loaded(const Loaded&) = delete;

  void evaluate() {
    auto pointers = [](const std::vector<Memory>& memory) {
      std::vector<Surface*> surfaces;
      for (auto& one : memory) {
        surfaces.push_back(one.surface.get());
      }
      return surfaces;
    };
    executable->evaluate(pointers(in), pointers(out));
  }
};

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

std::optional<std::string> unavailable(const Way& way) {
  return make_ane_device(way)->unavailable();
}

Trial run_trial(
    const Way& way,
    const Source& source,
    const std::vector<std::vector<Halves>>& sets,
    int repeats,
    const Source& beside) {
  for (auto& inputs : sets) {
    check_inputs(source, inputs);
  }
  auto device = make_ane_device(way);
  Trial trial;
  std::unique_ptr<Loaded> program, other;
  trial.compile_seconds =
      seconds([&] { program = std::make_unique<Loaded>(*device, source); });
  trial.facts = program->executable->facts();
  for (auto& inputs : sets) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      program->in[i].write(inputs[i], 0);
    }
    for (auto& memory : program->out) {
      Halves canaries(elements(*memory.port), host::canary);
      memory.write(canaries, host::canary);
    }
    auto taken = seconds([&] { program->evaluate(); });
    bool first = &inputs == &sets.front();
    if (first) {
      trial.first_seconds = taken;
    }
    for (auto& memory : program->out) {
      trial.outputs.push_back(memory.read());
      auto& values = trial.outputs.back();
      trial.unwritten += std::count(values.begin(), values.end(), host::canary);
    }
    if (first && !beside.text.empty()) {
      other = std::make_unique<Loaded>(*device, beside);
      for (auto& memory : other->in) {
        memory.write(Halves(elements(*memory.port)), 0);
      }
      other->evaluate();
    }
  }
  auto best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < repeats; ++i) {
    best = std::min(best, seconds([&] { program->evaluate(); }));
  }
  trial.best_seconds = repeats > 0 ? best : 0;
  return trial;
}

}  // namespace mlx_ane::apple
