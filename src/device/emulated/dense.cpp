// Dense arrays in and out of padded surfaces.
#include "device/emulated/dense.h"

#include <algorithm>
#include <cstring>

#include "device/emulated/surface_io.h"

namespace mlx_ane::emulated {

namespace {

/// Surfaces for all ports, each as large as the largest.
std::vector<std::vector<std::byte>> make_surfaces(
    const std::vector<mil::Value>& ports) {
  size_t bytes = Limits{}.min_surface_bytes;
  for (auto& port : ports) {
    bytes = std::max(bytes, surface_bytes(port.type));
  }
  return std::vector(ports.size(), std::vector<std::byte>(bytes));
}

/// copy(surface bytes, dense bytes, count) of each run of a port.
template <class Copy>
void each_copy(const Type& type, Copy&& copy) {
  auto size = surface_element_bytes(type.dtype);
  each_run(type, [&](size_t byte, int64_t at, int64_t n) {
    copy(byte, at * size, n * size);
  });
}

std::vector<SurfaceBytes> bytes_of(std::vector<std::vector<std::byte>>& all) {
  std::vector<SurfaceBytes> out;
  for (auto& surface : all) {
    out.push_back({surface.data(), surface.size()});
  }
  return out;
}

}  // namespace

size_t dense_bytes(const Type& type) {
  return static_cast<size_t>(elements(type.shape)) *
         surface_element_bytes(type.dtype);
}

DenseProgram::DenseProgram(
    std::string_view text, const Weights& weights, const Options& options)
    : program_(compile_program(text, weights, options)) {
  program_->load();
}

size_t DenseProgram::procedure(const std::string& name) const {
  std::string names;
  for (size_t i = 0; i < program_->procedures(); ++i) {
    if (program_->name(i) == name) {
      return i;
    }
    names += (i ? ", " : "") + program_->name(i);
  }
  throw std::invalid_argument(
      "[mlx_ane.emulated] got function \"" + name + "\", need one of " + names +
      ".");
}

std::vector<std::vector<std::byte>> DenseProgram::run(
    size_t procedure,
    const std::vector<std::span<const std::byte>>& inputs,
    bool exact) {
  auto& in_ports = program_->inputs(procedure);
  auto& out_ports = program_->outputs(procedure);
  if (inputs.size() != in_ports.size()) {
    throw std::invalid_argument(
        "[mlx_ane.emulated] got " + std::to_string(inputs.size()) +
        " inputs, need " + std::to_string(in_ports.size()) + ".");
  }
  auto in = make_surfaces(in_ports), out = make_surfaces(out_ports);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].size() != dense_bytes(in_ports[i].type)) {
      throw std::invalid_argument(
          "[mlx_ane.emulated] got " + std::to_string(inputs[i].size()) +
          " bytes for input " + in_ports[i].name + ", need " +
          std::to_string(dense_bytes(in_ports[i].type)) + " for " +
          to_string(in_ports[i].type) + ".");
    }
    each_copy(in_ports[i].type, [&](size_t surface, size_t dense, size_t n) {
      std::memcpy(in[i].data() + surface, inputs[i].data() + dense, n);
    });
  }
  program_->evaluate(procedure, bytes_of(in), bytes_of(out), exact);
  std::vector<std::vector<std::byte>> results;
  auto take = [&](const mil::Value& port, const std::vector<std::byte>& from) {
    auto& result = results.emplace_back(dense_bytes(port.type));
    each_copy(port.type, [&](size_t surface, size_t dense, size_t n) {
      std::memcpy(result.data() + dense, from.data() + surface, n);
    });
  };
  for (size_t i = 0; i < out.size(); ++i) {
    take(out_ports[i], out[i]);
  }
  for (size_t i = 0; i < in.size(); ++i) {
    if (in_ports[i].type.state) {
      take(in_ports[i], in[i]);
    }
  }
  return results;
}

}  // namespace mlx_ane::emulated
