// ANELinear: encodes one device (or BLAS) task, and its gradients as Gemms.
#include "ops/linear.h"

#include "device/device_matmul.h"
#include "host/bytes.h"
#include "kernels/gemm.h"
#include "ops/failure.h"
#include "ops/gemm.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/row_sum.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

/// A product on the BLAS. Kept small: tiny layers cost as much as a dispatch.
struct BlasTask {
  HostMatrix x;  // (S, K)
  MatrixView w;  // (N, K)
  std::optional<MatrixView> bias;
  MatrixOut y;  // (S, N)
  std::shared_ptr<trace::Layer> layer;

  void operator()() const {
    auto flops = 2 * y.rows * w.cols * y.cols;
    trace::Span span(
        "gemm_forward", layer->name, bytes_of(x.view(), w, y), flops);
    trace::add(trace::Counter::gemm_forward);
    kernels::gemm(x.view(), w.transposed(), bias ? &*bias : nullptr, y);
  }
};

struct DeviceTask {
  HostMatrix x;
  MatmulCall call;  // all but x, which is gathered in the task
  Device* device;
  TrackedTask tracked;

  void operator()() const {
    auto ready = call;
    ready.x = x.view();
    tracked.run([&] { run_matmul(*device, ready); });
  }
};

/// A weight or bias by its own strides.
MatrixView parameter_view(const mx::array& a) {
  bool vector = a.ndim() == 1;
  return {
      a.data<void>(),
      float_type(a.dtype()),
      vector ? 1 : a.shape(0),
      a.shape(-1),
      vector ? 0 : a.strides(0),
      a.strides(-1)};
}

/// The result for (x, weight, [bias]) of float types.
mx::array linear_of(
    std::vector<mx::array> inputs,
    const LinearOptions& options,
    mx::Stream stream) {
  auto shape = inputs[0].shape();
  shape.back() = inputs[1].shape(0);
  return mx::array(
      std::move(shape),
      options.dtype,
      std::make_shared<ANELinear>(stream, options),
      std::move(inputs));
}

}  // namespace

mx::array linear(
    const mx::array& x,
    const mx::array& weight,
    const std::optional<mx::array>& bias,
    const std::string& device,
    const std::string& layer,
    bool frozen,
    const std::string& precision,
    const mx::StreamOrDevice& stream) {
  std::vector<Named> operands{{"x", x}, {"weight", weight}};
  if (bias) {
    operands.emplace_back("bias", *bias);
  }
  auto dtype = product_type("linear", operands);
  if (weight.ndim() != 2) {
    throw std::invalid_argument(
        "[mlx_ane.linear] got weight of shape " + to_string(weight.shape()) +
        ", need two axes (out, in).");
  }
  if (x.ndim() == 0 || x.shape(-1) != weight.shape(1)) {
    throw std::invalid_argument(
        "[mlx_ane.linear] got x of shape " + to_string(x.shape()) +
        " and weight of shape " + to_string(weight.shape()) +
        ", need x.shape[-1] equal to weight.shape[1].");
  }
  if (bias && (bias->ndim() != 1 || bias->shape(0) != weight.shape(0))) {
    throw std::invalid_argument(
        "[mlx_ane.linear] got bias of shape " + to_string(bias->shape()) +
        " and weight of shape " + to_string(weight.shape()) +
        ", need bias of shape (weight.shape[0],).");
  }
  if (precision != "default" && precision != "high") {
    throw std::invalid_argument(
        "[mlx_ane.linear] got precision \"" + precision +
        "\", need \"default\" or \"high\".");
  }
  LinearOptions options{
      resolve_place("linear", device),
      layer,
      frozen,
      precision == "high",
      dtype};
  auto s = resolve_stream("linear", stream, options.place);
  std::vector<mx::array> inputs;
  for (auto& [name, operand] : operands) {
    inputs.push_back(as_float(operand, dtype, s));
  }
  return linear_of(std::move(inputs), options, s);
}

void ANELinear::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  auto& y = outputs[0];
  allocate(y);
  if (y.size() == 0) {
    return;
  }
  trace::add(trace::Counter::linear_calls);
  layer_->calls.fetch_add(1, std::memory_order_relaxed);
  auto x = HostMatrix::rows(inputs[0]);
  auto w = parameter_view(inputs[1]);
  std::optional<MatrixView> bias;
  if (inputs.size() == 3) {
    bias = parameter_view(inputs[2]);
  }
  auto out = rows_of(y);
  auto& tasks = encoder(inputs, outputs);
  auto* device = w.cols > 0 ? options_.place.device : nullptr;
  if (!device) {
    layer_->place(trace::Placement::device_cpu);
    tasks.dispatch(BlasTask{std::move(x), w, bias, out, layer_});
    return;
  }
  MatmulCall call{{}, w, bias, out, nullptr, layer_, options_.high_precision};
  auto& owner = inputs[1].data_shared_ptr();
  if (!options_.high_precision &&
      (options_.frozen || weight_store().trained(owner))) {
    call.staged = staged_weight(*device, out.rows, *layer_, owner, w);
  }
  tasks.dispatch(
      DeviceTask{
          std::move(x), std::move(call), device, TrackedTask(stream(), y)});
}

