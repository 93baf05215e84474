// ANEBlock: encodes one device task; residuals are added in fp32 on the host.
#include "ops/block.h"

#include <algorithm>
#include <map>

#include "device/runner.h"
#include "device/weights.h"
#include "host/half.h"
#include "host/rows.h"
#include "ops/failure.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/quantized_linear.h"
#include "ops/streams.h"

namespace mlx_ane {

namespace {

/// What becomes of one result of the program.
struct Destination {
  MatrixOut out;  // all elements as one row
  int residual;
};

/// A quantised matrix as the store knows it; the rows' stride tells bit widths
/// apart.
MatrixView key(const kernels::QuantizedMatrix& w) {
  return {w.data, Float::f32, w.rows, w.cols, w.bits, w.group_size};
}

/// Arrays of a quantised matrix.
size_t parts_of(const QuantizedInput& q) {
  return q.mode == kernels::QuantizationMode::affine ? 3 : 2;
}

struct Task {
  std::vector<HostMatrix> x;     // not of quantised inputs
  std::vector<HostMatrix> flat;  // of inputs that are residuals
  BlockCall call;                // all but x and y
  std::vector<Destination> destinations;
  Device* device;
  TrackedTask tracked;

  void operator()() const {
    auto ready = call;
    for (size_t i = 0; i < x.size(); ++i) {
      auto quantized = call.quantized.find(static_cast<int>(i));
      ready.x.push_back(
          quantized == call.quantized.end() ? x[i].view()
                                            : key(quantized->second.matrix));
    }
    std::vector<std::vector<float>> sums(destinations.size());
    for (size_t i = 0; i < destinations.size(); ++i) {
      auto& to = destinations[i];
      bool direct = to.out.type == Float::f32;
      sums[i].resize(direct ? 0 : to.out.cols);
      ready.y.push_back(
          direct ? static_cast<float*>(to.out.data) : sums[i].data());
    }
    tracked.run([&] {
      try {
        run_block(*device, ready);
      } catch (const DeviceFailure&) {
        finish(ready.y);
        throw;
      }
    });
    finish(ready.y);
  }

