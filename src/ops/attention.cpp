// Attention: forward and backward each one task over kernels/attention.
#include "ops/attention.h"

#include "mlx/fast.h"

#include "device/device_attention.h"
#include "device/runner.h"
#include "ops/failure.h"
#include "ops/host_matrix.h"
#include "ops/outputs.h"
#include "ops/streams.h"
#include "trace/timeline.h"

namespace mlx_ane {

namespace {

using Kind = kernels::Mask::Kind;
constexpr const char* op = "fast.scaled_dot_product_attention";

[[noreturn]] void bad(const std::string& got, const std::string& need) {
  throw std::invalid_argument(
      std::string("[mlx_ane.") + op + "] got " + got + ", need " + need + ".");
}

void check_shapes(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const std::optional<mx::array>& sinks) {
  for (auto* x : {&q, &k, &v}) {
    if (x->ndim() != 4) {
      bad("an operand of shape " + to_string(x->shape()),
          "four axes (batch, heads, tokens, features)");
    }
  }
  auto shapes = "q " + to_string(q.shape()) + ", k " + to_string(k.shape()) +
                " and v " + to_string(v.shape());
  if (q.shape(0) != k.shape(0) || k.shape(0) != v.shape(0)) {
    bad(shapes, "equal batch sizes");
  }
  if (k.shape(1) != v.shape(1) || k.shape(1) == 0 ||
      q.shape(1) % k.shape(1) != 0) {
    bad(shapes, "k and v of equal heads that divide those of q");
  }
  if (q.shape(3) != k.shape(3) || k.shape(2) != v.shape(2)) {
    bad(shapes, "q and k of equal features, k and v of equal tokens");
  }
  if (sinks && sinks->shape() != mx::Shape{q.shape(1)}) {
    bad("sinks of shape " + to_string(sinks->shape()),
        "one value a head (" + std::to_string(q.shape(1)) + ",)");
  }
}

/// As in MLX: a mask or sinks do not make the output wider than q, k and v.
void check_promotes(const char* name, const mx::array& x, mx::Dtype dtype) {
  if (mx::promote_types(x.dtype(), dtype) != dtype) {
    bad(std::string(name) + " of dtype " + to_string(x.dtype()) + " with " +
            to_string(dtype) + " q, k and v",
        "a dtype that promotes to theirs; cast it with astype");
  }
}

kernels::Heads heads(const mx::array& x) {
  kernels::Heads out;
  out.data = const_cast<void*>(x.data<void>());
  out.type = float_type(x.dtype());
  for (int i = 0; i < 4; ++i) {
    out.shape[i] = x.shape(i);
    out.strides[i] = x.strides(i);
  }
  return out;
}

bool has_mask_array(const AttentionOptions& options) {
  return options.mask == Kind::boolean || options.mask == Kind::additive;
}

/// The kernel's view of (q, k, v, [mask], [sinks]).
kernels::Attention kernel_call(
    const std::vector<mx::array>& inputs, const AttentionOptions& options) {
  kernels::Attention call{
      heads(inputs[0]),
      heads(inputs[1]),
      heads(inputs[2]),
      options.scale,
      {},
      nullptr};
  call.mask.kind = options.mask;
  size_t next = 3;
  if (has_mask_array(options)) {
    auto& mask = inputs[next++];
    call.mask.data = mask.data<void>();
    call.mask.type = float_type(mask.dtype());
    for (int i = 0; i < 4; ++i) {
      call.mask.strides[i] = mask.shape(i) == 1 ? 0 : mask.strides(i);
    }
  }
  if (options.sinks) {
    call.sinks = inputs[next].data<float>();
  }
  return call;
}

size_t operands(const AttentionOptions& options) {
  return 3 + has_mask_array(options) + options.sinks;
}

/// What reading or writing each of them once moves.
template <class... Tensors>
int64_t bytes_of(const Tensors&... tensors) {
  auto bytes = [](const kernels::Heads& x) {
    auto& s = x.shape;
    return s[0] * s[1] * s[2] * s[3] * static_cast<int64_t>(size_of(x.type));
  };
  return (bytes(tensors) + ...);
}

int64_t flops(const kernels::Attention& call) {
  auto& q = call.q.shape;
  return 2 * q[0] * q[1] * q[2] * call.k.shape[2] * (q[3] + call.v.shape[3]);
}

/// The rows of an array (..., 2) that the forward pass fills for the backward.
kernels::RowSoftmax* row_softmax(const mx::array& x) {
  static_assert(sizeof(kernels::RowSoftmax) == 2 * sizeof(float));
  return reinterpret_cast<kernels::RowSoftmax*>(
      const_cast<float*>(x.data<float>()));
}

/// The gradient of the exact layer after a forward on a device: its fp32 output
/// and softmax are computed here.
void backward_of_exact(
    const kernels::Attention& call,
    const kernels::Heads& d_out,
    const kernels::Heads& dq,
    const kernels::Heads& dk,
    const kernels::Heads& dv,
    float* d_sinks) {
  auto [batch, count, rows, features] = call.q.shape;
  auto values = call.v.shape[3];
  std::vector<float> exact(batch * count * rows * values);
  std::vector<kernels::RowSoftmax> softmax(batch * count * rows);
  kernels::Heads out{
      exact.data(),
      Float::f32,
      {batch, count, rows, values},
      {count * rows * values, rows * values, values, 1}};
  kernels::attention_forward(call, out, softmax.data());
  kernels::attention_backward(
      call, out, softmax.data(), d_out, dq, dk, dv, d_sinks);
}

/// MLX's own function. Its second output stands for the softmax and is never
/// read: transformations of the forward take its gradient from here too.
Fused::Function composed(const AttentionOptions& options, mx::Stream s) {
  return [options, s](const std::vector<mx::array>& in) {
    std::optional<mx::array> mask, sinks;
    if (has_mask_array(options)) {
      mask = in[3];
    }
    if (options.sinks) {
      sinks = mx::astype(in.back(), in[0].dtype(), s);
    }
    bool causal = options.mask == Kind::causal;
    auto out = mx::fast::scaled_dot_product_attention(
        in[0],
        in[1],
        in[2],
        options.scale,
        causal ? "causal" : "",
        mask,
        sinks,
        false,
        s);
    auto shape = in[0].shape();
    shape[3] = 2;
    return std::vector<mx::array>{out, mx::zeros(shape, mx::float32, s)};
  };
}

/// (q, k, v, [mask], [sinks], out, softmax, d_out) -> the gradients of
/// `trained` among the first n, by MLX's ops: for the gradient of the gradient.
Fused::Function gradient_of(
    Fused::Function forward, const std::vector<int>& trained, size_t n) {
  return [=](const std::vector<mx::array>& in) {
    std::vector<mx::array> primals;
    for (int i : trained) {
      primals.push_back(in[i]);
    }
    auto out_only = [&](const std::vector<mx::array>& some) {
      std::vector<mx::array> all(in.begin(), in.begin() + n);
      for (size_t j = 0; j < trained.size(); ++j) {
        all[trained[j]] = some[j];
      }
      return std::vector<mx::array>{forward(all)[0]};
    };
    return mx::vjp(out_only, primals, {in.back()}).second;
  };
}

/// Zeros for a call without keys, whose every sum has no term, or without
/// outputs.
bool fill_if_empty(
    const mx::array& k, const mx::array& out, std::vector<mx::array>& outputs) {
  bool empty = k.shape(2) == 0 || out.size() == 0;
  for (size_t i = 0; empty && i < outputs.size(); ++i) {
    std::fill_n(outputs[i].data<char>(), outputs[i].nbytes(), 0);
  }
  return empty;
}

}  // namespace

mx::array attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    float scale,
    const std::optional<mx::array>& mask,
    const std::optional<mx::array>& sinks,
    bool causal,
    const std::string& device,
    const mx::StreamOrDevice& stream) {
  check_shapes(q, k, v, sinks);
  auto dtype = mx::result_type(q, k, v);
  if (!mx::issubdtype(dtype, mx::floating)) {
    bad("q, k and v of dtype " + to_string(dtype), "a float type; cast them");
  }
  if (causal && mask) {
    bad("both causal and a mask array", "one of them");
  }
  auto place = resolve_place(op, device);
  auto s = resolve_stream(op, stream, place);
  std::vector<mx::array> inputs{
      mx::astype(q, dtype, s),
      mx::astype(k, dtype, s),
      mx::astype(v, dtype, s)};
  AttentionOptions options{
      scale, causal ? Kind::causal : Kind::none, sinks.has_value(), place};
  if (mask) {
    check_promotes("mask", *mask, dtype);
    mx::Shape scores{q.shape(0), q.shape(1), q.shape(2), k.shape(2)};
    if (mx::broadcast_shapes(mask->shape(), scores) != scores) {
      bad("mask of shape " + to_string(mask->shape()),
          "one that broadcasts to " + to_string(scores));
    }
    bool boolean = mask->dtype() == mx::bool_;
    options.mask = boolean ? Kind::boolean : Kind::additive;
    auto values = boolean ? *mask : mx::astype(*mask, dtype, s);
    inputs.push_back(mx::broadcast_to(values, scores, s));
  }
  if (sinks) {
    check_promotes("sinks", *sinks, dtype);
    auto values = mx::astype(*sinks, dtype, s);
    if (dtype != mx::float64) {
      values = mx::contiguous(mx::astype(values, mx::float32, s), false, s);
    }
    inputs.push_back(values);
  }
  if (dtype == mx::float64) {
    return composed(options, s)(inputs)[0];
  }
  auto primitive =
      std::make_shared<Attention>(s, options, composed(options, s));
  auto shapes = primitive->output_shapes(inputs);
  return mx::array::make_arrays(
      shapes, {dtype, mx::float32}, primitive, inputs)[0];
}

