// mlx_ane._ext.emulated: signatures and docstrings.
#include "bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "device/emulated/dense.h"
#include "device/emulated/faults.h"
#include "device/emulated/rules.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mlx_ane {

namespace {

using emulated::DenseProgram;
using emulated::EngineError;
using emulated::Level;
using emulated::Options;

/// (name, dtype, shape)
using PortTuple = std::tuple<std::string, std::string, std::vector<int64_t>>;
using Bytes =
    nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Options make_options(
    const std::string& chip,
    bool exact,
    const std::string& limits,
    const mil::Allow& allow,
    int64_t memory_budget) {
  mil::check_allow(allow, "mlx_ane.emulated");
  return {chip, exact, emulated::level_named(limits), allow, {}, memory_budget};
}

std::vector<PortTuple> ports(const std::vector<mil::Value>& values) {
  std::vector<PortTuple> out;
  for (auto& value : values) {
    out.emplace_back(
        value.name, mil::to_string(value.type.dtype), value.type.shape);
  }
  return out;
}

emulated::Weights to_weights(const std::map<std::string, nb::bytes>& weights) {
  emulated::Weights out;
  for (auto& [path, bytes] : weights) {
    auto* data = reinterpret_cast<const std::byte*>(bytes.c_str());
    out[path] = std::make_shared<const std::vector<std::byte>>(
        data, data + bytes.size());
  }
  return out;
}

std::vector<nb::bytes> run(
    DenseProgram& program,
    size_t procedure,
    const std::vector<Bytes>& inputs,
    bool exact) {
  std::vector<std::span<const std::byte>> in;
  for (auto& input : inputs) {
    in.push_back(std::as_bytes(std::span(input.data(), input.size())));
  }
  std::vector<std::vector<std::byte>> out;
  {
    nb::gil_scoped_release release;
    out = program.run(procedure, in, exact);
  }
  std::vector<nb::bytes> results;
  for (auto& bytes : out) {
    results.emplace_back(bytes.data(), bytes.size());
  }
  return results;
}

/// Raises mlx_ane.emulated.ProgramError or EngineError with the error's facts.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const EngineError& e) {
    bool program =
        e.stage == mil::Stage::parse || e.stage == mil::Stage::compile;
    auto type = nb::module_::import_("mlx_ane.emulated")
                    .attr(program ? "ProgramError" : "EngineError");
    auto error = type(e.what(), to_string(e.stage), e.rule, e.code, e.domain);
    PyErr_SetObject(type.ptr(), error.ptr());
  }
}

void bind_program(nb::module_& m) {
  nb::class_<DenseProgram>(m, "Program", "A MIL program compiled and loaded.")
      .def(
          "__init__",
          [](DenseProgram* self,
             const nb::bytes& text,
             const std::map<std::string, nb::bytes>& weights,
             const std::string& chip,
             const std::string& limits,
             const std::set<std::string>& allow,
             int64_t memory_budget) {
            auto options =
                make_options(chip, false, limits, allow, memory_budget);
            auto files = to_weights(weights);
            std::string_view mil(text.c_str(), text.size());
            nb::gil_scoped_release release;
            new (self) DenseProgram(mil, files, options);
          },
          "text"_a,
          "weights"_a,
          nb::kw_only(),
          "chip"_a,
          "limits"_a,
          "allow"_a,
          "memory_budget"_a)
      .def("procedure", &DenseProgram::procedure, "name"_a)
      .def(
          "name",
          [](DenseProgram& self, size_t i) { return self.engine().name(i); },
          "procedure"_a)
      .def(
          "inputs",
          [](DenseProgram& self, size_t i) {
            return ports(self.engine().inputs(i));
          },
          "procedure"_a,
          "(name, dtype, shape) of each input, names in ASCII order.")
      .def(
          "outputs",
          [](DenseProgram& self, size_t i) {
            return ports(self.engine().outputs(i));
          },
          "procedure"_a,
          "(name, dtype, shape) of each output, names in ASCII order.")
      .def(
          "states",
          [](DenseProgram& self, size_t i) {
            auto values = self.engine().inputs(i);
            std::erase_if(values, [](auto& v) { return !v.type.state; });
            return ports(values);
          },
          "procedure"_a,
          "(name, dtype, shape) of each input that is a state.")
      .def(
          "run",
          &run,
          "procedure"_a,
          "inputs"_a,
          "exact"_a,
          "Bytes of dense arrays in the order of inputs(); gives those of "
          "outputs(), then of states().");
}

void bind_options(nb::module_& m) {
  m.def(
      "options",
      [] {
        auto o = emulated::options();
        Record out;
        out["chip"] = o.chip;
        out["numerics"] = o.exact ? "exact" : "fast";
        out["limits"] = to_string(o.level);
        out["allow"] = std::vector<std::string>(o.allow.begin(), o.allow.end());
        out["refuse"] =
            std::vector<std::string>(o.refuse.begin(), o.refuse.end());
        out["memory_budget"] = o.memory_budget;
        return out;
      },
      "Options of the emulated device.");
  m.def(
      "configure",
      [](const std::string& chip,
         bool exact,
         const std::string& limits,
         const std::set<std::string>& allow,
         const std::set<std::string>& refuse,
         int64_t memory_budget) {
        auto options = make_options(chip, exact, limits, allow, memory_budget);
        options.refuse = refuse;
        emulated::configure(options);
      },
      nb::kw_only(),
      "chip"_a,
      "exact"_a,
      "limits"_a,
      "allow"_a,
      "refuse"_a,
      "memory_budget"_a);
  m.def("reset", &emulated::reset);
  m.def("usage", [] {
    auto u = emulated::usage();
    Record out;
    out["compiles"] = u.compiles;
    out["resident"] = u.resident;
    out["weight_bytes"] = u.weight_bytes;
    out["poisoned"] = u.poisoned;
    return out;
  });
  m.def("rules", [] {
    Records out;
    for (auto& rule : mil::rules()) {
      if (rule.answer == mil::Answer::none) {
        continue;
      }
      Record entry;
      entry["id"] = rule.id;
      entry["stage"] = to_string(rule.stage);
      entry["level"] = to_string(emulated::level_of(rule));
      entry["disputed"] = rule.disputed();
      entry["limit"] = rule.why;
      entry["source"] = rule.source;
      entry["against"] = rule.against;
      out.append(entry);
    }
    return out;
  });
  m.def(
      "operations",
      [] {
        std::map<std::string, std::string> out;
        for (auto& op : emulated::all_ops()) {
          out[op.name] = op.page;
        }
        return out;
      },
      "Operations and their pages in the MIL specification.");
}

void bind_faults(nb::module_& m) {
  m.def("set_faults", &emulated::set_faults, "specification"_a);
  m.def("faults", &emulated::faults);
  m.def("fault_counts", &emulated::fault_counts);
  m.def("release_hangs", &emulated::release_hangs);
  m.def(
      "set_evaluate_bound",
      [](int64_t milliseconds) {
        emulated::set_evaluate_bound(std::chrono::milliseconds(milliseconds));
      },
      "milliseconds"_a,
      "Bound of one evaluation while a fault that blocks is injected.");
}

}  // namespace

void bind_emulated(nb::module_& m) {
  nb::register_exception_translator(translate);
  bind_program(m);
  bind_options(m);
  bind_faults(m);
}

}  // namespace mlx_ane
