// mlx_ane._ext.block: programs of many ports, and calls of them as MLX nodes.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <mutex>

#include "bindings.h"
#include "device/executables.h"
#include "device/runner.h"
#include "ops/block.h"
#include "ops/gemm.h"
#include "ops/quantized_linear.h"
#include "ops/streams.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace mlx_ane {

namespace {

using Arrays = BlockTransforms::Arrays;

/// Graphs die on stream workers, where the GIL must not be waited for: what
/// they held is released by the next call from Python.
class Releases {
 public:
  void add(PyObject* object) {
    std::lock_guard lock(mutex_);
    objects_.push_back(object);
  }
  void run() {  // with the GIL
    std::vector<PyObject*> objects;
    {
      std::lock_guard lock(mutex_);
      objects.swap(objects_);
    }
    for (auto* object : objects) {
      Py_DECREF(object);
    }
  }

 private:
  std::mutex mutex_;
  std::vector<PyObject*> objects_;
};

// Leaked: workers may add while the process exits.
Releases& releases() {
  static auto* instance = new Releases;
  return *instance;
}

/// Methods vjp, jvp and vmap of a Python object.
class PythonTransforms : public BlockTransforms {
 public:
  explicit PythonTransforms(nb::object object)
      : object_(object.release().ptr()) {
  }
  ~PythonTransforms() override {
    releases().add(object_);
  }
  Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      mx::Stream stream) override {
    nb::gil_scoped_acquire gil;
    return nb::cast<Arrays>(
        object().attr("vjp")(primals, cotangents, argnums, stream));
  }
  Arrays jvp(
      const Arrays& primals,
      const Arrays& tangents,
      const std::vector<int>& argnums,
      mx::Stream stream) override {
    nb::gil_scoped_acquire gil;
    return nb::cast<Arrays>(
        object().attr("jvp")(primals, tangents, argnums, stream));
  }
  Arrays vmap(
      const Arrays& inputs,
      const std::vector<int>& axes,
      mx::Stream stream) override {
    nb::gil_scoped_acquire gil;
    return nb::cast<Arrays>(object().attr("vmap")(inputs, axes, stream));
  }
  bool is_equivalent(const BlockTransforms& other) const override {
    return object_ == static_cast<const PythonTransforms&>(other).object_;
  }

 private:
  nb::handle object() const {
    return nb::handle(object_);
  }
  PyObject* object_;
};

using Shape = std::vector<int64_t>;
using Part = std::tuple<int, int64_t, bool>;
using Table = nb::ndarray<const uint16_t, nb::c_contig, nb::device::cpu>;
using Input = std::tuple<std::string, Shape, std::vector<Part>, nb::object>;
using Result = std::tuple<std::string, Shape, int64_t, bool>;
using Output = std::tuple<std::vector<int>, mx::Dtype, int>;
using Quantized = std::tuple<int, int, int, std::string>;

std::shared_ptr<BlockProgram> make_program(
    const mil::Program& program,
    const std::vector<Input>& inputs,
    const std::vector<Result>& results,
    int cotangents) {
  std::vector<BlockPort> ports;
  for (auto& [name, shape, parts, table] : inputs) {
    BlockPort port{{name, shape}, {}, {}};
    for (auto& [input, row, transposed] : parts) {
      port.parts.push_back({input, row, transposed});
    }
    if (!table.is_none()) {
      auto values = nb::cast<Table>(table);
      port.table.assign(values.data(), values.data() + values.size());
    }
    ports.push_back(std::move(port));
  }
  std::vector<BlockResult> outputs;
  for (auto& [name, shape, columns, scaled] : results) {
    outputs.push_back({{name, shape}, columns, scaled});
  }
  return std::make_shared<BlockProgram>(
      program, std::move(ports), std::move(outputs), cotangents);
}

Arrays call(
    const std::shared_ptr<BlockProgram>& program,
    const Arrays& inputs,
    const std::vector<Output>& outputs,
    const std::vector<bool>& frozen,
    const std::vector<Quantized>& quantized,
    nb::object transforms,
    const std::string& device,
    const std::string& name,
    const mx::StreamOrDevice& stream) {
  releases().run();
  BlockOptions options{
      program, {}, frozen, {}, resolve_place("block", device), name};
  for (auto& [input, group_size, bits, mode] : quantized) {
    options.quantized.push_back(
        {input, group_size, bits, quantization_mode(mode)});
  }
  for (auto& [shape, dtype, residual] : outputs) {
    options.outputs.push_back(
        {mx::Shape(shape.begin(), shape.end()), dtype, residual});
  }
  return block(
      inputs,
      options,
      std::make_shared<PythonTransforms>(std::move(transforms)),
      stream);
}

}  // namespace

void bind_block(nb::module_& m) {
  nb::class_<BlockProgram>(
      m, "Program", "A MIL program with its ports; see mlx_ane.block.")
      .def_ro("id", &BlockProgram::id);
  m.def(
      "place",
      [](const std::string& name, const std::string& reason) {
        auto layer = trace::layer(name);
        ++layer->calls;
        layer->place(trace::placement_from(reason));
      },
      "name"_a,
      "reason"_a,
      "Counts a call that the function itself serves.");
  m.def(
      "weight_gradient",
      [](const mx::array& left,
         const mx::array& right,
         const std::string& name,
         mx::Dtype dtype) {
        GemmOptions options;
        options.role = Role::dw;
        options.layer = name;
        options.dtype = dtype;
        return gemm(
            left, right, options, resolve_stream("block", std::monostate{}));
      },
      "left"_a,
      "right"_a,
      "name"_a,
      "dtype"_a,
      "left (M, K) @ right (K, N) on the BLAS, on this thread's CPU stream.");
  m.def(
      "admits",
      [](const std::shared_ptr<BlockProgram>& program,
         const std::string& device) {
        auto place = resolve_place("block", device);
        // Its gradient is a program too.
        return !place.device ||
               executable_cache().admits(*place.device, BlockShape{program}, 1);
      },
      "program"_a,
      "device"_a,
      "Whether the device has the program, or room for it and its gradient.");
  m.def(
      "stream",
      [](const std::string& device) {
        return resolve_stream(
            "block", std::monostate{}, resolve_place("block", device));
      },
      "device"_a,
      "The CPU stream that calls of a device run on.");
  m.def("min_rows", &min_rows, "Calls of fewer rows are placed on the BLAS.");
  m.def(
      "program",
      &make_program,
      "program"_a,
      "inputs"_a,
      "results"_a,
      "cotangents"_a,
      "inputs: (name, shape, parts (input, row, transposed), table of fp16 "
      "bits or None); results: (name, shape, columns, scaled).");
  m.def(
      "call",
      &call,
      "program"_a,
      "inputs"_a,
      "outputs"_a,
      "frozen"_a,
      "quantized"_a,
      "transforms"_a,
      nb::kw_only(),
      "device"_a,
      "name"_a = "",
      "stream"_a = nb::none(),
      "A node of the program's results; outputs: (shape, dtype, residual input "
      "or -1); quantized: (input, group size, bits, mode), whose scales and "
      "biases follow the inputs; transforms has methods vjp, jvp and vmap.");
}

}  // namespace mlx_ane
