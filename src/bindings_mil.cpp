// mlx_ane._ext.mil: signatures and docstrings.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "mil/check.h"
#include "mil/spec.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mlx_ane {

namespace {

using Shape = nb::typed<nb::tuple, int64_t, nb::ellipsis>;
using Finding = nb::typed<nb::tuple, mil::Rule, nb::str, nb::str, int>;

nb::bytes to_bytes(std::span<const uint8_t> data) {
  return nb::bytes(data.data(), data.size());
}

std::span<const std::byte> view(const nb::bytes& data) {
  return {static_cast<const std::byte*>(data.data()), data.size()};
}

/// Elements of a literal: bytes, strings, or nothing for BLOBFILE.
nb::object elements(const mil::Constant& constant) {
  if (auto bytes = std::get_if<std::vector<uint8_t>>(&constant.data)) {
    return to_bytes(*bytes);
  }
  if (auto strings = std::get_if<std::vector<std::string>>(&constant.data)) {
    return nb::cast(*strings);
  }
  return nb::none();
}

std::optional<std::pair<std::string, uint64_t>> blob(
    const mil::Constant& constant) {
  if (auto blob = std::get_if<mil::Blob>(&constant.data)) {
    return std::pair{blob->path, blob->offset};
  }
  return std::nullopt;
}

/// A name, a Constant or a tuple of these.
nb::object argument(const mil::Argument& value) {
  if (auto reference = std::get_if<mil::Reference>(&value.value)) {
    return nb::cast(reference->name);
  }
  if (auto constant = std::get_if<mil::Constant>(&value.value)) {
    return nb::cast(*constant);
  }
  nb::list items;
  for (auto& item : std::get<std::vector<mil::Argument>>(value.value)) {
    items.append(argument(item));
  }
  return nb::tuple(items);
}

template <typename Pairs, typename Convert>
Record dictionary(const Pairs& pairs, const Convert& convert) {
  Record result;
  for (auto& [name, value] : pairs) {
    result[name.c_str()] = convert(value);
  }
  return result;
}

void bind_values(nb::module_& m) {
  nb::class_<mil::Value>(m, "Value", "A named, typed value.")
      .def_ro("name", &mil::Value::name)
      .def_prop_ro(
          "dtype",
          [](const mil::Value& v) { return mil::to_string(v.type.dtype); },
          "Name of the element type, for example ``fp16``.")
      .def_prop_ro(
          "shape",
          [](const mil::Value& v) { return Shape(nb::cast(v.type.shape)); },
          "Sizes of the axes; -1 where the text has ``?``.")
      .def_prop_ro("state", [](const mil::Value& v) { return v.type.state; });
  nb::class_<mil::Constant>(m, "Constant", "A literal or a BLOBFILE.")
      .def_prop_ro(
          "dtype",
          [](const mil::Constant& c) { return mil::to_string(c.type.dtype); })
      .def_prop_ro(
          "shape",
          [](const mil::Constant& c) { return Shape(nb::cast(c.type.shape)); })
      .def_prop_ro("elements", &elements)
      .def_prop_ro("blob", &blob, "Path and offset of a BLOBFILE, or None.");
}

void bind_program(nb::module_& m) {
  nb::class_<mil::Operation>(m, "Operation")
      .def_ro("op", &mil::Operation::op)
      .def_prop_ro(
          "name",
          [](const mil::Operation& op) {
            return std::string(mil::name_of(op));
          })
      .def_prop_ro(
          "inputs",
          [](const mil::Operation& op) {
            return dictionary(op.inputs, argument);
          })
      .def_prop_ro(
          "attributes",
          [](const mil::Operation& op) {
            return dictionary(op.attributes, [](const mil::Constant& c) {
              return nb::cast(c);
            });
          })
      .def_ro("outputs", &mil::Operation::outputs)
      .def_prop_ro(
          "line", [](const mil::Operation& op) { return op.location.line; });
  nb::class_<mil::Function>(m, "Function")
      .def_ro("name", &mil::Function::name)
      .def_ro("opset", &mil::Function::opset)
      .def_ro("inputs", &mil::Function::inputs)
      .def_ro("operations", &mil::Function::operations)
      .def_ro("outputs", &mil::Function::outputs);
  nb::class_<mil::Program>(m, "Program")
      .def_ro("version", &mil::Program::version)
      .def_ro("build_info", &mil::Program::build_info)
      .def_ro("functions", &mil::Program::functions)
      .def_prop_ro(
          "dialect",
          [](const mil::Program& p) {
            return mil::to_string(mil::dialect_of(p));
          })
      .def(
          "text",
          [](const mil::Program& p, const std::string& dialect) {
            return mil::write(p, mil::dialect_named(dialect));
          },
          "dialect"_a)
      .def("same_meaning", &mil::same_meaning, "other"_a);
  m.def(
      "parse",
      [](nb::bytes text) { return mil::parse({text.c_str(), text.size()}); },
      "text"_a,
      "A Program; ValueError with line, column and a caret.");
}

using Texts = std::vector<std::pair<std::string, std::string>>;
using Shapes =
    std::vector<std::pair<std::string, std::vector<std::vector<int64_t>>>>;

void bind_spec(nb::module_& m) {
  m.def(
      "model_spec",
      [](const mil::Program& program,
         int version,
         const std::string& description,
         const std::string& author,
         const std::string& license,
         const std::string& model_version,
         const Texts& user_defined,
         const Shapes& shapes,
         mil::WeightWriter* weights) {
        auto bytes = mil::model_spec(
            program,
            {version,
             description,
             author,
             license,
             model_version,
             user_defined,
             shapes,
             weights});
        return nb::bytes(bytes.data(), bytes.size());
      },
      "program"_a,
      "version"_a,
      "description"_a,
      "author"_a,
      "license"_a,
      "model_version"_a,
      "user_defined"_a,
      "shapes"_a,
      "weights"_a.none(),
      "Bytes of a Core ML Model.");
  m.def("spec_version", &mil::spec_version, "program"_a);
  m.def(
      "read_spec",
      [](nb::bytes model) {
        return mil::read_spec({model.c_str(), model.size()});
      },
      "model"_a);
}

void bind_check(nb::module_& m) {
  nb::class_<mil::Rule>(m, "Rule")
      .def_prop_ro("id", [](const mil::Rule& r) { return r.id; })
      .def_prop_ro(
          "severity",
          [](const mil::Rule& r) { return mil::to_string(r.severity); })
      .def_prop_ro(
          "stage", [](const mil::Rule& r) { return mil::to_string(r.stage); })
      .def_prop_ro("disputed", &mil::Rule::disputed)
      .def_prop_ro("why", [](const mil::Rule& r) { return r.why; })
      .def_prop_ro("source", [](const mil::Rule& r) { return r.source; })
      .def_prop_ro("against", [](const mil::Rule& r) { return r.against; });
  m.def("rules", [] {
    nb::typed<nb::list, mil::Rule> all;
    for (auto& rule : mil::rules()) {
      if (rule.severity != mil::Severity::unseen) {
        all.append(nb::cast(rule));
      }
    }
    return all;
  });
  m.def(
      "check",
      [](const mil::Program& program,
         const std::string& chip,
         const std::string& macos,
         const mil::Allow& allow) {
        nb::typed<nb::list, Finding> found;
        for (auto& f : mil::check(program, chip, macos, allow)) {
          found.append(
              nb::make_tuple(
                  nb::cast(*f.rule), f.where, f.what, f.location.line));
        }
        return found;
      },
      "program"_a,
      "chip"_a,
      "macos"_a,
      "allow"_a,
      "(rule, where, what, line) of each finding.");
}

void bind_weights(nb::module_& m) {
  nb::class_<mil::Chunk>(m, "Chunk")
      .def_ro("code", &mil::Chunk::code)
      .def_prop_ro(
          "dtype",
          [](const mil::Chunk& c) -> std::optional<std::string> {
            if (c.dtype) {
              return mil::to_string(*c.dtype);
            }
            return std::nullopt;
          })
      .def_ro("offset", &mil::Chunk::offset)
      .def_ro("data_offset", &mil::Chunk::data_offset)
      .def_ro("bytes", &mil::Chunk::bytes)
      .def_ro("elements", &mil::Chunk::elements);
  m.def(
      "chunks",
      [](nb::bytes file) { return mil::WeightFile(view(file)).chunks(); },
      "file"_a);
  m.def(
      "read_chunk",
      [](nb::bytes file,
         uint64_t offset,
         const std::string& dtype,
         std::vector<int64_t> shape) {
        auto type = mil::dtype_named(dtype);
        if (!type) {
          throw std::invalid_argument(
              "[mlx_ane.mil.weights] dtype is '" + dtype +
              "', need a MIL type such as \"fp16\" or \"uint4\".");
        }
        auto constant = mil::WeightFile(view(file))
                            .constant(offset, {*type, std::move(shape), false});
        return to_bytes(std::get<std::vector<uint8_t>>(constant.data));
      },
      "file"_a,
      "offset"_a,
      "dtype"_a,
      "shape"_a);
  nb::class_<mil::WeightWriter>(m, "WeightWriter")
      .def(nb::init<>())
      .def(
          "add",
          [](mil::WeightWriter& writer,
             const std::string& dtype,
             nb::bytes data) {
            auto type = mil::dtype_named(dtype);
            if (!type) {
              throw std::invalid_argument(
                  "[mlx_ane.mil.weights] dtype is '" + dtype +
                  "', need a MIL type such as \"fp16\" or \"uint4\".");
            }
            return writer.add(
                *type, {static_cast<const uint8_t*>(data.data()), data.size()});
          },
          "dtype"_a,
          "data"_a)
      .def("bytes", [](const mil::WeightWriter& writer) {
        auto& bytes = writer.bytes();
        return nb::bytes(bytes.data(), bytes.size());
      });
}

}  // namespace

void bind_mil(nb::module_& m) {
  m.doc() = "MIL programs and weight files; see mlx_ane.mil.";
  bind_values(m);
  bind_program(m);
  bind_check(m);
  bind_weights(m);
  bind_spec(m);
}

}  // namespace mlx_ane