void Attention::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  if (fill_if_empty(inputs[1], outputs[0], outputs)) {
    return;
  }
  layer_->calls += 1;
  auto& tasks = encoder(inputs, outputs);
  auto call = kernel_call(inputs, options_);
  auto out = heads(outputs[0]);
  if (!options_.place.device) {
    layer_->place(trace::Placement::device_cpu);
    tasks.dispatch([call, out, softmax = row_softmax(outputs[1])] {
      trace::Span span(
          "attention", op, bytes_of(call.q, call.k, call.v, out), flops(call));
      kernels::attention_forward(call, out, softmax);
    });
    return;
  }
  tasks.dispatch([call,
                  out,
                  tracked = TrackedTask(stream(), outputs[0]),
                  layer = layer_,
                  device = options_.place.device] {
    tracked.run([&] { run_attention(*device, call, out, *layer); });
  });
}

std::vector<mx::array> Attention::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>& outputs) {
  auto n = operands(options_);
  for (int i : argnums) {
    if (i == 3 && has_mask_array(options_)) {
      // A trained mask has no kernel.
      return Fused::vjp(primals, cotangents, argnums, outputs);
    }
  }
  auto s = stream();
  auto inputs = primals;
  inputs.insert(inputs.end(), outputs.begin(), outputs.end());
  inputs.push_back(cotangents[0]);
  std::vector<int> trained{0, 1, 2};
  if (options_.sinks) {
    trained.push_back(static_cast<int>(n) - 1);
  }
  auto primitive = std::make_shared<AttentionVJP>(
      s, options_, gradient_of(composition_, trained, n));
  std::vector<mx::Dtype> dtypes;
  for (int i : trained) {
    dtypes.push_back(primals[i].dtype());
  }
  auto gradients = mx::array::make_arrays(
      primitive->output_shapes(inputs), dtypes, primitive, inputs);
  std::vector<mx::array> asked;
  for (int i : argnums) {
    asked.push_back(gradients[i < 3 ? i : 3]);
  }
  return asked;
}