  void finish(const std::vector<float*>& y) const {
    for (size_t i = 0; i < destinations.size(); ++i) {
      auto& [out, residual] = destinations[i];
      if (residual >= 0) {
        std::vector<float> x(out.cols);
        host::copy_rows(flat[residual].view(), x.data(), out.cols);
        for (int64_t c = 0; c < out.cols; ++c) {
          y[i][c] += x[c];
        }
      }
      if (out.type != Float::f32) {
        host::from_float(y[i], out.type, out.data, out.cols);
      }
    }
  }
};

void check(const std::vector<mx::array>& inputs, const BlockOptions& options) {
  auto& program = *options.program;
  if (!options.place.device) {
    throw std::invalid_argument(
        "[mlx_ane.block] got device \"cpu\", need an engine; call the "
        "function itself.");
  }
  auto need = inputs.size();
  for (auto& q : options.quantized) {
    need -= parts_of(q) - 1;
  }
  if (options.outputs.size() != program.outputs.size() ||
      options.frozen.size() != need) {
    throw std::invalid_argument(
        "[mlx_ane.block] got " + std::to_string(options.outputs.size()) +
        " outputs and " + std::to_string(options.frozen.size()) +
        " flags of frozen inputs, need " +
        std::to_string(program.outputs.size()) + " and " +
        std::to_string(need) + ".");
  }
  std::map<int, const QuantizedInput*> quantized;
  auto part = inputs.begin() + need;
  for (auto& q : options.quantized) {
    auto& w = inputs.at(q.input);
    auto& scales = *part;
    part += parts_of(q) - 1;
    if (!options.frozen[q.input] || w.dtype() != mx::uint32 || w.ndim() != 2 ||
        q.bits < 1 || q.bits > 8 || q.group_size < 1 || q.group_size > 256 ||
        scales.shape() !=
            mx::Shape{w.shape(0), w.shape(1) * 32 / q.bits / q.group_size}) {
      throw std::invalid_argument(
          "[mlx_ane.block] got a quantised input " + to_string(w.shape()) +
          " with scales " + to_string(scales.shape()) +
          ", need what mx.quantize returns, frozen.");
    }
    quantized[q.input] = &q;
  }
  for (size_t i = 0; i < need; ++i) {
    if (!quantized.contains(static_cast<int>(i))) {
      check_float("block", "an input", inputs[i]);
    }
  }
  auto elements_of = [&](int i) { return inputs.at(i).size(); };
  for (size_t i = 0; i < options.outputs.size(); ++i) {
    auto& result = program.outputs[i];
    auto& output = options.outputs[i];
    size_t elements = 1;
    for (auto n : output.shape) {
      elements *= n;
    }
    size_t have = result.columns;
    for (size_t d = 0; d + 1 < result.port.shape.size(); ++d) {
      have *= result.port.shape[d];
    }
    if (elements != have ||
        (output.residual >= 0 && elements_of(output.residual) != elements)) {
      throw std::invalid_argument(
          "[mlx_ane.block] got output " + to_string(output.shape) + " for " +
          result.port.name + ", need " + std::to_string(have) + " elements.");
    }
  }
  for (auto& port : program.inputs) {
    for (auto& part : port.parts) {
      auto& x = inputs.at(part.input);
      int64_t cols = x.ndim() == 0 ? 1 : x.shape(-1);
      int64_t rows = cols == 0 ? 0 : x.size() / cols;
      if (auto q = quantized.find(part.input); q != quantized.end()) {
        cols = cols * 32 / q->second->bits;
      }
      if (part.transposed) {
        std::swap(rows, cols);
      }
      int64_t port_rows = 1;
      for (size_t d = 0; d + 1 < port.port.shape.size(); ++d) {
        port_rows *= port.port.shape[d];
      }
      if (cols > port.port.shape.back() || part.row + rows > port_rows) {
        throw std::invalid_argument(
            "[mlx_ane.block] got an input of shape " + to_string(x.shape()) +
            ", which does not fit port " + port.port.name + ".");
      }
    }
  }
}

}  // namespace

std::vector<mx::array> block(
    const std::vector<mx::array>& inputs,
    const BlockOptions& options,
    const std::shared_ptr<BlockTransforms>& transforms,
    const mx::StreamOrDevice& stream) {
  check(inputs, options);
  auto s = resolve_stream("block", stream, options.place);
  auto given = inputs;
  auto next = options.frozen.size();
  for (auto& q : options.quantized) {
    given[q.input] = mx::contiguous(given[q.input], false, s);
    auto type = given[next].dtype();
    if (parts_of(q) == 3) {  // one type, as the kernel reads them
      type = mx::promote_types(type, given[next + 1].dtype());
    }
    for (size_t i = 1; i < parts_of(q); ++i, ++next) {
      given[next] = mx::contiguous(mx::astype(given[next], type, s), false, s);
    }
  }
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (auto& output : options.outputs) {
    shapes.push_back(output.shape);
    dtypes.push_back(output.dtype);
  }
  return mx::array::make_arrays(
      std::move(shapes),
      dtypes,
      std::make_shared<ANEBlock>(s, options, transforms),
      std::move(given));
}

void ANEBlock::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  layer_->calls.fetch_add(1, std::memory_order_relaxed);
  trace::add(trace::Counter::block_calls);
  Task task{
      {},
      {},
      {options_.program, {}, {}, {}, {}, layer_},
      {},
      options_.place.device,
      TrackedTask(stream(), outputs[0])};
  auto next = options_.frozen.size();
  for (auto& q : options_.quantized) {
    auto parts = parts_of(q);
    auto& made = task.call.quantized[q.input];
    made.matrix = quantized_matrix(
        inputs[q.input],
        inputs[next],
        parts == 3 ? &inputs[next + 1] : nullptr,
        q.mode,
        q.bits,
        q.group_size);
    for (size_t i = 1; i < parts; ++i, ++next) {
      auto& part = inputs[next];
      made.companions.emplace_back(part.data_shared_ptr(), part.data<void>());
    }
  }
  for (size_t i = 0; i < options_.frozen.size(); ++i) {
    bool plain = !task.call.quantized.contains(static_cast<int>(i));
    task.x.push_back(plain ? HostMatrix::rows(inputs[i]) : HostMatrix());
    task.flat.push_back(plain ? HostMatrix::flat(inputs[i]) : HostMatrix());
    auto& owner = inputs[i].data_shared_ptr();
    bool kept = options_.frozen[i] ||
                (options_.program->has_own_port(static_cast<int>(i)) &&
                 weight_store().trained(owner));
    task.call.frozen.push_back(kept ? owner : nullptr);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto size = static_cast<int64_t>(outputs[i].size());
    task.destinations.push_back(
        {{outputs[i].data<void>(),
          float_type(outputs[i].dtype()),
          1,
          size,
          size},
         options_.outputs[i].residual});
  }
  encoder(inputs, outputs).dispatch(std::move(task));
}

std::vector<mx::array> ANEBlock::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  return transforms_->vjp(primals, cotangents, argnums, stream());
}

std::vector<mx::array> ANEBlock::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  return transforms_->jvp(primals, tangents, argnums, stream());
}

std::pair<std::vector<mx::array>, std::vector<int>> ANEBlock::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto outputs = transforms_->vmap(inputs, axes, stream());
  std::vector<int> out_axes(outputs.size(), 0);
  return {std::move(outputs), std::move(out_axes)};
}

bool ANEBlock::is_equivalent(const mx::Primitive& other) const {
  auto& o = static_cast<const ANEBlock&>(other);
  return PrimitiveOf::is_equivalent(other) &&
         transforms_->is_equivalent(*o.transforms_);
}

std::vector<mx::Shape> ANEBlock::output_shapes(const std::vector<mx::array>&) {
  std::vector<mx::Shape> shapes;
  for (auto& output : options_.outputs) {
    shapes.push_back(output.shape);
  }
  return shapes;
}

}  // namespace mlx_ane
