// ANEBlock: encodes one device task; residuals are added in fp32 on the host.
#include "ops/block.h"

#include <algorithm>

#include "device/runner.h"
#include "device/weights.h"
#include "host/half.h"
#include "host/rows.h"
#include "ops/failure.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/streams.h"

namespace mlx_ane {

namespace {

/// What becomes of one result of the program.
struct Destination {
  MatrixOut out;  // all elements as one row
  int residual;
};

struct Task {
  std::vector<HostMatrix> x;
  std::vector<HostMatrix> flat;  // of inputs that are residuals
  BlockCall call;                // all but x and y
  std::vector<Destination> destinations;
  Device* device;
  TrackedTask tracked;

  void operator()() const {
    auto ready = call;
    for (auto& x_i : x) {
      ready.x.push_back(x_i.view());
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
  if (options.outputs.size() != program.outputs.size() ||
      options.frozen.size() != inputs.size()) {
    throw std::invalid_argument(
        "[mlx_ane.block] got " + std::to_string(options.outputs.size()) +
        " outputs and " + std::to_string(options.frozen.size()) +
        " flags of frozen inputs, need " +
        std::to_string(program.outputs.size()) + " and " +
        std::to_string(inputs.size()) + ".");
  }
  for (auto& x : inputs) {
    check_float("block", "an input", x);
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
      inputs);
}

void ANEBlock::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  layer_->calls.fetch_add(1, std::memory_order_relaxed);
  trace::add(trace::Counter::block_calls);
  Task task{
      {},
      {},
      {options_.program, {}, {}, {}, layer_},
      {},
      options_.place.device,
      TrackedTask(stream(), outputs[0])};
  for (size_t i = 0; i < inputs.size(); ++i) {
    task.x.push_back(HostMatrix::rows(inputs[i]));
    task.flat.push_back(HostMatrix::flat(inputs[i]));
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