std::vector<mx::array> ANELinear::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  auto s = stream();
  auto& x = primals[0];
  auto& w = primals[1];
  auto dy = folded(cotangents[0], s);  // (S, N)
  std::vector<mx::array> gradients;
  for (int argument : argnums) {
    GemmOptions options;
    options.layer = options_.layer;
    options.dtype = primals[argument].dtype();
    if (argument == 0) {
      // dx (S, K) = dy (S, N) W (N, K)
      options.role = Role::dx;
      auto dx = gemm(dy, w, options, s);
      gradients.push_back(x.ndim() == 2 ? dx : mx::reshape(dx, x.shape(), s));
    } else if (argument == 1) {
      // dW (N, K) = dyᵀ (N, S) x (S, K)
      options.role = Role::dw;
      options.trans_a = true;
      gradients.push_back(gemm(dy, folded(x, s), options, s));
    } else {
      gradients.push_back(row_sum(dy, options.dtype, s));
    }
  }
  return gradients;
}

std::vector<mx::array> ANELinear::jvp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  auto s = stream();
  std::optional<mx::array> sum;
  for (size_t i = 0; i < argnums.size(); ++i) {
    GemmOptions options;
    options.dtype = options_.dtype;
    options.trans_b = true;
    options.layer = options_.layer;
    auto shape = output_shapes(primals)[0];
    auto term = tangents[i];
    if (argnums[i] == 2) {
      term = mx::broadcast_to(mx::astype(term, options_.dtype, s), shape, s);
    } else {
      auto& x = argnums[i] == 0 ? tangents[i] : primals[0];
      auto& w = argnums[i] == 1 ? tangents[i] : primals[1];
      term = mx::reshape(gemm(folded(x, s), w, options, s), shape, s);
    }
    sum = sum ? mx::add(*sum, term, s) : term;
  }
  return {*sum};
}

std::pair<std::vector<mx::array>, std::vector<int>> ANELinear::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  auto s = stream();
  bool has_bias = inputs.size() == 3;
  bool maps_bias = has_bias && axes[2] >= 0;
  auto x = axes[0] >= 0 ? mx::moveaxis(inputs[0], axes[0], 0, s) : inputs[0];
  if (axes[1] < 0) {
    std::vector<mx::array> operands{x, inputs[1]};
    if (has_bias && !maps_bias) {
      operands.push_back(inputs[2]);
    }
    auto y = linear_of(std::move(operands), options_, s);
    if (!maps_bias) {
      return {{y}, {axes[0] >= 0 ? 0 : -1}};
    }
    // (V, N) against (V, ..., N) or (..., N)
    auto b = mx::moveaxis(inputs[2], axes[2], 0, s);
    auto shape = b.shape();
    int64_t inner = y.ndim() - (axes[0] >= 0 ? 2 : 1);
    shape.insert(shape.begin() + 1, inner, 1);
    return {
        {mx::astype(
            mx::add(y, mx::reshape(b, shape, s), s), options_.dtype, s)},
        {0}};
  }
  // A weight for each element: one batched product, then the bias.
  auto w = mx::moveaxis(inputs[1], axes[1], 0, s);  // (V, N, K)
  int64_t size = w.shape(0);
  if (axes[0] < 0) {
    auto shape = x.shape();
    shape.insert(shape.begin(), size);
    x = mx::broadcast_to(x, shape, s);
  }
  auto out_shape = x.shape();
  out_shape.back() = w.shape(1);
  mx::Shape folded_shape{static_cast<int>(size), -1, w.shape(2)};
  if (x.size() == 0) {
    folded_shape[1] = 0;
  }
  GemmOptions options;
  options.dtype = options_.dtype;
  options.trans_b = true;
  options.role = Role::forward;
  options.place = options_.place;
  options.layer = options_.layer;
  auto y = mx::reshape(
      gemm(mx::reshape(x, folded_shape, s), w, options, s), out_shape, s);
  if (has_bias) {
    auto b = inputs[2];
    if (maps_bias) {
      b = mx::moveaxis(b, axes[2], 0, s);
      auto shape = b.shape();
      shape.insert(shape.begin() + 1, y.ndim() - 2, 1);
      b = mx::reshape(b, shape, s);
    }
    y = mx::astype(mx::add(y, b, s), options_.dtype, s);
  }
  return {{y}, {0}};
}

std::vector<mx::Shape> ANELinear::output_shapes(
    const std::vector<mx::array>& inputs) {
  auto shape = inputs[0].shape();
  shape.back() = inputs[1].shape(0);
  return {shape};
}

}  // namespace mlx_ane