std::vector<mx::Shape> Attention::output_shapes(
    const std::vector<mx::array>& inputs) {
  auto out = inputs[0].shape();
  out[3] = inputs[2].shape(3);
  return {out, {out[0], out[1], out[2], 2}};
}

void AttentionVJP::eval_cpu(
    const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) {
  allocate(outputs);
  auto n = operands(options_);
  if (fill_if_empty(inputs[1], inputs[n], outputs)) {
    return;
  }
  encoder(inputs, outputs)
      .dispatch([call = kernel_call(inputs, options_),
                 out = heads(inputs[n]),
                 softmax = row_softmax(inputs[n + 1]),
                 d_out = heads(inputs[n + 2]),
                 dq = heads(outputs[0]),
                 dk = heads(outputs[1]),
                 dv = heads(outputs[2]),
                 d_sinks = options_.sinks ? outputs[3].data<float>() : nullptr,
                 recompute = options_.place.device != nullptr] {
        auto bytes = bytes_of(call.q, call.k, call.v, out, d_out, dq, dk, dv);
        trace::Span span("attention_vjp", op, bytes, 5 * flops(call) / 2);
        if (recompute) {
          backward_of_exact(call, d_out, dq, dk, dv, d_sinks);
        } else {
          kernels::attention_backward(
              call, out, softmax, d_out, dq, dk, dv, d_sinks);
        }
      });
}

std::vector<mx::Shape> AttentionVJP::output_shapes(
    const std::vector<mx::array>& inputs) {
  std::vector<mx::Shape> shapes{
      inputs[0].shape(), inputs[1].shape(), inputs[2].shape()};
  if (options_.sinks) {
    shapes.push_back(inputs[operands(options_) - 1].shape());
  }
  return shapes;
}

}  // namespace mlx_ane
