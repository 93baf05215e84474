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

#include "device/apple/route.h"
#include "device/apple/system.h"
#include "device/apple/trial.h"
#include "device/apple/verdict.h"
#include "device/fingerprint.h"
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
      {s, k, n, layout_named(layout)},
      dialect == "ios16" ? mil::Dialect::ios16 : mil::Dialect::ios18);
  return std::tuple(
      source.text, to_tuples(source.inputs), to_tuples(source.outputs));
}

/// (text, inputs, outputs)
using SourceTuple =
    std::tuple<std::string, std::vector<PortTuple>, std::vector<PortTuple>>;

Source to_source(const SourceTuple& tuple) {
  auto& [text, inputs, outputs] = tuple;
  return {text, {}, to_ports(inputs), to_ports(outputs)};
}

Way to_way(
    const std::string& route,
    const std::string& staging,
    size_t row_alignment,
    bool on_cpu) {
  return {route, staging, on_cpu, row_alignment};
}

nb::dict run(
    const SourceTuple& source,
    const std::vector<std::vector<HalfArray>>& sets,
    int repeats,
    const std::optional<SourceTuple>& beside,
    const std::string& route,
    const std::string& staging,
    size_t row_alignment,
    bool on_cpu) {
  std::vector<std::vector<apple::Halves>> halves;
  for (auto& values : sets) {
    auto& set = halves.emplace_back();
    for (auto& value : values) {
      set.emplace_back(value.data(), value.data() + value.size());
    }
  }
  auto program = to_source(source);
  auto other = beside ? to_source(*beside) : Source{};
  auto way = to_way(route, staging, row_alignment, on_cpu);
  apple::Trial trial;
  {
    nb::gil_scoped_release release;
    trial = apple::run_trial(way, program, halves, repeats, other);
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
  out["facts"] = trial.facts;
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
      "source"_a,
      "sets"_a,
      "repeats"_a = 0,
      "beside"_a = nb::none(),
      nb::kw_only(),
      "route"_a,
      "staging"_a = "",
      "row_alignment"_a = 0,
      "on_cpu"_a = false,
      "Tries a program (text, inputs, outputs) on a route, once for each set "
      "of values: fp16 bits, one flat array a port. `beside` is loaded and run "
      "in between.");
  m.def(
      "unavailable",
      [](const std::string& route) { return apple::unavailable({route}); },
      "route"_a,
      "Why a route cannot be used here, or None if it can.");
  m.def("facts", &apple::engine_facts, "What the system says of the machine.");
  m.def("os_build", &apple::os_build, "The build of the system.");
  m.def(
      "fingerprint_operands",
      [](int64_t s, int64_t k, int64_t n) {
        auto operands = fingerprint_operands(s, k, n);
        return std::pair(operands.x, operands.w);
      },
      "s"_a,
      "k"_a,
      "n"_a,
      "Known operands, fp16 bits, whose product tells who computed it.");
  m.def(
      "judge_fingerprint",
      [](uint16_t tie, uint16_t large) {
        return std::string(to_string(judge_fingerprint(tie, large)));
      },
      "tie"_a,
      "large"_a,
      "Judges the first two elements of that product, as fp16 bits.");
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
