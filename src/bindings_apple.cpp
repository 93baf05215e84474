// mlx_ane._ext.apple: what the self-test and the tests of the Apple route call.
#ifdef MLX_ANE_APPLE

#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "device/apple/trial.h"
#include "device/apple/verdict.h"
#include "device/programs.h"
#ifdef MLX_ANE_DOUBLES
#include "device/apple/staging.h"
#include "doubles.h"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace mlx_ane {

namespace {

/// (name, shape)
using PortTuple = std::pair<std::string, std::vector<int64_t>>;
using HalfArray =
    nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<Port> to_ports(const std::vector<PortTuple>& tuples) {
  std::vector<Port> ports;
  for (auto& [name, shape] : tuples) {
    ports.push_back({name, shape, 2});
  }
  return ports;
}

std::vector<PortTuple> to_tuples(const std::vector<Port>& ports) {
  std::vector<PortTuple> tuples;
  for (auto& port : ports) {
    tuples.emplace_back(port.name, port.shape);
  }
  return tuples;
}

auto matmul_source_tuple(
    int64_t s,
    int64_t k,
    int64_t n,
    const std::string& layout,
    const std::string& dialect) {
  auto source = matmul_source(
      {s, k, n, layout == "natural" ? Layout::natural : Layout::channels_first},
      dialect == "ios16" ? mil::Dialect::ios16 : mil::Dialect::ios18);
  return std::tuple(
      source.text, to_tuples(source.inputs), to_tuples(source.outputs));
}

nb::dict run(
    const std::string& route,
    const std::string& text,
    const std::vector<PortTuple>& inputs,
    const std::vector<PortTuple>& outputs,
    const std::vector<HalfArray>& values,
    int repeats) {
  Source source{text, {}, to_ports(inputs), to_ports(outputs)};
  std::vector<apple::Halves> halves;
  for (auto& value : values) {
    halves.emplace_back(value.data(), value.data() + value.size());
  }
  apple::Trial trial;
  {
    nb::gil_scoped_release release;
    trial = apple::run_trial(route, source, halves, repeats);
  }
  std::vector<nb::bytes> results;
  for (auto& output : trial.outputs) {
    results.emplace_back(output.data(), output.size() * sizeof(uint16_t));
  }
  nb::dict out;
  out["outputs"] = results;
  out["compile_seconds"] = trial.compile_seconds;
  out["first_seconds"] = trial.first_seconds;
  out["best_seconds"] = trial.best_seconds;
  out["unwritten"] = trial.unwritten;
  return out;
}

#ifdef MLX_ANE_DOUBLES
std::map<std::string, int> live() {
  std::map<std::string, int> counts;
  for (size_t i = 0; double_kind(i); ++i) {
    counts[double_kind(i)] = double_live(double_kind(i));
  }
  return counts;
}

std::vector<std::string> staged() {
  std::vector<std::string> names;
  for (auto& entry :
       std::filesystem::directory_iterator(apple::process_directory())) {
    if (entry.path().filename() != "lock") {
      names.push_back(entry.path().string());
    }
  }
  return names;
}

void bind_doubles(nb::module_& m) {
  m.def("live", &live, "Living objects of the doubles, by kind.");
  m.def("staged", &staged, "Program folders that this process has staged.");
  m.def(
      "log",
      [] { return std::string(double_read_log()); },
      "Steps of the frameworks, one a line.");
  m.def("clear_log", &double_clear_log, "Empties the log.");
  m.def(
      "inject",
      &double_inject,
      "site"_a,
      "kind"_a,
      "count"_a = 1,
      "The next `count` passes of a site fail: nil, error, nil_error or "
      "exception.");
  m.def("clear_faults", &double_clear_faults, "Removes injected faults.");
  m.def(
      "reverse_symbols",
      &double_reverse_symbols,
      "reverse"_a,
      "Lists symbols against the order of their names.");
}
#endif

}  // namespace

void bind_apple(nb::module_& m) {
  m.def(
      "matmul_source",
      &matmul_source_tuple,
      "s"_a,
      "k"_a,
      "n"_a,
      "layout"_a,
      "dialect"_a,
      "(text, inputs, outputs) of the program y (s, n) = x (s, k) w (n, k).T.");
  m.def(
      "run",
      &run,
      "route"_a,
      "text"_a,
      "inputs"_a,
      "outputs"_a,
      "values"_a,
      "repeats"_a = 0,
      "Tries a program on a route; values are fp16 bits, one flat array a "
      "port.");
  m.def(
      "verdict_file",
      [] { return apple::verdict_file().string(); },
      "Where this machine's verdict is kept.");
  m.def(
      "stored_verdict",
      &apple::stored_verdict,
      "The self-test's verdict for this OS build, chip and version, or None.");
  m.def(
      "store_verdict",
      &apple::store_verdict,
      "verdict"_a,
      "Keeps a verdict for later processes.");
#ifdef MLX_ANE_DOUBLES
  auto doubles = m.def_submodule("doubles", "The doubles, for tests.");
  bind_doubles(doubles);
#endif
}

}  // namespace mlx_ane

#endif
